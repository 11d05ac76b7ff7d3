"""One turn: the plan of its prompt, what is known of it while it runs, and its answer.

Computes nothing with the model, and changes nothing in the cache.
"""

from __future__ import annotations

import time
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from chatcache.backends.base import (
    CacheReport,
    ChatMessage,
    FinishReason,
    Outcome,
    Reason,
    TextDelta,
    Timings,
    TurnRequest,
    TurnResult,
    Usage,
)
from chatcache.backends.local.model.loader import LoadedModel
from chatcache.backends.local.prompt.detokenize import Detokenizer
from chatcache.backends.local.prompt.harmony import TextPiece
from chatcache.backends.local.prompt.planner import PromptPlan, PromptPlanner
from chatcache.backends.local.prompt.reasoning import (
    HARMONY,
    KNOWN,
    LoneClosing,
    ReasoningSplitter,
    reasoning_format,
    shown_tokens,
)
from chatcache.backends.local.prompt.stops import StopWatch, stop_texts
from chatcache.backends.local.prompt.template import common_length, template_source
from chatcache.backends.local.run.live_context import Reuse
from chatcache.errors import ContextFullError, UnavailableError
from chatcache.formatting import model_name
from chatcache.token_ids import NO_IDS, TokenIds


@dataclass(frozen=True, slots=True)
class Explanation:
    """Why a turn reused what it reused."""

    outcome: Outcome
    reason: Reason
    detail: str


@dataclass(slots=True)
class TurnState:
    """Mutable; one per turn. Clock values are `time.perf_counter` seconds."""

    request: TurnRequest
    plan: PromptPlan
    room: int
    began: float
    explanation: Explanation = field(default_factory=lambda: Explanation("miss", "cold_start", ""))
    reuse: Reuse = field(default_factory=Reuse)
    ahead_tokens: int = 0
    computed_to: int = 0
    prefill_seconds: float = 0.0
    first_token_at: float | None = None
    last_token_at: float | None = None
    num_decoded: int = 0
    num_sound: int | None = None  # tokens of the answer, before it began to repeat itself
    logits: torch.Tensor | None = None

    @property
    def limit(self) -> int:
        """At least one prompt token is always computed: its logits are needed."""
        return len(self.plan.ids) - 1

    @property
    def reused(self) -> int:
        return self.reuse.num_tokens

    @property
    def ram_tokens(self) -> int:
        return self.reused - self.reuse.disk_tokens

    def note_token(self) -> None:
        self.last_token_at = time.perf_counter()
        if self.first_token_at is None:
            self.first_token_at = self.last_token_at
        self.num_decoded += 1

    def usage(self, num_completion: int) -> Usage:
        return Usage(len(self.plan.ids), num_completion, self.ram_tokens, self.reuse.disk_tokens)

    def timings(self) -> Timings:
        """A stopped prefill has no first token: then only what was measured is told."""
        decode_ms, ttft_ms, decode_rate, prefill_rate = None, None, None, None
        if self.first_token_at is not None and self.last_token_at is not None:
            ttft_ms = 1000 * (self.first_token_at - self.began)
            decode_ms = 1000 * (self.last_token_at - self.first_token_at)
            if decode_ms > 0:
                decode_rate = 1000 * (self.num_decoded - 1) / decode_ms
        if self.prefill_seconds > 0 and self.computed_to > self.reused:
            prefill_rate = (self.computed_to - self.reused) / self.prefill_seconds
        return Timings(
            restore_ms=1000 * self.reuse.seconds,
            prefill_ms=1000 * self.prefill_seconds,
            ttft_ms=ttft_ms,
            decode_ms=decode_ms,
            prefill_tokens_per_second=prefill_rate,
            decode_tokens_per_second=decode_rate,
        )


class TurnPlanner:
    """Plans turns on one loaded model. It changes nothing and computes nothing."""

    def __init__(self, loaded: LoadedModel):
        self._loaded = loaded
        self._planner = PromptPlanner(loaded.tokenizer, end_token_ids=loaded.end_token_ids)
        self._generation_prompts: dict[bool | None, TokenIds] = {}
        self._stop_texts = stop_texts(self._planner.template)
        self.codec = self._planner.codec
        self.control_ids = frozenset(self.codec.control_ids)
        self.think_switch = self._planner.template.think_switch

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
                f"The conversation has {len(plan.ids):,} tokens, but "
                f"{model_name(self._loaded.name)} reads at most {max_tokens:,}.",
                "Fork from an earlier turn, start a new chat, or shorten the message.",
                len(plan.ids),
                max_tokens,
            )
        return TurnState(request, plan, room, began)

    def answer(self, state: TurnState) -> GeneratedAnswer:
        """What takes in the answer to a planned turn."""
        loaded = self._loaded
        return GeneratedAnswer(
            loaded.tokenizer,
            state.plan,
            state.request.turn_id,
            stop_texts=self._stop_texts,
            end_token_ids=loaded.end_token_ids,
        )

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


