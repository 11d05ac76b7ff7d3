"""From a request to the plan of a turn: its prompt, and the room that is left for an answer."""

from __future__ import annotations

import time

from chatcache.backends.base import ChatMessage, TurnRequest
from chatcache.backends.local.model.loader import LoadedModel
from chatcache.backends.local.prompt.planner import PromptPlan, PromptPlanner
from chatcache.backends.local.prompt.template import common_length
from chatcache.backends.local.run.turn_state import TurnState
from chatcache.errors import ContextFullError, UnavailableError
from chatcache.token_ids import NO_IDS, TokenIds


class TurnPlanner:
    """Plans turns on one loaded model. It changes nothing and computes nothing."""

    def __init__(self, loaded: LoadedModel):
        self._loaded = loaded
        self._planner = PromptPlanner(loaded.tokenizer, end_token_ids=loaded.end_token_ids)
        self._generation_prompts: dict[bool | None, TokenIds] = {}
        self.control_ids = frozenset(self._planner.codec.control_ids)

    def prompt(self, request: TurnRequest) -> PromptPlan:
        """Raises UnavailableError if the template refuses the messages, or the weights changed."""
        self._loaded.check_files()
        return self._planner.plan(
            request.messages,
            request.journal,
            think=request.think,
            continue_answer=request.continue_answer,
            history_mode=request.history_mode,
            num_read=request.num_read,
        )

    def turn(self, request: TurnRequest) -> TurnState:
        """Raises ContextFullError, too, if the prompt leaves no room for an answer."""
        began = time.perf_counter()
        plan = self.prompt(request)
        max_tokens = self._loaded.max_context_tokens
        room = max_tokens - len(plan.ids)
        if room <= 0:
            raise ContextFullError(
                f"The conversation has {len(plan.ids):,} tokens, but {self._loaded.name} reads at "
                f"most {max_tokens:,}.",
                "Fork from an earlier turn, start a new chat, or shorten the message.",
                len(plan.ids),
                max_tokens,
            )
        return TurnState(request, plan, room, began)

    def message_ends(self, plan: PromptPlan, think: bool | None) -> tuple[int, int]:
        """Where the system prompt and the last message end.

        Behind the latter comes the generation prompt, which templates often write differently in
        history (`<think>` opened for the model, but stripped later)."""
        if think not in self._generation_prompts:
            self._generation_prompts[think] = self._generation_prompt(think)
        tail = self._generation_prompts[think]
        is_tail = bool(tail) and plan.ids[-len(tail) :] == tail
        return plan.system_tokens, len(plan.ids) - len(tail) if is_tail else len(plan.ids)

    def _generation_prompt(self, think: bool | None) -> TokenIds:
        """What the template writes behind the last message; no ids if it does not tell."""
        template, messages = self._planner.template, [ChatMessage("user", "u")]
        try:
            asked = template.render(messages, think=think)
            told = template.render(messages, think=think, add_generation_prompt=False)
        except UnavailableError:
            return NO_IDS
        shared = common_length(asked.text, told.text)
        return TokenIds(template.codec.encode(asked.text[shared:], asked.marker))
