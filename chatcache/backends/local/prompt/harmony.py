"""The harmony format: an answer in several messages, each in a channel, told apart as it streams.

Owns its marks and which channels are thoughts: `analysis` and `commentary` are, `final` is the
answer. Text in a channel that nobody knows is held until it shows which: with an answer behind it,
it was a thought. Knows nothing of tokens or templates.
"""

from __future__ import annotations

import re
from typing import NamedTuple

HARMONY_TOKENS = ("<|channel|>", "<|message|>", "<|start|>", "<|end|>", "<|return|>", "<|call|>")
_MARK = re.compile("|".join(re.escape(token) for token in HARMONY_TOKENS))
_THOUGHTS = ("analysis", "commentary", "thought", "thinking", "reasoning")
_LONGEST = max(map(len, HARMONY_TOKENS))


class TextPiece(NamedTuple):
    text: str
    is_reasoning: bool


class HarmonySplitter:
    """Takes text as it comes, gives pieces that are reasoning or answer; marks are swallowed.

    `is_open`: the stream begins inside reasoning; `is_continued`: in the middle of it, or of the
    answer. Text that begins without a mark is an answer.
    """

    def __init__(self, *, is_open: bool = False, is_continued: bool = False) -> None:
        self._text = ""
        self._header = ""  # between the mark that begins a message and the one that begins its text
        self._is_header = not (is_open or is_continued)
        self._is_marked = is_open or is_continued
        self._channel = "analysis" if is_open else "final"
        self._unknown = ""
        self._is_at_start = not is_continued
        self._has_said: set[bool] = set()

    @property
    def is_reasoning(self) -> bool:
        return not self._is_header and self._channel in _THOUGHTS

    def push(self, text: str) -> list[TextPiece]:
        """The pieces that are certain after `text`."""
        self._text += text
        pieces: list[TextPiece] = []
        while (mark := _MARK.search(self._text)) is not None:
            before, self._text = self._text[: mark.start()], self._text[mark.end() :]
            self._take(before, pieces)
            self._pass(mark[0], pieces)
        certain = len(self._text) - _unfinished(self._text)
        certain_text, self._text = self._text[:certain], self._text[certain:]
        if certain_text:
            self._take(certain_text, pieces)
        return pieces

    def finish(self) -> list[TextPiece]:
        """What was held back, now that nothing follows."""
        pieces: list[TextPiece] = []
        rest, self._text = self._text, ""
        if self._is_header and not self._is_marked:
            rest, self._header, self._is_header = self._header + rest, "", False
        self._take(rest, pieces)
        self._say(self._unknown, pieces, is_reasoning=False)
        return pieces

    def _pass(self, mark: str, pieces: list[TextPiece]) -> None:
        """Go over a mark: a message begins, its text begins, or it ends."""
        self._is_marked = True
        if mark == "<|message|>" and self._is_header:
            name = (self._header.split() or ["final"])[0].lower()
            self._channel = name
            if name == "final":
                self._say(self._unknown, pieces, is_reasoning=True)
                self._unknown = ""
            self._header, self._is_header, self._is_at_start = "", False, True
        elif mark == "<|channel|>" or mark != "<|message|>":
            self._header, self._is_header = "", True

    def _take(self, text: str, pieces: list[TextPiece]) -> None:
        if self._is_header:
            self._header += text
            if not self._is_marked and self._header.strip():
                text, self._header, self._is_header = self._header, "", False
                self._channel = "final"
            else:
                return
        if self._channel in _THOUGHTS or self._channel == "final":
            self._say(text, pieces, is_reasoning=self._channel in _THOUGHTS)
        else:
            self._unknown += text

    def _say(self, text: str, pieces: list[TextPiece], *, is_reasoning: bool) -> None:
        if self._is_at_start:
            text = text.lstrip("\n")
        if not text:
            return
        if self._is_at_start and self._is_marked and is_reasoning in self._has_said:
            text = f"\n\n{text}"  # another message of the same kind
        self._is_at_start = False
        self._has_said.add(is_reasoning)
        pieces.append(TextPiece(text, is_reasoning))


def _unfinished(text: str) -> int:
    """The length of the longest end of `text` that may become a mark."""
    at = text.rfind("<", -_LONGEST)
    end = text[at:] if at >= 0 else ""
    return len(end) if end and any(token.startswith(end) for token in HARMONY_TOKENS) else 0
