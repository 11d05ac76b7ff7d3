"""Where a turn goes: render, match, restore, prefill, decode, commit (the spill follows behind).

A `TurnRunner` owns the live KV of the active path and the prefix cache of its model. It deals in
requests and events; the conversation database and the pipe are not known here. Everything runs in
one thread under one grad mode; the cache's writer thread only reads blocks that never change.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence

from chatcache.backends.base import (
    BackendEvent,
    CacheEvent,
    CacheReport,
    CacheSnapshot,
    CostEstimate,
    ModelInfo,
    PrefillProgress,
    Prepare,
    Prepared,
    RestoreBegan,
    TurnEvent,
    TurnFailed,
    TurnFinished,
    TurnPlanned,
    TurnRequest,
    TurnResult,
)
from chatcache.backends.local.engine.settings import EngineSettings
from chatcache.backends.local.model.cut import cut_policy
from chatcache.backends.local.model.identity import namespace_fields
from chatcache.backends.local.model.loader import LoadedModel
from chatcache.backends.local.prompt.generation_tail import GenerationTail
from chatcache.backends.local.prompt.planner import PromptPlan, PromptPlanner
from chatcache.backends.local.run.assemble import build_context, build_live, warm_up
from chatcache.backends.local.run.forward import Forward
from chatcache.backends.local.run.generated_answer import Answer
from chatcache.backends.local.run.idle import IdleWork
from chatcache.backends.local.run.live_context import Reuse
from chatcache.backends.local.run.reasons import TurnFacts, explain
from chatcache.backends.local.run.sampling import Sampler, with_defaults
from chatcache.backends.local.run.turn_state import TurnState
from chatcache.cache.book.namespace import is_approximate, namespace_id
from chatcache.cache.book.rates import RateBook
from chatcache.cache.prefix import PrefixCache
from chatcache.errors import ChatcacheError, ContextFullError, UnavailableError
from chatcache.formatting import size
from chatcache.token_ids import TokenIds

log = logging.getLogger(__name__)

_SNAPSHOT_ROWS = 50
_MAX_STOPPED = 100  # prompts that were not read to their end


class TurnRunner:
    """Answers turns on one loaded model, one at a time."""

    def __init__(
        self,
        loaded: LoadedModel,
        settings: EngineSettings,
        emit: Callable[[BackendEvent], None] = lambda event: None,
    ):
        self._loaded = loaded
        self._settings = settings
        self._emit = emit
        self._planner = PromptPlanner(loaded.tokenizer, end_token_ids=loaded.end_token_ids)
        self._stopped: deque[tuple[TokenIds, int]] = deque(maxlen=_MAX_STOPPED)
        self._cut = cut_policy(loaded.model.config.get_text_config())
        forward = Forward(loaded.model, loaded.device)
        live = build_live(loaded, self._cut, settings.policy.precision)
        fields = namespace_fields(loaded, settings.policy.precision)
        namespace = namespace_id(fields)
        self._rates = RateBook(settings.cache_dir / "segments" / namespace / "rates.json")
        self.info = self._describe(
            namespace, fields, warm_up(self._cut, forward, live, self._rates), live.checkpoint_bytes
        )
        self._prefixes = PrefixCache(
            settings.cache_dir,
            namespace,
            ram_budget=settings.ram_budget,
            disk_budget=settings.disk_budget,
            policy=settings.policy,
            is_spilling=self._cut.is_cuttable,
            needs_states=self._cut.needs_states,
            on_event=self._on_cache_event,
            may_keep=lambda: loaded.watch.changed() is None,
        )
        chunk = settings.prefill_chunk_tokens
        self._context = build_context(self._cut, forward, live, self._prefixes, self._rates, chunk)
        self._context.on_restore = lambda *read: self._emit(RestoreBegan(*read))
        self._tail = GenerationTail(self._planner.template)
        self._idle = IdleWork(
            self._plan_prompt,
            frozenset(self._planner.codec.control_ids),
            self._context,
            self._rates,
            max_chunk=chunk,
            max_context=min(
                loaded.max_context_tokens, self._cut.max_tokens or loaded.max_context_tokens
            ),
            can_compute=self._cut.kind == "any_token",
        )
        self._prefixes.open(fields)
        self._emit(self._snapshot())

    def run(self, request: TurnRequest, stop: threading.Event) -> Iterator[TurnEvent]:
        """The events of one turn; always ends with TurnFinished or TurnFailed."""
        try:
            with self._prefixes.computing():
                yield from self._run(request, stop)
        except ChatcacheError as error:
            yield TurnFailed(request.turn_id, error)
        except Exception as error:
            log.exception("turn %s failed", request.turn_id)
            self._context.forget()
            yield TurnFailed(
                request.turn_id,
                UnavailableError(
                    f"The model failed: {type(error).__name__}: {error}",
                    f"The traceback is in {self._settings.log_path}.",
                ),
            )

    def estimate(self, journals: Sequence[TokenIds]) -> list[CostEstimate]:
        """The cost of continuing each journal. Changes nothing."""
        if not self._cut.is_cuttable:
            costs = [(len(journal), self._rates.prefill_ms(len(journal))) for journal in journals]
            return [CostEstimate(0, 0, total, cold_ms) for total, cold_ms in costs]
        return [self._context.estimate(journal) for journal in journals]

    def prepare(
        self, request: Prepare, is_wanted: Callable[[], bool]
    ) -> Generator[None, None, Prepared]:
        """Idle work; it ends at the next step once it is not wanted any more."""
        if not self._cut.is_cuttable:
            return Prepared(request.prepare_id, request.kind)
        prepared = yield from self._idle.run(request, is_wanted)
        if prepared.tokens_restored:
            text = f"restored {prepared.tokens_restored:,} tokens ahead, {prepared.seconds:.2f} s"
            self._on_cache_event("restored", text)
        self._emit(self._snapshot())
        return prepared

    def drain(self, timeout: float | None = None) -> bool:
        """Wait until what was said is spilled, as far as it can be."""
        return self._prefixes.drain(timeout)

    def spill(self, segment_id: str | None = None) -> int:
        """Have written what is in memory alone; returns the bytes that will be."""
        return self._prefixes.spill(segment_id)

    def close(self) -> None:
        """Write out what is still to be spilled."""
        self._prefixes.close()
        self._rates.save()

    # one turn, in order

    def _run(self, request: TurnRequest, stop: threading.Event) -> Iterator[TurnEvent]:
        state = self._plan(request)
        self._reuse(state)
        yield self._planned(state)
        yield from self._prefill(state, stop)
        answer = Answer(self._loaded.tokenizer, state.plan)
        try:
            yield from self._decode(state, answer, stop)
        except UnavailableError as error:
            result = self._finish(state, answer)
            yield TurnFailed(request.turn_id, error, result if answer.token_ids else None)
            return
        yield TurnFinished(request.turn_id, self._finish(state, answer))
        self._emit(self._snapshot())

    def _plan_prompt(self, request: TurnRequest) -> PromptPlan:
        self._loaded.check_files()
        return self._planner.plan(
            request.messages,
            request.journal,
            think=request.think,
            continue_answer=request.continue_answer,
            history_mode=request.history_mode,
            num_read=request.num_read,
        )

    def _plan(self, request: TurnRequest) -> TurnState:
        began = time.perf_counter()
        plan = self._plan_prompt(request)
        room = self._loaded.max_context_tokens - len(plan.ids)
        if room <= 0:
            raise ContextFullError(
                f"The conversation has {len(plan.ids):,} tokens, but {self._loaded.name} reads at "
                f"most {self._loaded.max_context_tokens:,}.",
                "Fork from an earlier turn, start a new chat, or shorten the message.",
                len(plan.ids), self._loaded.max_context_tokens,
            )  # fmt: skip
        can_reuse = request.use_cache and self._cut.is_cuttable
        return TurnState(request, plan, room, began, can_reuse)

    def _reuse(self, state: TurnState) -> None:
        """Make the live KV hold the longest reusable prefix of the prompt, and say why not more."""
        reuse = Reuse(0)
        if state.can_reuse:
            reuse = self._context.reuse(state.plan.ids, state.limit)
        else:
            self._context.start_cold(None if self._cut.is_cuttable else self._loaded.model.config)
        state.note_reuse(reuse)
        state.ahead_tokens = self._idle.take_used(state.plan.ids, state.reused)
        if reuse.disk_tokens:
            self._on_cache_event(
                "restored",
                f"restored {reuse.disk_tokens:,} tokens, {size(reuse.bytes_read)}, "
                f"{reuse.seconds:.2f} s",
            )
        self._explain(state, reuse)

    def _explain(self, state: TurnState, reuse: Reuse) -> None:
        divergence = state.plan.diverged
        if divergence is not None and state.reused > state.plan.keep:
            is_read = self._idle.has_read_history(state.request, state.reused)
            divergence = None if is_read else divergence
        facts = TurnFacts(
            prompt_ids=state.plan.ids,
            reused=state.reused,
            keep=state.plan.keep,
            num_journal=len(state.request.journal),
            use_cache=state.request.use_cache,
            cut_problem=self._cut_problem(state, reuse),
            divergence=(divergence.kind, divergence.detail) if divergence else None,
            num_deviating=state.plan.num_deviating,
            previous=state.request.previous,
            num_matched=reuse.num_matched,
            declined=reuse.declined,
            restore_problem=reuse.problem,
            is_damage=reuse.is_damage,
            stopped_at=self._stopped_at(state),
            is_approximate=self._is_approximate(state),
        )
        state.explanation = explain(
            facts,
            self.info.namespace,
            self.info.namespace_fields,
            self._prefixes.damaged,
            self._prefixes.expired,
        )

    def _cut_problem(self, state: TurnState, reuse: Reuse) -> str | None:
        """Why the architecture kept tokens from reuse that are known; None: it did not."""
        if len(state.plan.ids) > (self._cut.max_tokens or len(state.plan.ids)):
            return self._cut.detail
        expected = min(state.plan.keep, state.limit)
        is_known = reuse.problem is None and reuse.num_matched > reuse.num_tokens
        is_cut = self._cut.needs_states and is_known and reuse.num_tokens < expected
        return self._cut.detail if is_cut or not self._cut.is_cuttable else None

    def _is_approximate(self, state: TurnState) -> bool:
        return state.reused > 0 and is_approximate(self.info.namespace_fields)

    def _stopped_at(self, state: TurnState) -> int | None:
        """Where reading a prompt that begins like this was stopped; if long ago: no earlier."""
        for stopped, position in reversed(self._stopped):
            if stopped.common_prefix(state.plan.ids) > position:
                return position
        answered = state.request.num_answered
        return answered if answered != len(state.request.journal) else None

    def _planned(self, state: TurnState) -> TurnPlanned:
        return TurnPlanned(
            turn_id=state.request.turn_id,
            keep=state.plan.keep,
            new_ids=state.plan.ids[state.plan.keep :],
            cached_ram_tokens=state.ram_tokens,
            cached_disk_tokens=state.disk_tokens,
            prompt_tokens=len(state.plan.ids),
            reason=state.explanation.reason,
            detail=state.explanation.detail,
        )

    def _prefill(self, state: TurnState, stop: threading.Event) -> Iterator[TurnEvent]:
        """Compute the rest of the prompt, chunk by chunk; leaves the logits of its last token."""
        turn_id, total = state.request.turn_id, len(state.plan.ids)
        began = time.perf_counter()
        yield PrefillProgress(turn_id, state.reused, total, state.reused)
        stops = (state.plan.system_tokens, self._tail.start(state.plan.ids, state.request.think))
        steps = self._context.prefill(state.plan.ids, state.reused, stops=stops)
        while not stop.is_set() and (step := next(steps, None)) is not None:
            state.computed_to, state.logits = step.done, step.logits
            yield PrefillProgress(turn_id, step.done, total, state.reused)
        state.prefill_seconds = time.perf_counter() - began

    def _decode(
        self, state: TurnState, answer: Answer, stop: threading.Event
    ) -> Iterator[TurnEvent]:
        if state.logits is None or state.computed_to < len(state.plan.ids):
            self._stopped.append((state.plan.ids, state.computed_to))
            answer.finish("stopped")
            return
        params = with_defaults(state.request.sampling, self._loaded.generation_defaults)
        sampler = Sampler(params, state.plan.ids, self._loaded.device)
        limit = min(params.max_new_tokens or state.room, state.room)
        position, logits = len(state.plan.ids), state.logits
        while True:
            token_id = sampler.choose(logits)
            state.note_token()
            yield from answer.push(token_id, state.request.turn_id)
            if token_id in self._loaded.end_token_ids:
                answer.finish("stop")
            elif len(answer.token_ids) >= limit:
                answer.finish("length")
            elif stop.is_set():
                answer.finish("stopped")
            if answer.finish_reason is not None:
                break
            logits = self._context.step(token_id, position)
            position += 1
        yield from answer.close(state.request.turn_id)
        if position < self._loaded.max_context_tokens:
            # The last token closes the turn: with it the KV is the journal, exactly.
            self._context.step(token_id, position)

    def _finish(self, state: TurnState, answer: Answer) -> TurnResult:
        """Commit what is new, and put the figures together."""
        ids = state.plan.ids[: state.computed_to] + TokenIds(answer.token_ids)
        bytes_written = 0
        if state.can_reuse:
            ends = (state.plan.system_tokens, len(state.plan.ids), len(ids))
            bytes_written = self._context.commit(ids, ends)
        else:
            self._context.forget()
        self._rates.save()
        return answer.result(
            usage=state.usage(len(answer.token_ids)),
            timings=state.timings(),
            cache=self._report(state, bytes_written),
        )

    def _report(self, state: TurnState, bytes_written: int) -> CacheReport:
        cold_ms = self._rates.prefill_ms(len(state.plan.ids))
        ttft_ms = state.timings().ttft_ms
        saved_ms = None
        if cold_ms is not None and ttft_ms is not None:
            saved_ms = max(0.0, cold_ms - ttft_ms) if state.reused else 0.0
        return CacheReport(
            outcome=state.explanation.outcome,
            reason=state.explanation.reason,
            diverged_at=state.reused,
            detail=state.explanation.detail,
            estimated_cold_ttft_ms=cold_ms,
            saved_ms=saved_ms,
            bytes_read=state.bytes_read,
            bytes_written=bytes_written,
            is_estimate_measured=self._rates.is_measured,
            system_tokens=state.plan.system_tokens,
            ahead_tokens=state.ahead_tokens,
            is_approximate=self._is_approximate(state),
        )

    # figures

    def _describe(
        self, namespace: str, fields: dict[str, str], kv_bytes: int, checkpoint_bytes: int
    ) -> ModelInfo:
        loaded = self._loaded
        return ModelInfo(
            model=loaded.name,
            backend="local",
            architecture=loaded.architecture,
            num_parameters=loaded.num_parameters,
            dtype=str(loaded.dtype).removeprefix("torch."),
            device=str(loaded.device),
            num_layers=loaded.num_layers,
            kv_bytes_per_token=kv_bytes,
            checkpoint_bytes=checkpoint_bytes,
            max_context_tokens=loaded.max_context_tokens,
            cut=self._cut.kind,
            cut_detail=self._cut.detail,
            tokenizer_id=loaded.tokenizer_id,
            namespace=namespace,
            namespace_fields=fields,
            description=loaded.description,
            load_ms=loaded.load_ms,
        )

    def _snapshot(self) -> CacheSnapshot:
        ram, disk = self._prefixes.use()
        rows = self._prefixes.rows(self._context.ids, _SNAPSHOT_ROWS)
        return CacheSnapshot(
            ram, disk, self._context.num_tokens, self._context.num_bytes, tuple(rows)
        )

    def _on_cache_event(self, kind: str, text: str) -> None:
        self._emit(CacheEvent(time.time(), kind, text))  # type: ignore[arg-type]
        if kind in ("spilled", "evicted"):
            self._emit(self._snapshot())
