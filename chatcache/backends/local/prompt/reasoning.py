"""Splits a stream of answer text into reasoning and answer.

Owns: the tags with which models mark their reasoning, and where a stream stands between them.
Knows nothing of tokens or templates: whether the prompt opened the reasoning, the caller tells.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple


@dataclass(frozen=True, slots=True)
class ReasoningFormat:
    """The tags around reasoning. `answer_open` may stand before an answer without reasoning."""

    open: str
    close: str
    answer_open: str = ""

    @property
    def tags(self) -> tuple[str, ...]:
        return tuple(tag for tag in (self.open, self.close, self.answer_open) if tag)


THINK = ReasoningFormat("<think>", "</think>")
MAGISTRAL = ReasoningFormat("[THINK]", "[/THINK]")
HARMONY = ReasoningFormat(
    open="<|channel|>analysis<|message|>",
    close="<|end|><|start|>assistant<|channel|>final<|message|>",
    answer_open="<|channel|>final<|message|>",
)
HARMONY_TOKENS = ("<|channel|>", "<|message|>", "<|start|>", "<|end|>")


def reasoning_format(added_tokens: Iterable[str]) -> ReasoningFormat:
    """The format that a tokenizer's added tokens belong to; `<think>` when they tell nothing."""
    tokens = set(added_tokens)
    if {"<|channel|>", "<|message|>"} <= tokens:
        return HARMONY
    return MAGISTRAL if "[THINK]" in tokens else THINK


def shown_tokens(style: ReasoningFormat) -> frozenset[str]:
    """Special tokens that the splitter must see; the detokenizer hides all others."""
    return frozenset(HARMONY_TOKENS if style is HARMONY else style.tags)


class TextPiece(NamedTuple):
    text: str
    is_reasoning: bool


class ReasoningSplitter:
    """Takes text as it comes, gives pieces that are reasoning or answer; tags are swallowed.

    Reasoning is recognised at the start of the answer only: a tag that is mentioned later is text.
    Newlines next to a tag belong to the tag. What might still become a tag is held back. `is_open`:
    the stream begins inside reasoning; `is_continued`: in the middle of it, or of the answer.
    """

    def __init__(
        self,
        style: ReasoningFormat = THINK,
        *,
        is_open: bool = False,
        is_continued: bool = False,
    ) -> None:
        self._style = style
        self._state = "reasoning" if is_open else "answer" if is_continued else "start"
        self._held = ""
        self._is_after_tag = is_open and not is_continued

    @property
    def is_reasoning(self) -> bool:
        """Whether the stream stands inside reasoning now."""
        return self._state == "reasoning"

    def push(self, text: str) -> list[TextPiece]:
        """The pieces that are certain after `text`; often one, sometimes none or two."""
        self._held += text
        pieces: list[TextPiece] = []
        if self._state == "start":
            self._leave_start()
        if self._state == "reasoning":
            self._take_reasoning(pieces)
        if self._state == "answer":
            self._emit(pieces, len(self._held), is_reasoning=False)
        return pieces

    def finish(self) -> list[TextPiece]:
        """What was held back, now that nothing follows."""
        text, self._held = self._held, ""
        if self._is_after_tag:
            text = text.lstrip("\n")
        return [TextPiece(text, self.is_reasoning)] if text else []

    def _leave_start(self) -> None:
        """Decide between reasoning and answer as soon as the first characters allow it."""
        text = self._held.lstrip()
        for tag, state in ((self._style.open, "reasoning"), (self._style.answer_open, "answer")):
            if tag and text.startswith(tag):
                self._state = state
                self._held = text[len(tag) :]
                self._is_after_tag = True
                return
        if not any(
            tag and tag.startswith(text) for tag in (self._style.open, self._style.answer_open)
        ):
            self._state = "answer"

    def _take_reasoning(self, pieces: list[TextPiece]) -> None:
        at = self._held.find(self._style.close)
        if at >= 0:
            rest = self._held[at + len(self._style.close) :]
            self._held = self._held[:at].rstrip("\n")
            self._emit(pieces, len(self._held), is_reasoning=True)
            self._state, self._held, self._is_after_tag = "answer", rest, True
            return
        certain = len(self._held) - _overlap(self._held, self._style.close)
        certain = len(self._held[:certain].rstrip("\n"))
        self._emit(pieces, certain, is_reasoning=True)

    def _emit(self, pieces: list[TextPiece], length: int, *, is_reasoning: bool) -> None:
        text, self._held = self._held[:length], self._held[length:]
        if self._is_after_tag:
            text = text.lstrip("\n")
        if text:
            self._is_after_tag = False
            pieces.append(TextPiece(text, is_reasoning))


def _overlap(text: str, tag: str) -> int:
    """The length of the longest end of `text` that is a beginning of `tag`."""
    for length in range(min(len(text), len(tag) - 1), 0, -1):
        if text.endswith(tag[:length]):
            return length
    return 0
