"""From messages and a journal to the token ids of a prompt.

Owns: what is reused of the ids that were really read and produced, where a prompt leaves them, and
the sentence that explains it. Token ids and text only: it knows no cache and no model.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, Literal

from chatcache.backends.base import ChatMessage
from chatcache.backends.local.alignment import JournalMatch, extend_journal
from chatcache.backends.local.detokenize import REPLACEMENT
from chatcache.backends.local.template import ChatTemplate, Render, free_marker
from chatcache.errors import UnavailableError

DivergenceKind = Literal["template_rewrote_history", "template_is_unstable"]

_DATE_FORMAT = re.compile(r"""strftime_now\(\s*(['"])(.+?)\1""")
_SNIPPET_IDS = 8
_TAG_IDS = 16  # room for a tag that is no token of its own, and spaces
_SNIPPET_CHARACTERS = 32


@dataclass(frozen=True, slots=True)
class Divergence:
    """Where and why a prompt leaves the journal; `position` is a token index."""

    position: int
    kind: DivergenceKind
    detail: str


@dataclass(frozen=True, slots=True)
class PromptPlan:
    """A prompt: `ids[:keep]` are the journal's own ids.

    `diverged` is None when the whole journal was kept. `system_tokens` leading ids belong to the
    system prompt. `opens_reasoning`: the prompt ends inside reasoning, so the answer begins there.
    `continues_answer`: the prompt ends inside an answer whose text is known already.
    """

    ids: list[int]
    keep: int
    diverged: Divergence | None = None
    system_tokens: int = 0
    opens_reasoning: bool = False
    continues_answer: bool = False


class PromptPlanner:
    """Plans the prompts of one tokenizer.

    `end_token_ids` end an answer; one at the end of a journal is dropped when the answer goes on.
    """

    def __init__(self, tokenizer: Any, *, end_token_ids: Iterable[int] = ()) -> None:
        self.template = ChatTemplate(tokenizer)
        self.codec = self.template.codec
        end_ids = {*end_token_ids, *self.template.turn_end_ids()}
        if tokenizer.eos_token_id is not None:
            end_ids.add(tokenizer.eos_token_id)
        self._end_token_ids = frozenset(end_ids)
        self._system_ids: tuple[tuple[str, bool | None], list[int]] | None = None

    def plan(
        self,
        messages: Sequence[ChatMessage],
        journal: Sequence[int] = (),
        *,
        think: bool | None = None,
        continue_answer: bool = False,
    ) -> PromptPlan:
        """The prompt for `messages`, keeping as many ids of `journal` as it can.

        With `continue_answer` the last message is a partial answer and the prompt ends inside it.
        Raises UnavailableError if the template refuses the messages.
        """
        if continue_answer and messages[-1].role == "assistant":
            *messages, partial = messages
            if partial.text or partial.reasoning:
                return self._plan_rest_of(messages, partial, journal, think)
        render = self.template.render(messages, think=think)
        match = extend_journal(self.codec, journal, render.text, render.marker)
        diverged = None
        if match.keep < len(journal):
            again = self.template.render(messages, think=think)
            diverged = self._explain(journal, render, match, again.text != render.text)
        return PromptPlan(
            ids=match.ids,
            keep=match.keep,
            diverged=diverged,
            system_tokens=self._count_system_tokens(messages, think, match.ids),
            opens_reasoning=self._is_open(render.text),
        )

    def _plan_rest_of(
        self,
        messages: Sequence[ChatMessage],
        partial: ChatMessage,
        journal: Sequence[int],
        think: bool | None,
    ) -> PromptPlan:
        """The prompt that goes on with `partial`: the ids as produced, or else as rendered."""
        prompt = self.template.render(messages, think=think)
        opens_reasoning, diverged = not partial.text, None
        if self._is_covered(journal, prompt, partial):
            ids = list(journal if journal[-1] not in self._end_token_ids else journal[:-1])
            keep = len(ids)
            opens_reasoning = opens_reasoning and not self._has_closed(ids)
        else:
            render = self._with_partial(prompt, partial)
            match = extend_journal(self.codec, journal, render.text, render.marker)
            ids, keep = match.ids, match.keep
            if keep < len(journal):
                diverged = self._explain(journal, render, match, changes_itself=False)
        system_tokens = self._count_system_tokens(messages, think, ids)
        return PromptPlan(ids, keep, diverged, system_tokens, opens_reasoning, True)

    def _is_open(self, text: str) -> bool:
        return text.rstrip().endswith(self.template.reasoning.open)

    # a partial answer

    def _is_covered(self, journal: Sequence[int], prompt: Render, partial: ChatMessage) -> bool:
        """Whether the journal goes beyond `prompt` and ends with the partial answer."""
        if not journal or self.codec.num_known(journal) < len(journal):
            return False
        if extend_journal(self.codec, journal, prompt.text, prompt.marker).keep == len(journal):
            return False
        wanted = (partial.text or partial.reasoning or "").strip()
        tail = list(journal[:-1] if journal[-1] in self._end_token_ids else journal)
        # An answer has at most as many ids as bytes; a few more are room for tags and spaces.
        text = self.codec.decode(tail[-len(wanted.encode()) - _TAG_IDS :])
        text = text.rstrip(REPLACEMENT).rstrip()
        if not partial.text:
            text = text.removesuffix(self.template.reasoning.close).rstrip()
        return text.endswith(wanted)

    def _has_closed(self, ids: Sequence[int]) -> bool:
        """Whether the reasoning has just ended, before any text of the answer."""
        tail = self.codec.decode(list(ids[-_TAG_IDS:]))
        return tail.rstrip().endswith(self.template.reasoning.close)

    def _with_partial(self, prompt: Render, partial: ChatMessage) -> Render:
        """The generation prompt and behind it the partial answer, as models write reasoning."""
        marker = free_marker([prompt.text, partial.text, partial.reasoning or ""])
        text = prompt.text.replace(prompt.marker, marker)
        marked = self.template.marked(partial, marker)
        if marked.reasoning is None:
            return replace(prompt, text=text + marked.text, marker=marker)
        style = self.template.reasoning
        opening = "" if self._is_open(text) else f"{style.open}\n"
        closing = f"\n{style.close}\n\n{marked.text}" if marked.text else ""
        return replace(prompt, text=f"{text}{opening}{marked.reasoning}{closing}", marker=marker)

    # figures and explanations

    def _count_system_tokens(
        self, messages: Sequence[ChatMessage], think: bool | None, ids: Sequence[int]
    ) -> int:
        """Leading ids of the prompt that the system message alone begins with."""
        if not messages or messages[0].role != "system" or self.template.folds_system:
            return 0
        key = messages[0].text, think
        if self._system_ids is None or self._system_ids[0] != key:
            try:
                alone = self.template.render(messages[:1], think=think, add_generation_prompt=False)
                system_ids = self.codec.encode(alone.text, alone.marker)
            except UnavailableError:  # some templates insist on a user message
                system_ids = []
            self._system_ids = key, system_ids
        system_ids = self._system_ids[1]
        pairs = enumerate(zip(system_ids, ids, strict=False))
        length = min(len(system_ids), len(ids))
        return next((at for at, (left, right) in pairs if left != right), length)

    def _explain(
        self, journal: Sequence[int], render: Render, match: JournalMatch, changes_itself: bool
    ) -> Divergence:
        keep = match.keep
        lost = f"{len(journal) - keep:,} of {len(journal):,} tokens of history are read again"
        first = self._written(match.ids, keep, 1)
        date = self._date_at(render.text, match.offset, match.offset + max(1, len(first)))
        if date is not None or changes_itself:
            what = "something else each time" if date is None else f"the date ({date!r})"
            detail = f"the template writes {what} at token {keep:,}: {lost}"
            return Divergence(keep, "template_is_unstable", detail)
        read = _snippet(self._written(journal, keep, _SNIPPET_IDS))
        now = _snippet(self._written(match.ids, keep, _SNIPPET_IDS))
        detail = (
            f"the template renders {_place(render, match.offset)} differently than it was read, "
            f"from token {keep:,} on: {read} was read, {now} is rendered; {lost}"
        )
        return Divergence(keep, "template_rewrote_history", detail)

    def _written(self, ids: Sequence[int], start: int, length: int) -> str:
        """The text of a few ids as it stands behind the id in front of them."""
        stop = min(start + length, self.codec.num_known(ids))
        before = list(ids[max(0, start - 1) : start])
        head = self.codec.decode(before)
        text = self.codec.decode([*before, *ids[start:stop]])
        return text.removeprefix(head)

    def _date_at(self, text: str, start: int, stop: int) -> str | None:
        """The date or time that the template wrote across `text[start:stop]`, if it did."""
        now = datetime.now()
        for match in _DATE_FORMAT.finditer(self.template.source):
            date = now.strftime(match.group(2))
            at = text.find(date, max(0, start - len(date)), stop + len(date)) if date else -1
            if 0 <= at < stop:
                return date
        return None


def _place(render: Render, offset: int) -> str:
    """Which turn `offset` of a render lies in, in words."""
    turn = at = 0
    for content in render.contents:
        found = render.text.find(content.strip(), at)
        if found < 0 or found > offset:
            break
        turn, at = turn + 1, found + len(content.strip())
    return f"turn {turn}" if turn else "the beginning"


def _snippet(text: str) -> str:
    if not text:
        return "nothing more"
    return repr(text if len(text) <= _SNIPPET_CHARACTERS else text[:_SNIPPET_CHARACTERS] + "…")
