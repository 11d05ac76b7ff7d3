"""What the model has read of a chat, turn by turn, and where the K and V of each turn is. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from chatcache import formatting as fmt
from chatcache.backends.base import CostEstimate
from chatcache.chat.views import ForkPoint


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
    answer_text: str
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
        answer_text=point.answer_text,
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
