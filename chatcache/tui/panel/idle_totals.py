"""What idle work came to since the program was started, for the cache panel.

Owns the sums and their lines. Work that had nothing to do is not counted.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from chatcache.formatting import duration

if TYPE_CHECKING:
    from chatcache.backends.base import IdleKind, Prepared

_NAMES: dict[IdleKind, str] = {
    "next_turn": "next turn",
    "draft": "draft",
    "restore": "restored",
}


@dataclass
class _Total:
    num_tokens: int = 0
    seconds: float = 0.0


@dataclass
class IdleTotals:
    """Tokens and time by kind of work; `num_used` of the computed tokens were used by a turn."""

    num_used: int = 0
    _totals: dict[IdleKind, _Total] = field(default_factory=dict)

    def note(self, prepared: Prepared) -> None:
        """Take in finished (or cancelled) idle work. What a draft or a next turn had restored in
        order to begin counts as restored."""
        if prepared.tokens_prefilled:
            self._add(prepared.kind, prepared.tokens_prefilled, prepared.seconds)
        if prepared.tokens_restored:
            is_all = not prepared.tokens_prefilled
            self._add("restore", prepared.tokens_restored, prepared.seconds if is_all else 0.0)

    def _add(self, kind: IdleKind, num_tokens: int, seconds: float) -> None:
        total = self._totals.setdefault(kind, _Total())
        total.num_tokens += num_tokens
        total.seconds += seconds

    @property
    def num_prefilled(self) -> int:
        return sum(total.num_tokens for kind, total in self._totals.items() if kind != "restore")

    @property
    def heading(self) -> str:
        """How much of what was computed ahead was of use."""
        if not self.num_prefilled:
            return ""
        return f"used {self.num_used:,} of {self.num_prefilled:,}"

    def rows(self) -> Iterator[str]:
        """One line per kind of work that was done."""
        for kind, name in _NAMES.items():
            if total := self._totals.get(kind):
                time = f"  {duration(1000 * total.seconds)}" if total.seconds else ""
                yield f"{name:<10}{total.num_tokens:>9,} tok{time}"

    def __bool__(self) -> bool:
        return bool(self._totals)
