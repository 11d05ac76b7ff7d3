"""An answer that is to go on: what of the new words belongs behind the old ones.

Owns the seam. A server may go on, may say the old words once more and then go on, or may begin
anew: the last is joined to the old words only where both agree. Pure.
"""

from __future__ import annotations

# So many characters must agree before they count as the old words; fewer where it is all of them.
MIN_REPEATED_CHARS = 16
MIN_WHOLE_CHARS = 6


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
        self._is_decided = not before.strip()

    def push(self, text: str) -> str:
        """What of `text` is new; "" while that is not certain. Raises BeganAnewError."""
        if self._is_decided or not text:
            return text
        self._held += text
        words = self._words
        may_be_old = words in self._before if self._is_long else self._before.startswith(words)
        if may_be_old or (len(words) < 2 and not self._is_told):
            return ""
        self._is_decided = True
        return self._joined(words)

    def rest(self) -> str:
        """What was held back in the end; a repetition that did not come to its end has nothing."""
        if self._is_decided or not self._held:
            return ""
        words, before = self._words, self._before
        is_whole = len(before) >= MIN_WHOLE_CHARS and words.rstrip() == before.rstrip()
        is_begun = len(words) >= MIN_REPEATED_CHARS and before.startswith(words)
        return "" if is_whole or is_begun else self._held

    @property
    def _words(self) -> str:
        """What is held, without the space that may stand before an answer."""
        return self._held if self._before[0].isspace() else self._held.lstrip()

    def _joined(self, words: str) -> str:
        before, held = self._before, self._held
        said = before.rstrip()
        if len(said) >= MIN_WHOLE_CHARS and words.startswith(said):
            new, space = words[len(said) :], before[len(said) :]
            return new.removeprefix(space) if new.startswith(space) else new.lstrip()
        if self._is_long and _common_length(words, before) >= MIN_REPEATED_CHARS:
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
