"""/lens: what the model has read, turn by turn, with the tokens of each and where its K and V is.

Owns drawing. Choosing a turn shows the figures of its answer in the panel.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from textual.content import Content
from textual.widgets import Static

from chatcache.chat.views import ForkPoint
from chatcache.frontend.lens import LensRow, heading, lens
from chatcache.tui.formatting import bar, gist, shorten
from chatcache.tui.screens.filter_list import FilterListScreen, Row
from chatcache.tui.styles import MUTED

_TURN, _TOKENS, _RANGE, _WHERE = 5, 8, 17, 10


class LensScreen(FilterListScreen[int]):
    """Returns the turn whose figures are wanted."""

    title_text = "Lens: what the model has read"
    placeholder = "type to filter by what was said"
    keys_text = "Enter figures of this turn · Esc close"
    empty_text = "Nothing has been read yet."

    def __init__(
        self, load: Callable[[], Sequence[ForkPoint]], max_tokens: int | None, cut_at: int | None
    ) -> None:
        super().__init__()
        self._load, self._max_tokens, self._cut_at = load, max_tokens, cut_at
        self._turns: dict[str, LensRow] = {}
        self._longest = 1

    def on_mount(self) -> None:
        super().on_mount()
        self.run_worker(self._fill(), exit_on_error=False)

    async def _fill(self) -> None:
        points = await self.loaded(self._load)
        if points is None:
            return
        rows = lens(points)
        self._turns = {str(row.turn): row for row in rows}
        self._longest = max((row.num_tokens for row in rows), default=1) or 1
        title = Content.assemble("Lens  ", (heading(rows, self._max_tokens), MUTED))
        self.query_one(".dialog-title", Static).update(title)
        self.set_rows(
            [
                Row(str(row.turn), f"{row.user_text} {row.answer_text}", self._drawer(row))
                for row in rows
            ]
        )
        self._filter(str(rows[-1].turn) if rows else None)

    # Drawing

    def columns(self, width: int) -> Content:
        return _line("turn", "tokens", "from–to", "where", "", "", width).stylize(MUTED)

    def _drawer(self, row: LensRow) -> Callable[[int], Content]:
        def draw(width: int) -> Content:
            filled, _ = bar(row.num_tokens / self._longest, _bar_width(width))
            return _line(
                f"{row.turn}",
                f"{row.num_tokens:,}",
                f"{row.start:,}–{row.stop:,}",
                row.where,
                filled,
                row.user_text,
                width,
            )

        return draw

    def preview(self, row: Row) -> Content:
        turn = self._turns[row.row_id]
        facts = turn.detail
        if self._cut_at is not None and turn.start <= self._cut_at < turn.stop:
            facts += f" · the last prompt left what was kept at token {self._cut_at:,}"
        return Content.assemble(
            (facts, MUTED), "\n", self.fit(turn.user_text), "\n", self.fit(turn.answer_text)
        )

    def choose(self, row: Row) -> None:
        self.dismiss(int(row.row_id))


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
