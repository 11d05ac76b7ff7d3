"""An answer that is to go on: what of the new words belongs behind the old ones.

Owns the seam. A server may go on, may say the old words once more and then go on, or may begin
anew: the last is joined to the old words only where both agree. Pure.
"""

from __future__ import annotations

# So many characters must come again before they count as the old words.
MIN_REPEATED_CHARS = 16


class BeganAnewError(Exception):
    """The server wrote another answer instead of going on; never leaves the backend."""


class Continuation:
    """Push what comes, get what is new of it. `before`: the words so far, "" for a new answer.

    `is_told`: the server was told to go on, and has not refused that.
    """

    def __init__(self, before: str, *, is_told: bool = True) -> None:
        self._before = before
        self._is_told = is_told
        self._is_long = len(before) >= MIN_REPEATED_CHARS
        self._held = ""
        self._is_decided = not before

    def push(self, text: str) -> str:
        """What of `text` is new; "" while that is not certain. Raises BeganAnewError."""
        if self._is_decided or not text:
            return text
        self._held += text
        if self._is_long and self._may_repeat(self._held):
            return ""
        return self._decide()

    def rest(self) -> str:
        """What was held back in the end; a repetition that did not come to its end has nothing."""
        held = self._held
        if self._is_decided or not held or held == self._before:
            return ""
        is_repeated = len(held) >= MIN_REPEATED_CHARS and self._before.startswith(held)
        return "" if is_repeated else held

    def _may_repeat(self, held: str) -> bool:
        """Could all of it still be old words, from some place on?"""
        return held in self._before

    def _decide(self) -> str:
        self._is_decided = True
        held, before = self._held, self._before
        if not self._is_long:
            return held
        if held.startswith(before):
            return held[len(before) :]
        agreed = _common_length(held, before)
        if agreed >= MIN_REPEATED_CHARS:
            raise BeganAnewError
        overlap = _overlap(before, held)
        if overlap >= MIN_REPEATED_CHARS:
            return held[overlap:]
        if not self._is_told and _is_new_sentence(before, held):
            raise BeganAnewError
        return held


def _common_length(left: str, right: str) -> int:
    pairs = enumerate(zip(left, right, strict=False))
    return next((at for at, (a, b) in pairs if a != b), min(len(left), len(right)))


def _overlap(before: str, after: str) -> int:
    """How long the longest end of `before` is with which `after` begins."""
    lengths = range(min(len(before), len(after)), 0, -1)
    return next((length for length in lengths if before.endswith(after[:length])), 0)


def _is_new_sentence(before: str, after: str) -> bool:
    """Does a word that was cut off go on with a capital letter? No text does, but code."""
    is_code = before.count("```") % 2 == 1 or before.count("`") % 2 == 1
    return before[-1].islower() and after[0].isupper() and after[1:2].islower() and not is_code
