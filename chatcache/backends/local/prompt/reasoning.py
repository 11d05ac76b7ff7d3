"""Splits a stream of answer text into reasoning and answer.

Owns: the marks with which models enclose their reasoning, how a template and a tokenizer tell them,
and where a stream stands between them. Knows nothing of tokens: whether the prompt opened the
reasoning, the caller tells.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from chatcache.backends.local.prompt.harmony import HARMONY_TOKENS, HarmonySplitter, TextPiece


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
CHANNEL = ReasoningFormat("<|channel>thought", "<channel|>")
# What servers send whose model nobody here knows.
KNOWN = (
    THINK,
    ReasoningFormat("<thinking>", "</thinking>"),
    ReasoningFormat("<seed:think>", "</seed:think>"),
    MAGISTRAL,
    ReasoningFormat("<thought>", "</thought>"),
    ReasoningFormat("<reasoning>", "</reasoning>"),
    ReasoningFormat("<|begin_of_thought|>", "<|end_of_thought|>"),
    ReasoningFormat("<|START_THINKING|>", "<|END_THINKING|>"),
    ReasoningFormat("<|think|>", "</|think|>"),
    ReasoningFormat("◁think▷", "◁/think▷"),
    CHANNEL,
)
_MARK = re.compile(
    r"<\|?/?[\w:./\-]{0,24}?(?:think|thought|reason)[\w:.\-]{0,24}\|?>|\[/?THINK(?:ING)?\]|◁/?think▷",
    re.IGNORECASE,
)
# How the name of a mark that opens becomes that of the one that closes.
_TOKEN_IN_MARK = re.compile(r"<[^<>]*>")
_CLOSING_NAMES = (("begin", "end"), ("BEGIN", "END"), ("start", "end"), ("START", "END"))


def reasoning_format(added_tokens: Iterable[str], template: str = "") -> ReasoningFormat:
    """The marks that a template and a tokenizer's added tokens tell; `<think>` if they tell none.

    A pair that the template writes goes before one that is only among the tokens.
    """
    tokens = dict.fromkeys(added_tokens)
    if {"<|channel|>", "<|message|>"} <= tokens.keys():
        return HARMONY
    if {"<|channel>", "<channel|>"} <= tokens.keys():
        return CHANNEL
    written = list(dict.fromkeys(_MARK.findall(template)))
    marks = [token for token in tokens if _MARK.fullmatch(token)]
    pairs = list(_pairs(written, {*written, *marks}))
    pairs.sort(key=lambda pair: not {pair.open, pair.close} <= tokens.keys())
    found = next(iter([*pairs, *_pairs(marks, {*marks})]), THINK)
    return next((known for known in KNOWN if known == found), found)


def _pairs(marks: Iterable[str], known: set[str]) -> Iterator[ReasoningFormat]:
    """The pairs of which both marks are known."""
    for mark in marks:
        for closing in _closings(mark):
            if closing in known:
                yield ReasoningFormat(mark, closing)


def _closings(mark: str) -> Iterator[str]:
    """What could close the reasoning that `mark` opens."""
    if "/" in mark:
        return
    yield f"{mark[0]}/{mark[1:]}"
    yield f"{mark[:2]}/{mark[2:]}"
    for begin, end in _CLOSING_NAMES:
        if begin in mark:
            yield mark.replace(begin, end)


def shown_tokens(style: ReasoningFormat) -> frozenset[str]:
    """Special tokens that the splitter must see; the detokenizer hides all others."""
    if style is HARMONY:
        return frozenset(HARMONY_TOKENS)
    parts = [token for tag in style.tags for token in _TOKEN_IN_MARK.findall(tag)]
    return frozenset((*style.tags, *parts))


class ReasoningSplitter:
    """Takes text as it comes, gives pieces that are reasoning or answer; tags are swallowed.

    Reasoning is recognised at the start of the answer, and right behind other reasoning: a tag that
    is mentioned later is text.
    Newlines next to a tag belong to the tag. What might still become a tag is held back. `is_open`:
    the stream begins inside reasoning; `is_continued`: in the middle of it, or of the answer.

    Of several styles the first tag decides. `is_assumed`: it probably begins inside reasoning that
    no tag opens; if no tag closes it either, `finish` gives all of it as the answer.
    """

    def __init__(
        self,
        *styles: ReasoningFormat,
        is_open: bool = False,
        is_continued: bool = False,
        is_assumed: bool = False,
    ) -> None:
        self._styles: Sequence[ReasoningFormat] = styles or (THINK,)
        self._harmony: HarmonySplitter | None = None
        if self._styles == (HARMONY,):
            self._harmony = HarmonySplitter(is_open=is_open, is_continued=is_continued)
        self._state = "reasoning" if is_open else "answer" if is_continued else "start"
        self._closes = [style.close for style in self._styles]
        self._is_assumed = is_assumed and self._state == "start"
        self._held = ""
        self._assumed: list[str] = []
        self._is_after_tag = is_open and not is_continued

    @property
    def is_reasoning(self) -> bool:
        """Whether the stream stands inside reasoning now."""
        return self._harmony.is_reasoning if self._harmony else self._state == "reasoning"

    def push(self, text: str) -> list[TextPiece]:
        """The pieces that are certain after `text`; often one, sometimes none or two."""
        if self._harmony is not None:
            return self._harmony.push(text)
        self._held += text
        pieces: list[TextPiece] = []
        before = None
        while before != (self._state, self._held):  # reasoning may follow reasoning
            before = self._state, self._held
            if self._state == "start":
                self._leave_start()
            if self._state == "reasoning":
                self._take_reasoning(pieces)
        if self._state == "answer":
            self._emit(pieces, len(self._held), is_reasoning=False)
        return pieces

    def finish(self, *, is_whole: bool = True) -> list[TextPiece]:
        """What was held back, now that nothing follows. `is_whole`: it was not cut off."""
        if self._harmony is not None:
            return self._harmony.finish()
        text, self._held = self._held, ""
        if self._is_after_tag:
            text = text.lstrip("\n")
        if self._is_assumed and self._state != "answer" and is_whole:
            text, self._state = "".join([*self._assumed, text]), "answer"
        return [TextPiece(text, self.is_reasoning)] if text else []

    @property
    def took_back(self) -> bool:
        """Was what had been given as reasoning given once more, as the answer?"""
        return self._is_assumed and self._state == "answer"

    def _leave_start(self) -> None:
        """Decide between reasoning and answer as soon as the first characters allow it."""
        text = self._held.lstrip()
        for style in self._styles:
            for tag, state in ((style.open, "reasoning"), (style.answer_open, "answer")):
                if tag and text.startswith(tag):
                    self._state, self._closes = state, [style.close]
                    self._held = text[len(tag) :]
                    self._is_after_tag = True
                    self._is_assumed = False
                    return
        tags = [tag for style in self._styles for tag in (style.open, style.answer_open) if tag]
        if not any(tag.startswith(text) for tag in tags):
            self._state = "reasoning" if self._is_assumed else "answer"

    def _take_reasoning(self, pieces: list[TextPiece]) -> None:
        found = [(at, tag) for tag in self._closes if (at := self._held.find(tag)) >= 0]
        if found:
            at, tag = min(found)
            rest = self._held[at + len(tag) :]
            self._held = self._held[:at].rstrip("\n")
            self._emit(pieces, len(self._held), is_reasoning=True)
            self._state, self._held, self._is_after_tag = "start", rest, True
            self._is_assumed = False
            return
        certain = len(self._held) - max(_overlap(self._held, tag) for tag in self._closes)
        certain = len(self._held[:certain].rstrip("\n"))
        self._emit(pieces, certain, is_reasoning=True)

    def _emit(self, pieces: list[TextPiece], length: int, *, is_reasoning: bool) -> None:
        text, self._held = self._held[:length], self._held[length:]
        if self._is_after_tag:
            text = text.lstrip("\n")
        if text:
            self._is_after_tag = False
            pieces.append(TextPiece(text, is_reasoning))
            if self._is_assumed:
                self._assumed.append(text)


class LoneClosing:
    """Watches the text of an answer for a mark that closes what none has opened: the text before
    it was reasoning. A mark that is quoted, or in code, is text.

    `is_strict`: the conversation is about such marks; then it must stand in a line of its own.
    `is_only_first`: the reasoning is known already; a mark only counts where the text begins.
    """

    def __init__(
        self, *styles: ReasoningFormat, is_strict: bool = False, is_only_first: bool = False
    ) -> None:
        self._styles = styles
        self._is_strict = is_strict
        self._is_only_first = is_only_first
        self._text = ""
        self._num_given = 0
        self._is_over = self._is_after_mark = False
        self.reasoning: str | None = None  # once it was found

    def push(self, text: str) -> list[TextPiece]:
        """The pieces of the text that are certain now."""
        if self._is_over:
            text = text.lstrip("\n") if self._is_after_mark else text
            self._is_after_mark = self._is_after_mark and not text
            return [TextPiece(text, False)] if text else []
        longest = max(len(style.close) for style in self._styles)
        begin = max(0, len(self._text) - longest)
        self._text += text
        found = [(at, s) for s in self._styles if (at := self._text.find(s.close, begin)) >= 0]
        if not found:
            held = max(_overlap(self._text, style.close) for style in self._styles)
            return self._give(len(self._text) - held)
        self._is_over = True
        at, style = min(found, key=lambda pair: pair[0])
        before, answer = self._text[:at], self._text[at + len(style.close) :]
        if style.open in before or not self._is_mark(before):
            return self._give(len(self._text))
        self.reasoning = before.rstrip("\n") if before.strip() else ""
        last, answer = self.reasoning[self._num_given :], answer.lstrip("\n")
        self._is_after_mark = not answer
        return [piece for piece in (TextPiece(last, True), TextPiece(answer, False)) if piece.text]

    def finish(self) -> list[TextPiece]:
        """What was held back, now that nothing follows."""
        return [] if self._is_over else self._give(len(self._text))

    def _give(self, up_to: int) -> list[TextPiece]:
        text = self._text[self._num_given : up_to]
        self._num_given = max(up_to, self._num_given)
        return [TextPiece(text, False)] if text else []

    def _is_mark(self, before: str) -> bool:
        if self._is_only_first:
            return not before.strip()
        is_quoted = before.count("`") % 2 == 1 or before.rstrip()[-1:] in tuple("\"'“‘«`")
        is_alone = before.rstrip(" \t")[-1:] in ("", "\n")
        return not is_quoted and (is_alone or not self._is_strict)


def _overlap(text: str, tag: str) -> int:
    """The length of the longest end of `text` that is a beginning of `tag`."""
    for length in range(min(len(text), len(tag) - 1), 0, -1):
        if text.endswith(tag[:length]):
            return length
    return 0
