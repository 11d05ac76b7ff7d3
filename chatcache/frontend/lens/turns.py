"""What the model has read of a chat, turn by turn, and where the K and V of each turn is. Pure.

The first view of the lens, so it begins with what somebody asks who opens it: why was this turn
quick, what was computed, what would make it slow.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from chatcache import formatting as fmt
from chatcache.backends.base import CostEstimate
from chatcache.backends.usage import Figures
from chatcache.chat.views import ForkPoint
from chatcache.frontend.lens.answers import Explained, asked
from chatcache.frontend.lens.page import Line, Mark, Marked, Page, flow, line

_TURN, _COUNT, _RANGE, _WHERE = 6, 8, 17, 12


@dataclass(frozen=True, slots=True)
class LensRow:
    """One turn: tokens `start` to `stop` of the prompt, by where their K and V is.

    The first turn has the system prompt in it. `is_known` is False where no model was asked.
    """

    turn: int
    start: int
    stop: int
    ram_tokens: int
    disk_tokens: int
    missing_tokens: int
    user_text: str
    is_known: bool

    @property
    def num_tokens(self) -> int:
        return self.stop - self.start

    @property
    def where(self) -> str:
        """Where it is kept: `RAM`, `disk`, `RAM+disk`, with `part` when something is missing."""
        if not self.num_tokens:
            return "not read"
        if not self.is_known:
            return "unknown"
        return where_words(self.ram_tokens, self.disk_tokens, self.missing_tokens)

    @property
    def detail(self) -> str:
        """Its share in words: `1,204 tokens: 1,000 in RAM, 204 on disk`."""
        if not self.num_tokens:
            return "No model has read this yet"
        parts = [
            f"{number:,} {place}"
            for number, place in (
                (self.ram_tokens, "in RAM"),
                (self.disk_tokens, "on disk"),
                (self.missing_tokens, "to compute"),
            )
            if number > 0 and self.is_known
        ]
        return (
            f"{fmt.plural(self.num_tokens, 'token')}" + (": " if parts else "") + ", ".join(parts)
        )


def lens(points: Sequence[ForkPoint]) -> list[LensRow]:
    """The turns of a chat, oldest first. `points` as the service gives them, newest first."""
    turns = [point for point in reversed(points) if point.turn > 0]
    return [_row(point, before) for point, before in zip(turns, [None, *turns], strict=False)]


def _row(point: ForkPoint, before: ForkPoint | None) -> LensRow:
    start = before.num_tokens if before else 0
    stop = max(start, point.num_tokens)
    cost, known = point.cost, before.cost if before else None
    is_known = cost is not None and (before is None or known is not None)
    ram, disk, missing = (0, 0, 0) if cost is None else added_tokens(cost, known)
    return LensRow(
        turn=point.turn,
        start=start,
        stop=stop,
        ram_tokens=ram,
        disk_tokens=disk,
        missing_tokens=missing,
        user_text=point.user_text,
        is_known=is_known and stop > start,
    )


def added_tokens(cost: CostEstimate, above: CostEstimate | None) -> tuple[int, int, int]:
    """What a part of a path adds to the path above it: tokens in RAM, on disk, to compute."""
    return (
        max(0, cost.ram_tokens - (above.ram_tokens if above else 0)),
        max(0, cost.disk_tokens - (above.disk_tokens if above else 0)),
        max(0, cost.recompute_tokens - (above.recompute_tokens if above else 0)),
    )


def where_words(ram_tokens: int, disk_tokens: int, missing_tokens: int) -> str:
    """`RAM`, `disk`, `RAM+disk`, with `part` when something is missing; `none`."""
    tiers = [name for name, tokens in (("RAM", ram_tokens), ("disk", disk_tokens)) if tokens]
    if not tiers:
        return "none"
    return "+".join(tiers) + (" part" if missing_tokens and len(tiers) == 1 else "")


def heading(rows: Sequence[LensRow], max_tokens: int | None) -> str:
    """How much of the context is in use: `4,812 of 32,768 tokens of context, 14.7 %`."""
    read = rows[-1].stop if rows else 0
    if not max_tokens:
        return f"{read:,} tokens read"
    return f"{read:,} of {max_tokens:,} tokens of context, {fmt.percent(read, max_tokens)}"


@dataclass(frozen=True, slots=True)
class TurnsFacts:
    """The turns of a chat, with the figures of those that were answered. `max_tokens` is the
    context of the model, None where no model is loaded."""

    rows: tuple[LensRow, ...]
    figures: Mapping[int, Figures] = field(default_factory=dict)
    max_tokens: int | None = None

    def chosen(self, turn: int | None) -> LensRow | None:
        """The row of a turn; without one, of the last that was answered."""
        wanted = turn if turn is not None else max(self.figures, default=None)
        found = [row for row in self.rows if row.turn == wanted]
        return found[0] if found else self.rows[-1] if self.rows else None


def page(facts: TurnsFacts, width: int, turn: int | None = None) -> Page:
    """The three answers for a turn, and below them all turns."""
    chosen = facts.chosen(turn)
    if chosen is None:
        words = "Nothing has been read yet. Say something first."
        return Page("Turns", (line(Marked(words, "muted")),), (words,), {"turns": []})
    answers = asked(chosen.turn, facts.figures.get(chosen.turn), facts.rows[-1].stop)
    head = heading(facts.rows, facts.max_tokens)
    lines = [*_answer_lines(answers, width), line(Marked(head, "muted")), _columns(width)]
    longest = max(row.num_tokens for row in facts.rows) or 1
    for row in facts.rows:
        lines.append(_row_line(row, facts, row is chosen, longest, width))
    sentences = [f"{part.question} {part.answer}" for part in answers]
    sentences.append(f"{head}.")
    for row in facts.rows:
        sentences.append(f"Turn {row.turn}, “{fmt.shorten(row.user_text, 60)}”: {row.detail}.")
    keys = "↑↓ turn · Enter figures"
    return Page("Turns", tuple(lines), tuple(sentences), _data(facts, chosen, answers), keys)


def _answer_lines(answers: Sequence[Explained], width: int) -> Iterator[Line]:
    """The question on the left where there is room, else above."""
    for part in answers:
        if width < 72:
            yield line(Marked(part.question, "title"))
            yield from (line(text) for text in flow(f"  {part.answer}", width - 2, ""))
            continue
        label = fmt.width(max((each.question for each in answers), key=fmt.width)) + 2
        for index, text in enumerate(flow(part.answer, width - label)):
            left = part.question if index == 0 else ""
            yield line(Marked(left + " " * (label - fmt.width(left)), "title"), text)
    yield ()


def _columns(width: int) -> Line:
    head = f"{'turn':>{_TURN}}{'tokens':>{_COUNT}}"
    head += f"{'from–to':>{_RANGE}}" if width >= 72 else ""
    head += f"{'reused':>{_COUNT}}{'computed':>{_COUNT + 2}}"
    head += f"  {'now in':<{_WHERE}}" if width >= 60 else ""
    return line(Marked(head + ("  said" if width >= 100 else ""), "muted"))


def _row_line(row: LensRow, facts: TurnsFacts, is_chosen: bool, longest: int, width: int) -> Line:
    figures = facts.figures.get(row.turn)
    head = f"{'>' if is_chosen else ' '}{row.turn:>{_TURN - 1}}{row.num_tokens:>{_COUNT},}"
    head += f"{fmt.span(row.start, row.stop):>{_RANGE}}" if width >= 72 else ""
    pieces = [Marked(head, "chosen" if is_chosen else "")]
    pieces += _reuse(figures)
    if width >= 60:
        pieces.append(Marked(f"  {row.where:<{_WHERE}}", "muted" if row.where == "unknown" else ""))
    used = sum(fmt.width(piece.text) for piece in pieces)
    bar_cells = min(20, (width - used - 2) // 3) if width >= 100 else 0
    if bar_cells:
        filled = "━" * max(1, round(bar_cells * row.num_tokens / longest)) if row.num_tokens else ""
        pieces.append(Marked(f"  {filled:<{bar_cells}}", "muted"))
        used += bar_cells + 2
    if (rest := width - used - 2) >= 6:
        pieces.append(Marked(f"  {fmt.shorten(row.user_text, rest)}", "muted"))
    return tuple(pieces)


def _reuse(figures: Figures | None) -> list[Marked]:
    """Of the prompt of a turn: reused and computed, as `usage` has them."""
    if figures is None or figures.usage.cached_tokens is None:
        return [Marked(f"{'–':>{_COUNT}}{'–':>{_COUNT + 2}}", "muted")]
    mark: Mark = "disk" if figures.cached_disk_tokens > figures.cached_ram_tokens else "ram"
    return [
        Marked(f"{figures.usage.cached_tokens:>{_COUNT},}", mark),
        Marked(f"{figures.usage.computed_tokens or 0:>{_COUNT + 2},}", "computed"),
    ]


def _data(facts: TurnsFacts, chosen: LensRow, answers: Sequence[Explained]) -> dict[str, Any]:
    return {
        "turn": chosen.turn,
        "answers": {part.name: part.answer for part in answers},
        "max_context_tokens": facts.max_tokens,
        "turns": [_row_data(row, facts.figures.get(row.turn)) for row in facts.rows],
    }


def _row_data(row: LensRow, figures: Figures | None) -> dict[str, Any]:
    usage = figures.usage if figures else None
    return {
        "turn": row.turn,
        "start": row.start,
        "stop": row.stop,
        "prompt_tokens": usage.prompt_tokens if usage else None,
        "cached_tokens": usage.cached_tokens if usage else None,
        "cached_ram_tokens": usage.cached_ram_tokens if usage else None,
        "cached_disk_tokens": usage.cached_disk_tokens if usage else None,
        "computed_tokens": usage.computed_tokens if usage else None,
        "completion_tokens": usage.completion_tokens if usage else None,
        "kept": {
            "ram_tokens": row.ram_tokens,
            "disk_tokens": row.disk_tokens,
            "missing_tokens": row.missing_tokens,
        }
        if row.is_known
        else None,
    }
