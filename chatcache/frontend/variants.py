"""Which of several answers to one message is meant. Pure."""

from __future__ import annotations

from chatcache.errors import UsageError


def which_variant(word: str, here: int, number: int) -> int:
    """The index of the answer that a person asked for: the next one, or that of a number from 1.

    Raises UsageError when there is no such answer, or no other one.
    """
    if number < 2:
        raise UsageError("There is only one answer.", "/regen gives another one.")
    if not word:
        return (here + 1) % number
    if not word.isdecimal() or not 1 <= int(word) <= number:
        raise UsageError(f"There is no answer {word!r}.", f"Say a number from 1 to {number}.")
    return int(word) - 1
