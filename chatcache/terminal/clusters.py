"""Where one character ends for a person: flags, joined emojis, letters with marks are one each."""

from __future__ import annotations

from collections.abc import Callable
from itertools import accumulate


def boundaries(text: str) -> list[int]:
    """Every place between two characters, with both ends. `text` is best one line."""
    if text.isascii():
        return list(range(len(text) + 1))
    import regex  # only for text that needs it: it takes as long as a short message to import

    find_all: Callable[[str, str], list[str]] = regex.findall
    return [0, *accumulate(map(len, find_all(r"\X", text)))]


def before(text: str, at: int) -> int:
    """The place before the character that ends at `at`, or that `at` is within."""
    return max((place for place in boundaries(text) if place < at), default=0)


def after(text: str, at: int) -> int:
    """The place behind the character that begins at `at`, or that `at` is within."""
    return min((place for place in boundaries(text) if place > at), default=len(text))


def whole(text: str, at: int) -> int:
    """`at`, or the end of the character that it is within."""
    return min((place for place in boundaries(text) if place >= at), default=len(text))
