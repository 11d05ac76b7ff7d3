"""/lens: what the model has read, turn by turn, with the tokens of each and where its K and V is.

Owns drawing. Choosing a turn shows the figures of its answer in the panel.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from textual.content import Content
from textual.widgets import Static

from chatcache.chat.views import ForkPoint
from chatcache.frontend.lens.turns import LensRow, heading, lens
from chatcache.tui.look.formatting import MUTED, bar, gist, shorten
from chatcache.tui.screens.filter_list import FilterListScreen

_TURN, _TOKENS, _RANGE, _WHERE = 5, 8, 17, 10


class LensScreen(FilterListScreen[LensRow, int]):
    """Returns the turn whose figures are wanted."""

    title_text = "Lens: what the model has read"
    placeholder = "type to filter by what was said"
    keys_text = "Enter figures of this turn · Esc close"
    empty_text = "Nothing has been read yet."

    def __init__(
        self, points: Callable[[], Sequence[ForkPoint]], max_tokens: int | None, cut_at: int | None
    ) -> None:
        super().__init__()
        self._points, self._max_tokens, self._cut_at = points, max_tokens, cut_at
        self._longest = 1

    async def fill(self) -> None:
        rows = lens(await asyncio.to_thread(self._points))
        self._longest = max((row.num_tokens for row in rows), default=1) or 1
        title = Content.assemble("Lens  ", (heading(rows, self._max_tokens), MUTED))
        self.query_one(".dialog-title", Static).update(title)
        last = str(rows[-1].turn) if rows else None
        self.set_items({str(row.turn): row for row in rows}, highlight=last)

    def search_text(self, turn: LensRow) -> str:
        return f"{turn.user_text} {turn.answer_text}"

    # Drawing

    def columns(self, width: int) -> Content:
        return _line("turn", "tokens", "from–to", "where", "", "", width)

    def draw(self, turn: LensRow, width: int) -> Content:
        filled, _ = bar(turn.num_tokens / self._longest, _bar_width(width))
        return _line(
            f"{turn.turn}",
            f"{turn.num_tokens:,}",
            f"{turn.start:,}–{turn.stop:,}",
            turn.where,
            filled,
            turn.user_text,
            width,
        )

    def preview(self, turn: LensRow) -> Content:
        facts = turn.detail
        if self._cut_at is not None and turn.start <= self._cut_at < turn.stop:
            facts += f" · the last prompt left what was kept at token {self._cut_at:,}"
        return Content.assemble(
            (facts, MUTED), "\n", self.fit(turn.user_text), "\n", self.fit(turn.answer_text)
        )

    def choose(self, turn: LensRow) -> None:
        self.dismiss(turn.turn)


def _bar_width(width: int) -> int:
    return 16 if width >= 90 else 10 if width >= 70 else 0


def _line(
    turn: str, tokens: str, span: str, where: str, filled: str, text: str, width: int
) -> Content:
    """One row; on a narrow screen the bar and the range go first."""
    head = f"{turn:>{_TURN - 1}} {tokens:>{_TOKENS}}"
    if width >= 60:
        head += f"{span:>{_RANGE}}"
    head += f"  {where:<{_WHERE}}"
    bar_width = _bar_width(width)
    drawn = f"{filled:<{bar_width}}  " if bar_width else ""
    rest = max(0, width - len(head) - len(drawn))
    return Content.assemble(head, (drawn, "$primary"), shorten(gist(text), rest))
