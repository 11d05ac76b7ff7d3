"""A conversation on one template shape, with a model whose answers the test chooses."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from chatcache.backends.base import ChatMessage
from chatcache.backends.local.prompt.detokenize import Detokenizer
from chatcache.backends.local.prompt.planner import PromptPlan, PromptPlanner
from chatcache.backends.local.prompt.reasoning import ReasoningSplitter, shown_tokens
from chatcache.token_ids import NO_IDS, TokenIds
from tests.templates import BY_NAME, Shape

SYSTEM = "You are brief.\nSay one thing."
REASONING = "Let me see.\nIt is simple."


@cache
def tokenizer_of(name: str) -> Any:
    return BY_NAME[name].tokenizer()


@cache
def planner_of(name: str) -> PromptPlanner:
    return PromptPlanner(tokenizer_of(name))


@dataclass
class Chat:
    """A conversation on one shape with a model whose answers the test chooses."""

    shape: Shape
    system: str | None = None
    think: bool | None = None
    drifts: bool = False
    messages: list[ChatMessage] = field(default_factory=list)
    journal: TokenIds = NO_IDS

    def __post_init__(self) -> None:
        self.tokenizer = tokenizer_of(self.shape.name)
        self.planner = planner_of(self.shape.name)
        if self.system is not None:
            self.messages.append(ChatMessage("system", self.system))

    def ask(self, text: str) -> PromptPlan:
        """Plan the next turn, check what holds for every plan, and read the prompt."""
        self.messages.append(ChatMessage("user", text))
        before = self.journal
        plan = self.planner.plan(self.messages, before, think=self.think)
        check_plan(self.planner, self.tokenizer, self.messages, before, plan, self.think)
        assert plan == self.planner.plan(self.messages, before, think=self.think)
        self.journal = plan.ids
        self._plan = plan
        return plan

    def answer(self, text: str, *, ends: bool = True) -> None:
        """Produce an answer as a model does, and keep the text that a person sees of it."""
        produced = text
        if self.shape.reasons:
            begin, close = self.shape.marks
            opening = "" if self.shape.opens_reasoning else f"{begin}\n"
            produced = f"{opening}{REASONING}\n{close}\n\n{text}"
        ids = self.produced_ids(produced)
        end = self.tokenizer.convert_tokens_to_ids(self.shape.end)
        self.messages.append(self._as_seen(ids))
        self.journal += TokenIds([*ids, end] if ends else ids)

    def produced_ids(self, text: str) -> list[int]:
        """Canonical ids, or ids that no tokenizer would choose for the same text."""
        encode = self.tokenizer.encode
        if not self.drifts:
            return list(encode(text, add_special_tokens=False))
        pieces = re.split(f"({'|'.join(map(re.escape, self.shape.marks))})", text)
        ids: list[int] = []
        for piece in pieces:
            parts = [piece] if piece in self.shape.marks else list(piece)
            for part in parts:
                ids += self.planner.codec.encode(part, "\ue000")
        return ids

    def _as_seen(self, ids: Sequence[int]) -> ChatMessage:
        style = self.planner.template.reasoning
        detokenizer = Detokenizer(self.tokenizer, shown=shown_tokens(style))
        splitter = ReasoningSplitter(style, is_open=self._plan.opens_reasoning)
        text = "".join(detokenizer.push(token_id) for token_id in ids) + detokenizer.finish()
        pieces = splitter.push(text) + splitter.finish()
        reasoning = "".join(piece.text for piece in pieces if piece.is_reasoning)
        answer = "".join(piece.text for piece in pieces if not piece.is_reasoning)
        return ChatMessage("assistant", answer, reasoning or None)


def check_plan(
    planner: PromptPlanner,
    tokenizer: Any,
    messages: Sequence[ChatMessage],
    journal: TokenIds,
    plan: PromptPlan,
    think: bool | None = None,
) -> None:
    render = planner.template.render(messages, think=think)
    fresh = planner.codec.encode(render.text, render.marker)
    symbols = planner.codec.symbols(plan.ids, render.marker)
    assert symbols == planner.codec.symbols(fresh, render.marker)
    if tokenizer is not tokenizer_of("llama2-legacy"):  # which reads a space that nobody wrote
        assert symbols == render.text
    assert plan.ids[: plan.keep] == journal[: plan.keep]
    assert plan.keep >= journal.common_prefix(TokenIds(fresh))
    assert (plan.diverged is None) == (plan.keep == len(journal))
