"""Short conversations with made-up answers, to see what the chat template of a model costs.

No model runs: the prompts are planned by the real planner, and the answers are written in the way
in which such a model writes them. What a later turn does not reuse of the earlier ones is a cost
that every conversation with the model will have, whatever is said. Knows no weights and no cache.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Literal

from chatcache.backends.base import ChatMessage
from chatcache.backends.local.prompt.planner import PromptPlan, PromptPlanner
from chatcache.backends.local.prompt.reasoning import HARMONY
from chatcache.backends.local.prompt.template import common_length
from chatcache.errors import UnavailableError
from chatcache.token_ids import NO_IDS, TokenIds

Cause = Literal[
    "changes_by_itself",
    "system_prompt_moved",
    "reasoning_removed",
    "generation_prompt_not_kept",
    "answer_changed",
    "end_token_changed",
    "history_changed",
]

NUM_TURNS = 4
MARKER = "\ue000"
BASE_TIME = datetime(2026, 3, 4, 10, 11, 12)
SYSTEM = "You are a careful assistant for people who write programs. Answer briefly."
_QUESTION = "What does part {} of the program do, and why was it written in this way?"
_REASONING = (
    "The user asks about one part of the program. It reads a file, counts its words and keeps the"
    " counts in a table, so that a later step need not read the file again."
)
_ANSWER = (
    "Part {} reads a file and counts its words. The counts go into a table, because reading the"
    " file again would be slow. The table is written at the end, so a run that is stopped leaves"
    " the older table as it was."
)


@dataclass(frozen=True, slots=True)
class Rehearsal:
    """A conversation to try. `days`: how much later each turn is said than the one before."""

    name: str
    title: str
    system: str | None = None
    think: bool | None = None
    reasons: bool = False
    has_spaces: bool = False
    is_stopped: bool = False
    drifts: bool = False
    days: int = 0


@dataclass(frozen=True, slots=True)
class RehearsedTurn:
    """One turn behind the first. Counts are tokens.

    `lost` of the `history` are not reused, from `position` on. `reread` are tokens of the prompt
    that are computed although nothing new is said in them: what append mode saves.
    """

    turn: int
    prompt: int
    history: int
    reused: int
    reread: int
    cause: Cause | None = None
    position: int | None = None
    detail: str = ""

    @property
    def lost(self) -> int:
        return self.history - self.reused


@dataclass(frozen=True, slots=True)
class Rehearsed:
    """What became of a rehearsal; `problem`: why the template does not take it at all."""

    rehearsal: Rehearsal
    turns: tuple[RehearsedTurn, ...]
    problem: str | None = None

    @property
    def reread_per_turn(self) -> int:
        """What the last of the turns reads again; the first ones have little history."""
        return self.turns[-1].reread if self.turns else 0


@dataclass(slots=True)
class _Talk:
    messages: list[ChatMessage] = field(default_factory=list)
    journal: TokenIds = NO_IDS
    # Where the parts of the last turn end in the journal's symbols, by name.
    ends: dict[str, int] = field(default_factory=dict)


class Rehearser:
    """Rehearses on one tokenizer. `now` is what templates take for the present time."""

    def __init__(self, tokenizer: Any, end_token_ids: frozenset[int]) -> None:
        self.now = BASE_TIME
        self.planner = PromptPlanner(tokenizer, end_token_ids=end_token_ids, clock=lambda: self.now)
        ends = self.planner.template.turn_end_ids() or end_token_ids
        self._end_ids = [min(ends)] if ends else []

    def rehearse(self, rehearsal: Rehearsal) -> Rehearsed:
        """Talk for some turns, and count."""
        self.now = BASE_TIME
        talk = _Talk([ChatMessage("system", rehearsal.system)] if rehearsal.system else [])
        turns: list[RehearsedTurn] = []
        try:
            for turn in range(1, NUM_TURNS + 1):
                talk.messages.append(ChatMessage("user", _QUESTION.format(turn)))
                plan = self.planner.plan(talk.messages, talk.journal, think=rehearsal.think)
                if turn > 1:
                    turns.append(self._turn(turn, talk, plan, rehearsal))
                self._answer(turn, talk, plan, rehearsal)
                self.now += timedelta(days=rehearsal.days)
        except UnavailableError as error:
            return Rehearsed(rehearsal, tuple(turns), error.message)
        finally:
            self.now = BASE_TIME
        return Rehearsed(rehearsal, tuple(turns))

    def _answer(self, turn: int, talk: _Talk, plan: PromptPlan, rehearsal: Rehearsal) -> None:
        """Produce an answer, and note where in the journal its parts end."""
        text = _ANSWER.format(turn)
        if rehearsal.has_spaces:
            text = f"{text} \n"
        if rehearsal.is_stopped:
            text = text[: len(text) // 2]
        reasoning = _REASONING if rehearsal.reasons else None
        thought = self._produced(self._opening(plan, reasoning), rehearsal)
        said = self._produced(self._lead(talk, rehearsal) + text, rehearsal)
        talk.ends = {
            "question": self._without_generation_prompt(talk, rehearsal),
            "generation_prompt": self._length(plan.ids),
            "reasoning": self._length([*plan.ids, *thought]),
            "answer": self._length([*plan.ids, *thought, *said]),
        }
        end = [] if rehearsal.is_stopped else self._end_ids
        talk.journal = plan.ids + TokenIds([*thought, *said, *end])
        talk.messages.append(ChatMessage("assistant", text, reasoning))

    def _opening(self, plan: PromptPlan, reasoning: str | None) -> str:
        """What a model writes in front of its answer."""
        style = self.planner.template.reasoning
        if style is HARMONY:
            close = f"{reasoning}{style.close}" if reasoning else ""
            return f"{style.open}{close}" if reasoning else style.answer_open
        if reasoning is None:
            return f"{style.close}\n\n" if plan.opens_reasoning else ""
        opening = "" if plan.opens_reasoning else f"{style.open}\n"
        return f"{opening}{reasoning}\n{style.close}\n\n"

    def _produced(self, text: str, rehearsal: Rehearsal) -> list[int]:
        """The ids of a text: those of the tokenizer, or others that spell the same."""
        codec = self.planner.codec
        if not rehearsal.drifts:
            return codec.encode(MARKER + text, MARKER)
        ids: list[int] = []
        for segment in codec.segments(text):
            pieces = segment.text if segment.token_id is None else [segment.text]
            for piece in pieces:
                ids += codec.encode(MARKER + piece, MARKER)
        return ids

    def _without_generation_prompt(self, talk: _Talk, rehearsal: Rehearsal) -> int:
        """How many symbols of the prompt end with what the user said."""
        template = self.planner.template
        options: dict[str, Any] = {"think": rehearsal.think}
        whole = template.render(talk.messages, **options).text
        try:
            bare = template.render(talk.messages, add_generation_prompt=False, **options).text
        except UnavailableError:
            return len(whole)
        return common_length(whole, bare)

    def _turn(
        self, turn: int, talk: _Talk, plan: PromptPlan, rehearsal: Rehearsal
    ) -> RehearsedTurn:
        appended = self.planner.plan(
            talk.messages,
            talk.journal,
            think=rehearsal.think,
            history_mode="append",
            num_read=len(talk.messages) - 1,
        )
        num_history, num_prompt = len(talk.journal), len(plan.ids)
        is_appended = appended.keep == num_history
        num_new = len(appended.ids) - num_history if is_appended else num_prompt - num_history
        return RehearsedTurn(
            turn=turn,
            prompt=num_prompt,
            history=num_history,
            reused=plan.keep,
            reread=max(0, num_prompt - plan.keep - max(0, num_new)),
            cause=self._cause(talk, plan, rehearsal) if plan.diverged else None,
            position=plan.keep if plan.diverged else None,
            detail=plan.diverged.detail if plan.diverged else "",
        )

    def _cause(self, talk: _Talk, plan: PromptPlan, rehearsal: Rehearsal) -> Cause:
        """In which part of what was read the prompt leaves it."""
        if plan.diverged is not None and plan.diverged.kind == "template_is_unstable":
            return "changes_by_itself"
        read = self.planner.codec.symbols(talk.journal.to_list(), MARKER)
        written = self.planner.codec.symbols(plan.ids.to_list(), MARKER)
        at = common_length(read, written)
        if rehearsal.system and read.find(rehearsal.system) <= at < written.find(rehearsal.system):
            return "system_prompt_moved"
        if at < talk.ends["question"]:
            return "history_changed"
        if at < talk.ends["generation_prompt"]:
            return "generation_prompt_not_kept"
        if at < talk.ends["reasoning"]:
            return "reasoning_removed"
        return "answer_changed" if at < talk.ends["answer"] else "end_token_changed"

    def _lead(self, talk: _Talk, rehearsal: Rehearsal) -> str:
        """The space that the template writes in front of an answer: a model learns to write it."""
        word = "xqzvk"
        template, messages = self.planner.template, talk.messages
        answered = [*messages, ChatMessage("assistant", word), ChatMessage("user", word)]
        head = template.render(messages, think=rehearsal.think).text
        try:
            text = template.render(answered, think=rehearsal.think).text.partition(word)[0]
        except UnavailableError:
            return ""
        lead = text.removeprefix(head)
        return lead if text.startswith(head) and lead.isspace() else ""

    def _length(self, ids: Sequence[int]) -> int:
        return len(self.planner.codec.symbols(ids, MARKER))
