"""Where to go on from: every turn of the chat, newest first, with what going on there costs."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from textual.content import Content

from chatcache.chat.views import ForkPoint
from chatcache.formatting import plural
from chatcache.frontend import figures
from chatcache.tui.look.formatting import MUTED, gist, padded, shorten
from chatcache.tui.screens.filter_list import FilterListScreen

_TURN_WIDTH, _WHO_WIDTH, _TOKENS_WIDTH = 5, 8, 8


@dataclass(frozen=True, slots=True)
class ForkChoice:
    """Keep turns 1 to `at_turn` (None: all). `text` goes into the composer."""

    at_turn: int | None
    text: str | None


@dataclass(frozen=True, slots=True)
class ForkRow:
    """One place to fork at. `point` tells what is kept and what it costs."""

    turn: str
    who: str
    text: str
    point: ForkPoint
    choice: ForkChoice


def fork_rows(points: Sequence[ForkPoint]) -> list[ForkRow]:
    """Newest first. An answer keeps its turn; a message of the user is cut off and edited."""
    if not points:
        return []
    rows = [ForkRow("", "all", "the whole conversation", points[0], ForkChoice(None, None))]
    for point, before in zip(points, [*points[1:], None], strict=True):
        turn = f"{point.turn}"
        if point.turn == 0:
            text = "the beginning, system prompt alone"
            rows.append(ForkRow("0", "system", text, point, ForkChoice(0, None)))
            continue
        if point.answer_text:
            keep = ForkChoice(point.turn, None)
            rows.append(ForkRow(turn, "answer", point.answer_text, point, keep))
        if before is not None:
            cut = ForkChoice(before.turn, point.user_text)
            rows.append(ForkRow(turn, "you", point.user_text, before, cut))
    return rows


class ForkScreen(FilterListScreen[ForkRow, ForkChoice]):
    """Returns a choice; the forking is done by whoever asked."""

    placeholder = "type to filter the turns"
    keys_text = "Enter fork here · on “you”: edit that message · Esc close"
    empty_text = "Nothing has been said yet."

    def __init__(self, name: str, points: Callable[[], list[ForkPoint]]) -> None:
        super().__init__()
        self.title_text = f"Fork {shorten(name, 50)}"
        self._points = points

    async def fill(self) -> None:
        rows = fork_rows(await asyncio.to_thread(self._points))
        self.set_items({str(index): row for index, row in enumerate(rows)})

    def search_text(self, fork: ForkRow) -> str:
        return f"{fork.turn} {fork.who} {fork.text}"

    def columns(self, width: int) -> Content:
        return _line("turn", "", "", "tokens", "cost", width)

    def draw(self, fork: ForkRow, width: int) -> Content:
        cost = figures.cost(fork.point.cost)
        return _line(fork.turn, fork.who, fork.text, f"{fork.point.num_tokens:,}", cost, width)

    def preview(self, fork: ForkRow) -> Content:
        cost = figures.cost(fork.point.cost)
        if fork.who == "you":
            kept = plural(fork.point.turn, "turn")
            lines = f"Keeps {kept}; your message goes into the composer to be edited. {cost}."
        elif fork.who == "all":
            lines = f"Keeps everything in a new chat, this one stays as it is. {cost}."
        else:
            lines = f"Keeps {plural(fork.point.turn, 'turn')}, this one included. {cost}."
        return Content.assemble((lines, MUTED), "\n", self.fit(fork.text))

    def choose(self, fork: ForkRow) -> None:
        self.dismiss(fork.choice)


def _line(turn: str, who: str, text: str, tokens: str, cost: str, width: int) -> Content:
    who_width = _WHO_WIDTH
    cost_width = 32 if width >= 90 else 26 if width >= 66 else 18 if width >= 52 else 13
    if width < 52:
        who, who_width = who[:3], 4
    tokens = f"{tokens:>{_TOKENS_WIDTH}}" if width >= 66 else ""
    rest = width - _TURN_WIDTH - who_width - len(tokens) - cost_width - 2
    return Content.assemble(
        f"{turn:>{_TURN_WIDTH - 1}} ",
        (f"{who:<{who_width}}", MUTED),
        padded(shorten(gist(text), rest), rest),
        f"{tokens}  ",
        Content(shorten(cost, cost_width)),
    )
