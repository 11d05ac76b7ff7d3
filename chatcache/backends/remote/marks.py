"""The marks around reasoning in the text of one answer, whatever model wrote it.

Owns which of the known marks are looked for, and when: at the beginning, behind thoughts that
nothing opened, or not at all. Pure.
"""

from __future__ import annotations

from chatcache.backends.base import TurnRequest
from chatcache.backends.local.prompt.harmony import TextPiece
from chatcache.backends.local.prompt.reasoning import (
    HARMONY,
    KNOWN,
    LoneClosing,
    ReasoningFormat,
    ReasoningSplitter,
)

_HARMONY_BEGINNINGS = ("<|channel|>", "<|start|>")
# What is left of harmony where a server's decoder hides its marks: `analysisHm.assistantfinalYes.`
BARE = ReasoningFormat("analysis", "assistantfinal")


class AnswerMarks:
    """Push the text of an answer, get pieces. `is_middle`: it goes on in the middle of one;
    `is_assumed`: answers of this server begin with thoughts that no mark opens."""

    def __init__(self, request: TurnRequest, *, is_middle: bool, is_assumed: bool) -> None:
        asked = (message.text for message in request.messages if message.role == "user")
        said = "".join(asked).lower()
        self._is_assumed = is_assumed
        self._lone = LoneClosing(*KNOWN, is_strict="think>" in said or "think]" in said)
        self._is_watching = not (is_middle or is_assumed)
        self._first = ""
        self._splitter: ReasoningSplitter | None = None
        if is_middle:
            self._splitter = ReasoningSplitter(*KNOWN, is_continued=True)

    @property
    def reasoning(self) -> str | None:
        """What stood before a mark that closed what none had opened; None: there was none."""
        return self._lone.reasoning

    @property
    def was_assumed_wrongly(self) -> bool:
        """Was there no mark at all where thoughts were expected?"""
        return self._splitter is not None and self._splitter.took_back

    def has_thought(self) -> None:
        """Reasoning came in a field of its own: in the text nothing but its end is expected."""
        if self._splitter is None:
            self._is_assumed, self._is_watching = False, True
            self._lone = LoneClosing(*KNOWN, is_only_first=True)

    def push(self, text: str) -> list[TextPiece]:
        """The pieces that are certain now."""
        if self._splitter is None:
            self._first += text
            begin = self._first.lstrip()
            if any(mark.startswith(begin) for mark in (*_HARMONY_BEGINNINGS, BARE.open)):
                return []
            styles = (HARMONY,) if begin.startswith(_HARMONY_BEGINNINGS) else KNOWN
            if begin.startswith(BARE.open) and begin[len(BARE.open)].isupper():
                styles = (BARE,)
            self._splitter = ReasoningSplitter(*styles, is_assumed=self._is_assumed)
            text = self._first
        return self._watched(self._splitter.push(text))

    def finish(self, *, is_whole: bool) -> list[TextPiece]:
        """What was held back. `is_whole`: the answer was not cut off."""
        if self._splitter is None:
            return [TextPiece(self._first, False)] if self._first else []
        pieces = self._watched(self._splitter.finish(is_whole=is_whole))
        return [*pieces, *self._lone.finish()]

    def _watched(self, pieces: list[TextPiece]) -> list[TextPiece]:
        if any(piece.is_reasoning for piece in pieces):
            self._is_watching = False
        if not self._is_watching:
            return pieces
        return [found for piece in pieces for found in self._lone.push(piece.text)]
