"""The segments of both tiers, and what can be done with them: look, pin, check, write, drop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from textual import on
from textual.content import Content
from textual.widgets import Static

from chatcache.backends.base import SegmentRow
from chatcache.formatting import plural, size, span
from chatcache.tui.commands import bindings
from chatcache.tui.look.formatting import MUTED, age
from chatcache.tui.messages import SegmentsChanged
from chatcache.tui.panel.drawing import where_words
from chatcache.tui.screens.dialogs import ConfirmScreen
from chatcache.tui.screens.filter_list import FilterListScreen

if TYPE_CHECKING:
    from chatcache.frontend.desk import SegmentDesk

_ID_WIDTH = 14


class SegmentsScreen(FilterListScreen[SegmentRow, None]):
    """Acts through the desk, and on memory through the engine; returns nothing."""

    BINDINGS = bindings("segments")
    title_text = "Segments: the K and V of runs of tokens"
    placeholder = "type to filter by id, tier, or “pinned”"
    keys_text = (
        "Enter inspect · F6 pin · F7 verify · F5 verify all · F9 spill · F8 drop · Esc close"
    )
    empty_text = "Nothing is remembered yet."

    def __init__(
        self,
        rows: Sequence[SegmentRow],
        desk: SegmentDesk | None,
        now: float,
        spill: Callable[[SegmentRow], str],
    ) -> None:
        super().__init__()
        self._rows = rows
        self._desk, self._now, self._spill_one = desk, now, spill
        self._is_verifying = False

    async def fill(self) -> None:
        self.set_items(_by_key(self._rows))

    @on(SegmentsChanged)
    def _segments_changed(self, message: SegmentsChanged) -> None:
        self._show(message.segments)

    def _show(self, rows: Sequence[SegmentRow]) -> None:
        self._rows = rows
        if self.is_loaded:
            self.set_items(_by_key(rows))

    # Drawing

    def columns(self, width: int) -> Content:
        return Content(
            _columns("segment", "builds on", "tokens", "where", "size", "age", "hits", width)
        )

    def search_text(self, segment: SegmentRow) -> str:
        return f"{segment.segment_id} {_where(segment)}"

    def draw(self, segment: SegmentRow, width: int) -> Content:
        return Content(
            _columns(
                segment.segment_id[: _ID_WIDTH - 2],
                (segment.parent_id or "–")[: _ID_WIDTH - 2],
                span(segment.start, segment.stop),
                _where(segment),
                size(segment.num_bytes),
                age(self._now - segment.last_used),
                f"{segment.hits:,}",
                width,
            )
        )

    def preview(self, segment: SegmentRow) -> Content:
        behind = f"behind {segment.parent_id[:12]}" if segment.parent_id else "at the beginning"
        facts = (
            f"{plural(segment.num_tokens, 'token')}, {behind}, namespace {segment.namespace[:12]}"
        )
        return Content.styled(facts, MUTED)

    # Acting

    def choose(self, segment: SegmentRow) -> None:
        self._act(self._inspect)

    def action_pin(self) -> None:
        self._act(self._pin)

    def action_verify(self) -> None:
        self._act(self._verify)

    def action_drop(self) -> None:
        self._act(self._drop)

    def action_spill(self) -> None:
        if (segment := self.highlighted) is not None:
            self.do(self._spill(segment))

    def action_verify_all(self) -> None:
        if self._desk is not None and not self._is_verifying:
            self.do(self._verify_all(self._desk))

    def action_leave(self) -> None:
        """Call the verification off, else close."""
        if self._is_verifying:
            self._is_verifying = False
        else:
            self.dismiss(None)

    def _act(self, act: Callable[[SegmentDesk, SegmentRow], Coroutine[Any, Any, None]]) -> None:
        segment = self.highlighted
        if segment is None:
            return
        if self._desk is None:
            self.say("The cache of this backend is not on this machine.")
        else:
            self.do(act(self._desk, segment))

    async def _inspect(self, desk: SegmentDesk, segment: SegmentRow) -> None:
        lines = await asyncio.to_thread(desk.inspect, segment)
        self.query_one(".preview", Static).update(Content("\n".join(lines)))

    async def _pin(self, desk: SegmentDesk, segment: SegmentRow) -> None:
        done = await asyncio.to_thread(desk.toggle_pin, segment)
        await self._look_again(desk)
        self.say(done)

    async def _verify(self, desk: SegmentDesk, segment: SegmentRow) -> None:
        self.say("reading the file …")
        self.say(await asyncio.to_thread(desk.verify, segment))

    async def _verify_all(self, desk: SegmentDesk) -> None:
        """Read every file, one after the other; Esc ends it after the one that is being read."""
        self._is_verifying = True
        try:
            steps, step = desk.verify_all(), None
            while self._is_verifying and (found := await asyncio.to_thread(next, steps, None)):
                step = found
                done = f"verified {step.done:,} of {plural(step.total, 'segment')}"
                self.say(
                    f"{done}, {size(step.num_bytes)} · {step.num_damaged:,} damaged · Esc stops"
                )
        finally:
            was_stopped, self._is_verifying = not self._is_verifying, False
        if step is None:
            self.say("Nothing is on disk yet.")
            return
        self.say(("Stopped. " if was_stopped else "") + step.words)

    async def _spill(self, segment: SegmentRow) -> None:
        done = await asyncio.to_thread(self._spill_one, segment)
        self.say(f"{done} The list shows when.")

    async def _drop(self, desk: SegmentDesk, segment: SegmentRow) -> None:
        question = f"Drop {size(segment.num_bytes)} of K and V, and what builds on them?"
        detail = "No word is lost; what is needed again is computed again."
        if await self.app.push_screen_wait(ConfirmScreen(question, detail, "Drop")):
            done = await asyncio.to_thread(desk.drop, segment)
            await self._look_again(desk)
            self.say(done)

    async def _look_again(self, desk: SegmentDesk) -> None:
        """Show what is on disk now; of what is in memory the engine tells by itself."""
        stored = _by_key(await asyncio.to_thread(desk.stored))
        now: list[SegmentRow] = []
        for key, row in self.items.items():
            on_disk = stored.get(key)
            if on_disk is not None:
                now.append(replace(row, on_disk=True, is_pinned=on_disk.is_pinned))
            elif row.in_ram or row.in_vram:
                now.append(replace(row, on_disk=False, is_pinned=False))
        self._show(now)


def _by_key(rows: Sequence[SegmentRow]) -> dict[str, SegmentRow]:
    return {f"{row.namespace}/{row.segment_id}": row for row in rows}


def _where(row: SegmentRow) -> str:
    return where_words(row) + (" pinned" if row.is_pinned else "")


def _columns(
    name: str, parent: str, tokens: str, where: str, size_: str, age_: str, hits: str, width: int
) -> str:
    """One row, from the left; on a narrow screen the ids go first."""
    figures = f"{tokens:>16}  {where:<12}{size_:>8}{age_:>6}"
    if width >= 56:
        figures += f"{hits:>6}"
    room = width - len(figures)
    if room >= 2 * _ID_WIDTH:
        return f"{name:<{_ID_WIDTH}}{parent:<{_ID_WIDTH}}{figures}"
    return (f"{name:<{_ID_WIDTH}}"[:room] if room > 4 else "") + figures
