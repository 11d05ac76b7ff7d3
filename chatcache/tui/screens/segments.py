"""The segments of both tiers, and what can be done with one: look, pin, check, drop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from typing import TYPE_CHECKING, Any

from textual.content import Content
from textual.widgets import Static

from chatcache.backends.base import SegmentRow
from chatcache.tui.commands import bindings
from chatcache.tui.formatting import age, size
from chatcache.tui.panel_model import where_words
from chatcache.tui.screens.confirm import ConfirmScreen
from chatcache.tui.screens.filter_list import FilterListScreen, Row
from chatcache.tui.styles import MUTED
from chatcache.tui.worker import as_user_error

if TYPE_CHECKING:
    from chatcache.frontend.desk import SegmentDesk

_ID_WIDTH = 14


class SegmentsScreen(FilterListScreen[None]):
    """Acts through the desk; returns nothing."""

    BINDINGS = bindings("segments")
    title_text = "Segments: the K and V of runs of tokens"
    keys_text = "Enter inspect · F6 pin, unpin · F7 verify · F8 drop · Esc close"
    empty_text = "Nothing is remembered yet."

    def __init__(self, rows: Sequence[SegmentRow], desk: SegmentDesk | None, now: float) -> None:
        super().__init__()
        self._segments = {f"{row.namespace}/{row.segment_id}": row for row in rows}
        self._desk, self._now = desk, now

    def on_mount(self) -> None:
        super().on_mount()
        rows = [
            Row(key, f"{row.segment_id} {where_words(row)}", self._drawer(row))
            for key, row in self._segments.items()
        ]
        self.call_after_refresh(self.set_rows, rows)

    def columns(self, width: int) -> Content:
        return Content(
            _columns("segment", "tokens", "where", "size", "age", "hits", width)
        ).stylize(MUTED)

    def _drawer(self, row: SegmentRow) -> Callable[[int], Content]:
        def draw(width: int) -> Content:
            return Content(
                _columns(
                    row.segment_id[: _ID_WIDTH - 2],
                    f"{row.start:,}–{row.stop:,}",
                    where_words(row) + (" pinned" if row.is_pinned else ""),
                    size(row.num_bytes),
                    age(self._now - row.last_used),
                    f"{row.hits:,}",
                    width,
                )
            )

        return draw

    def preview(self, row: Row) -> Content:
        segment = self._segments[row.row_id]
        behind = f"behind {segment.parent_id[:12]}" if segment.parent_id else "at the beginning"
        facts = f"{segment.num_tokens:,} tokens, {behind}, namespace {segment.namespace[:12]}"
        return Content.styled(facts, MUTED)

    # Acting

    def choose(self, row: Row) -> None:
        self._act(self._inspect)

    def action_pin(self) -> None:
        self._act(self._pin)

    def action_verify(self) -> None:
        self._act(self._verify)

    def action_drop(self) -> None:
        self._act(self._drop)

    def _act(self, act: Callable[[SegmentDesk, SegmentRow], Coroutine[Any, Any, None]]) -> None:
        row = self.highlighted_row
        if row is None:
            return
        if self._desk is None:
            self.say("The cache of this backend is not on this machine.")
            return
        self.run_worker(self._guarded(act(self._desk, self._segments[row.row_id])))

    async def _guarded(self, work: Coroutine[Any, Any, None]) -> None:
        try:
            await work
        except Exception as failure:
            error = as_user_error(failure)
            self.say(f"{error.message} {error.hint}")

    async def _inspect(self, desk: SegmentDesk, segment: SegmentRow) -> None:
        lines = await asyncio.to_thread(desk.inspect, segment)
        self.query_one(".preview", Static).update(Content("\n".join(lines)))

    async def _pin(self, desk: SegmentDesk, segment: SegmentRow) -> None:
        self.say(await asyncio.to_thread(desk.toggle_pin, segment))

    async def _verify(self, desk: SegmentDesk, segment: SegmentRow) -> None:
        self.say("reading the file …")
        self.say(await asyncio.to_thread(desk.verify, segment))

    async def _drop(self, desk: SegmentDesk, segment: SegmentRow) -> None:
        question = f"Drop {size(segment.num_bytes)} of K and V, and what builds on them?"
        detail = "No word is lost; what is needed again is computed again."
        if await self.app.push_screen_wait(ConfirmScreen(question, detail, "Drop")):
            self.say(await asyncio.to_thread(desk.drop, segment))


def _columns(
    name: str, tokens: str, where: str, size_: str, age_: str, hits: str, width: int
) -> str:
    tail = f"{tokens:>16}  {where:<14}{size_:>8}{age_:>6}"
    if width >= 56:
        tail += f"{hits:>6}"
    room = width - len(tail)
    return (f"{name:<{_ID_WIDTH}}"[:room] if room > 4 else "").ljust(max(0, room)) + tail
