"""Two texts that share most of their words but differ early: what another order would save. Pure.

A prefix is shared up to the first difference. Put what both have in front, paragraph by paragraph,
and what differs behind it, and all that both have is read once.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass

from chatcache.frontend.lint.finding import TokenScale

MIN_TOKENS = 16  # less than what the lookup of a prefix is worth
_PARAGRAPHS = re.compile(r"\n[ \t]*\n+")
_SENTENCES = re.compile(r"(?<=[.!?])\s+")


@dataclass(frozen=True, slots=True)
class EarlyDifference:
    """The texts differ from character `at` on; in another order they would share `shared`
    characters. `rest`: how many of the second one come behind `at`."""

    at: int
    shared: int
    rest: int

    @property
    def gain(self) -> int:
        """Characters that another order would let be shared besides."""
        return self.shared - self.at


def worthwhile_difference(first: str, second: str, scale: TokenScale) -> EarlyDifference | None:
    """The difference of two variants of one text, where another order would save something."""
    found = early_difference(first, second)
    if found is None or 2 * found.shared < min(len(first), len(second)):
        return None
    return found if found.gain >= round(MIN_TOKENS * scale.chars_per_token) else None


def early_difference(first: str, second: str) -> EarlyDifference | None:
    """None: one is the beginning of the other, or they are the same."""
    at = common_length(first, second)
    if at == min(len(first), len(second)):
        return None
    end = common_length(first[at:][::-1], second[at:][::-1])
    shared = max(at + end, _shared_pieces(first, second))
    return EarlyDifference(at, shared, len(second) - at)


def common_length(first: str, second: str) -> int:
    """How many leading characters two texts share; by halving, for texts may be long."""
    low, high = 0, min(len(first), len(second))
    while low < high:
        middle = (low + high + 1) // 2
        if first[low:middle] == second[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low


def _shared_pieces(first: str, second: str) -> int:
    """Characters of the paragraphs that both have; of texts of one paragraph, of the lines, and of
    texts of one line, of the sentences."""
    for cut in (_PARAGRAPHS, re.compile(r"\n+"), _SENTENCES):
        pieces, others = ([p.strip() for p in cut.split(text)] for text in (first, second))
        if len(pieces) > 1 and len(others) > 1:
            shared = Counter(pieces) & Counter(others)
            return sum(number * (len(piece) + 1) for piece, number in shared.items() if piece)
    return 0
