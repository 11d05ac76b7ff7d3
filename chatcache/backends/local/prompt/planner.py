"""From messages and a journal to the token ids of a prompt.

Owns: what is reused of the ids that were really read and produced, where a prompt leaves them, and
the sentence that explains it. Token ids and text only: it knows no cache and no model.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, Literal

from chatcache.backends.base import ChatMessage, HistoryMode
from chatcache.backends.local.prompt.alignment import JournalMatch, extend_journal
from chatcache.backends.local.prompt.detokenize import REPLACEMENT
from chatcache.backends.local.prompt.reasoning import HARMONY
from chatcache.backends.local.prompt.template import ChatTemplate, Render, free_marker
from chatcache.errors import UnavailableError
from chatcache.token_ids import NO_IDS, TokenIds

DivergenceKind = Literal["template_rewrote_history", "template_is_unstable"]

_DATE_FORMAT = re.compile(r"""strftime_now\(\s*(['"])(.+?)\1""")
_SNIPPET_IDS = 8
_TAG_IDS = 16  # room for a tag that is no token of its own, and spaces
_SNIPPET_CHARACTERS = 32


@dataclass(frozen=True, slots=True)
class Divergence:
    """Why a prompt leaves the journal."""

    kind: DivergenceKind
    detail: str


@dataclass(frozen=True, slots=True)
class PromptPlan:
    """A prompt: `ids[:keep]` are the journal's own ids.

    `diverged` is None when the whole journal was kept. `system_tokens` leading ids belong to the
    system prompt. `opens_reasoning`: the prompt ends inside reasoning, so the answer begins there.
    `continues_answer`: the prompt ends inside an answer whose text is known already.
    `num_deviating`: how many ids of the journal the template would have written differently; they
    are kept, because the session asks for it.
    """

    ids: TokenIds
    keep: int
    diverged: Divergence | None = None
    system_tokens: int = 0
    opens_reasoning: bool = False
    continues_answer: bool = False
    num_deviating: int = 0


class PromptPlanner:
    """Plans the prompts of one tokenizer.

    `end_token_ids` end an answer; one at the end of a journal is dropped when the answer goes on.
    `clock`: what templates take for the present time; None: the time it is.
    """

    def __init__(
        self,
        tokenizer: Any,
        *,
        end_token_ids: Iterable[int] = (),
        clock: Callable[[], datetime] | None = None,
    ) -> None:
        self.template = ChatTemplate(tokenizer, clock)
        self.codec = self.template.codec
        end_ids = {*end_token_ids, *self.template.turn_end_ids()}
        if tokenizer.eos_token_id is not None:
            end_ids.add(tokenizer.eos_token_id)
        self._end_token_ids = frozenset(end_ids)
        # gpt-oss ends an answer with one token, and its template writes another one in history.
        self._closing_ids = frozenset(
            end_ids | {self.codec.controls["<|end|>"]}
            if self.template.reasoning is HARMONY and "<|end|>" in self.codec.controls
            else end_ids
        )
        self._system_ids: tuple[tuple[str, bool | None], TokenIds] | None = None

    def plan(
        self,
        messages: Sequence[ChatMessage],
        journal: TokenIds = NO_IDS,
        *,
        think: bool | None = None,
        continue_answer: bool = False,
        history_mode: HistoryMode = "canonical",
        num_read: int = 0,
    ) -> PromptPlan:
        """The prompt for `messages`, keeping as many ids of `journal` as it can.

        With `continue_answer` the last message is a partial answer and the prompt ends inside it.
        In append mode all of the journal is kept, which ends with the answer that is the last of
        the first `num_read` messages; where that cannot be, the prompt is the canonical one.
        Raises UnavailableError if the template refuses the messages.
        """
        if history_mode == "append" and self._ends_with_answer(messages, journal, num_read):
            plan = self._plan_behind(messages, journal, num_read, think, continue_answer)
            if plan is not None:
                return plan
        partial = None
        if continue_answer and messages[-1].role == "assistant":
            *messages, last = messages
            partial = last if last.text or last.reasoning else None
        render = self.template.render(messages, think=think)
        if partial is not None:
            if self._is_covered(journal, render, partial):
                return self._plan_as_read(messages, partial, journal, think)
            render = self._with_partial(render, partial)
        match = self._match(journal, render)
        diverged = None
        if match.keep < len(journal):
            again = self.template.render(messages, think=think) if partial is None else render
            diverged = self._explain(journal, render, match, again.text != render.text)
        return PromptPlan(
            ids=match.ids,
            keep=match.keep,
            diverged=diverged,
            system_tokens=self._count_system_tokens(messages, think, match.ids),
            opens_reasoning=self._is_open(render.text) if partial is None else not partial.text,
            continues_answer=partial is not None,
        )

    def _plan_as_read(
        self,
        messages: Sequence[ChatMessage],
        partial: ChatMessage,
        journal: TokenIds,
        think: bool | None,
    ) -> PromptPlan:
        """The prompt that goes on with a partial answer that the journal ends with."""
        ids = journal if journal[-1] not in self._end_token_ids else journal[:-1]
        return PromptPlan(
            ids=ids,
            keep=len(ids),
            system_tokens=self._count_system_tokens(messages, think, ids),
            opens_reasoning=not partial.text and not self._has_closed(ids),
            continues_answer=True,
        )

    def _is_open(self, text: str) -> bool:
        return text.rstrip().endswith(self.template.reasoning.open)

    def _match(self, journal: TokenIds, render: Render) -> JournalMatch:
        return extend_journal(self.codec, journal, render.text, render.marker)

    # append mode

    def _ends_with_answer(
        self, messages: Sequence[ChatMessage], journal: TokenIds, num_read: int
    ) -> bool:
        is_known = bool(journal) and self.codec.num_known(journal) == len(journal)
        is_inside = 0 < num_read <= len(messages)
        return is_known and is_inside and messages[num_read - 1].role == "assistant"

    def _plan_behind(
        self,
        messages: Sequence[ChatMessage],
        journal: TokenIds,
        num_read: int,
        think: bool | None,
        continue_answer: bool,
    ) -> PromptPlan | None:
        """The whole journal, and behind it what the template writes for the messages that are not
        in it; None if the template does not tell."""
        answer, rest = messages[num_read - 1], list(messages[num_read:])
        is_partial = continue_answer and messages[-1].role == "assistant"
        if is_partial and not rest:
            return self._plan_as_read(messages, answer, journal, think)
        partial = rest.pop() if is_partial else None
        system = list(messages[:1]) if messages[0].role == "system" else []
        tail = self.template.render_after_answer([*system, *rest], think=think) if rest else None
        if tail is None:
            return None
        tail = replace(tail, text=self._closing(journal, answer) + self._behind_end(journal, tail))
        if partial is not None:
            tail = self._with_partial(tail, partial)
        after = journal[-1] if journal[-1] in self.codec.control_ids else None
        # The marker in front lets the text go on where it stands, without a space of its own.
        text = tail.text if after is not None else tail.marker + tail.text
        ids = journal + TokenIds(self.codec.encode(text, tail.marker, after))
        return PromptPlan(
            ids=ids,
            keep=len(journal),
            system_tokens=self._count_system_tokens(messages, think, ids),
            opens_reasoning=self._is_open(tail.text) if partial is None else not partial.text,
            continues_answer=partial is not None,
            num_deviating=self._num_deviating([*messages[:num_read], *rest], journal, think),
        )

    def _behind_end(self, journal: TokenIds, tail: Render) -> str:
        """The text of `tail`, less the end of the answer where the journal has it already."""
        first = next((part for part in self.codec.segments(tail.text) if part.text.strip()), None)
        if journal[-1] not in self._end_token_ids or first is None or first.token_id is None:
            return tail.text
        rest = tail.text[first.start + len(first.text) :]
        # A token that stands right in front of what the user says opens it, whatever it ends.
        said = tail.contents[0].strip() if tail.contents else ""
        header = rest.partition(said)[0] if said else rest
        is_opened = any(part.token_id is not None for part in self.codec.segments(header))
        is_end = first.token_id in self._closing_ids and is_opened
        return rest if first.token_id == journal[-1] or is_end else tail.text

    def _closing(self, journal: TokenIds, answer: ChatMessage) -> str:
        """What ends the reasoning that an answer was stopped in."""
        style = self.template.reasoning
        is_inside = answer.reasoning is not None and not answer.text and style is not HARMONY
        if not is_inside or journal[-1] in self._end_token_ids or self._has_closed(journal):
            return ""
        return f"\n{style.close}\n\n"

    def _num_deviating(
        self, messages: Sequence[ChatMessage], journal: TokenIds, think: bool | None
    ) -> int:
        try:
            render = self.template.render(messages, think=think)
        except UnavailableError:
            return len(journal)
        return len(journal) - self._match(journal, render).keep

    # a partial answer

    def _is_covered(self, journal: TokenIds, prompt: Render, partial: ChatMessage) -> bool:
        """Whether the journal goes beyond `prompt` and ends with the partial answer."""
        if not journal or self.codec.num_known(journal) < len(journal):
            return False
        if self._match(journal, prompt).keep == len(journal):
            return False
        wanted = (partial.text or partial.reasoning or "").strip()
        tail = journal[:-1] if journal[-1] in self._end_token_ids else journal
        # An answer has at most as many ids as bytes; a few more are room for tags and spaces.
        text = self.codec.decode(tail[-len(wanted.encode()) - _TAG_IDS :].to_list())
        text = text.rstrip(REPLACEMENT).rstrip()
        if not partial.text:
            text = text.removesuffix(self.template.reasoning.close).rstrip()
        return text.endswith(wanted)

    def _has_closed(self, ids: TokenIds) -> bool:
        """Whether the reasoning has just ended, before any text of the answer."""
        tail = self.codec.decode(ids[-_TAG_IDS:].to_list())
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
        self, messages: Sequence[ChatMessage], think: bool | None, ids: TokenIds
    ) -> int:
        """Leading ids of the prompt that the system message alone begins with."""
        if not messages or messages[0].role != "system" or self.template.folds_system:
            return 0
        key = messages[0].text, think
        if self._system_ids is None or self._system_ids[0] != key:
            try:
                alone = self.template.render(messages[:1], think=think, add_generation_prompt=False)
                system_ids = TokenIds(self.codec.encode(alone.text, alone.marker))
            except UnavailableError:  # some templates insist on a user message
                system_ids = NO_IDS
            self._system_ids = key, system_ids
        return self._system_ids[1].common_prefix(ids)

    def _explain(
        self, journal: TokenIds, render: Render, match: JournalMatch, changes_itself: bool
    ) -> Divergence:
        keep = match.keep
        lost = f"{len(journal) - keep:,} of {len(journal):,} tokens of history are read again"
        first = self._written(match.ids, keep, 1)
        date = self.date_at(render.text, match.offset, match.offset + max(1, len(first)))
        if date is not None or changes_itself:
            what = "something else each time" if date is None else f"the date ({date!r})"
            detail = f"the template writes {what} at token {keep:,}: {lost}"
            return Divergence("template_is_unstable", detail)
        read = _snippet(self._written(journal, keep, _SNIPPET_IDS))
        now = _snippet(self._written(match.ids, keep, _SNIPPET_IDS))
        detail = (
            f"the template renders {_place(render, match.offset)} differently than it was read, "
            f"from token {keep:,} on: {read} was read, {now} is rendered; {lost}"
        )
        return Divergence("template_rewrote_history", detail)

    def _written(self, ids: TokenIds, start: int, length: int) -> str:
        """The text of a few ids as it stands behind the id in front of them."""
        stop = min(start + length, self.codec.num_known(ids))
        before = ids[max(0, start - 1) : start].to_list()
        head = self.codec.decode(before)
        text = self.codec.decode([*before, *ids[start:stop]])
        return text.removeprefix(head)

    def date_at(self, text: str, start: int, stop: int) -> str | None:
        """The date or time that the template wrote across `text[start:stop]`, if it did."""
        now = self.template.now()
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