class GeneratedAnswer:
    """Push ids, get text events; afterwards `result`.

    `stop_texts` begin another turn: what stands in front of them is the answer."""

    def __init__(
        self,
        tokenizer: Any,
        plan: PromptPlan,
        turn_id: str,
        *,
        stop_texts: Sequence[str] = (),
        end_token_ids: frozenset[int] = frozenset(),
    ):
        self._turn_id = turn_id
        added = [token.content for token in tokenizer.added_tokens_decoder.values()]
        style = reasoning_format(added, template_source(tokenizer))
        context = plan.ids if plan.continues_answer else ()
        self._detokenizer = Detokenizer(
            tokenizer, shown=shown_tokens(style), context=context, ends=end_token_ids
        )
        self._end_token_ids = end_token_ids
        is_continued = plan.continues_answer
        self._stops = StopWatch(stop_texts, is_continued=is_continued) if stop_texts else None
        self._text_ends: list[int] = []  # characters after each id
        # What the prompt has opened ends with its own mark; what a model opens may be any of them.
        is_known = style is HARMONY or plan.opens_reasoning
        self._splitter = ReasoningSplitter(
            *((style,) if is_known else (style, *KNOWN)),
            is_open=plan.opens_reasoning,
            is_continued=plan.continues_answer,
        )
        # Some models think without opening it, and only close it.
        can_be_unopened = not (plan.opens_reasoning or plan.continues_answer)
        self._lone = LoneClosing(style, is_strict=True) if can_be_unopened else None
        self._text: list[str] = []
        self._reasoning: list[str] = []
        self.token_ids: list[int] = []
        self.finish_reason: FinishReason | None = None

    def push(self, token_id: int) -> Iterator[TextDelta]:
        """Take the next id; yields the text that is certain now."""
        self.token_ids.append(token_id)
        text = self._detokenizer.push(token_id)
        if token_id in self._end_token_ids:
            self.finish_reason = "stop"
        if self._stops is not None:
            self._text_ends.append(len(text) + (self._text_ends[-1] if self._text_ends else 0))
            text = self._stops.push(text)
            if self._stops.end is not None:
                self.finish_reason = "stop"
        if text:
            yield from self._emit(self._splitter.push(text))

    def close(self) -> Iterator[TextDelta]:
        """The text that was held back, once nothing follows."""
        text = self._detokenizer.finish()
        if self._stops is not None:
            text = self._stops.push(text) + self._stops.finish()
        pieces = [*self._splitter.push(text), *self._splitter.finish()]
        yield from self._emit(pieces)
        if self._lone is not None:
            yield from self._tell(self._lone.finish())

    def drop_next_turn(self) -> bool:
        """Take back the ids that begin another turn; whether there were any."""
        if self._stops is None or self._stops.end is None:
            return False
        del self.token_ids[bisect_right(self._text_ends, self._stops.end) :]
        return True

    def result(self, usage: Usage, timings: Timings, cache: CacheReport) -> TurnResult:
        return TurnResult(
            text="".join(self._text),
            reasoning="".join(self._reasoning) or None,
            finish_reason=self.finish_reason or "stopped",
            answer_ids=TokenIds(self.token_ids),
            usage=usage,
            timings=timings,
            cache=cache,
        )

    def _emit(self, pieces: Sequence[TextPiece]) -> Iterator[TextDelta]:
        if self._lone is None or any(piece.is_reasoning for piece in pieces):
            if self._lone is not None:
                pieces, self._lone = [*self._lone.finish(), *pieces], None
            yield from self._tell(pieces)
            return
        was_found = self._lone.reasoning is not None
        found = [part for piece in pieces for part in self._lone.push(piece.text)]
        yield from self._tell(found)
        if self._lone.reasoning is not None and not was_found:
            # What was taken for the answer was reasoning.
            self._reasoning = [self._lone.reasoning] if self._lone.reasoning else []
            self._text = [piece.text for piece in found if not piece.is_reasoning]

    def _tell(self, pieces: Sequence[TextPiece]) -> Iterator[TextDelta]:
        for piece in pieces:
            (self._reasoning if piece.is_reasoning else self._text).append(piece.text)
            yield TextDelta(self._turn_id, piece.text, piece.is_reasoning, len(self.token_ids))
