"""Where a turn goes: render, match, restore, prefill, decode, commit (the spill follows behind).

A `TurnRunner` owns the live KV of the active path and the prefix cache of its model. It deals in
requests and events; the conversation database and the pipe are not known here. Everything runs in
one thread under one grad mode; the cache's writer thread only reads blocks that never change.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence

from chatcache.backends.base import (
    BackendEvent,
    CacheEvent,
    CacheReport,
    CacheSnapshot,
    CostEstimate,
    ModelInfo,
    PrefillProgress,
    TurnEvent,
    TurnFailed,
    TurnFinished,
    TurnPlanned,
    TurnRequest,
    TurnResult,
)
from chatcache.backends.local.answer import Answer
from chatcache.backends.local.context import LiveContext, Reuse
from chatcache.backends.local.cut import cut_policy
from chatcache.backends.local.generate import Forward
from chatcache.backends.local.identity import namespace_fields
from chatcache.backends.local.journal import PromptPlanner
from chatcache.backends.local.loader import LoadedModel
from chatcache.backends.local.reasons import TurnFacts, explain
from chatcache.backends.local.sampling import Sampler, with_defaults
from chatcache.backends.local.settings import EngineSettings
from chatcache.backends.local.state import TurnState
from chatcache.cache.kv import LiveKV
from chatcache.cache.namespace import namespace_id
from chatcache.cache.prefix import PrefixCache
from chatcache.cache.rates import MIN_MEASURED_TOKENS, RateBook
from chatcache.cache.tokens import pack
from chatcache.errors import ChatcacheError, ContextFullError, UnavailableError

log = logging.getLogger(__name__)

_SNAPSHOT_ROWS = 50


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
        self._cut = cut_policy(loaded.model.config.get_text_config())
        forward = Forward(loaded.model, loaded.device)
        live = LiveKV(loaded.num_layers, loaded.dtype, loaded.device)
        fields = namespace_fields(loaded)
        namespace = namespace_id(fields)
        self._rates = RateBook(settings.cache_dir / "segments" / namespace / "rates.json")
        self.info = self._describe(namespace, fields, self._warm_up(forward, live))
        self._prefixes = PrefixCache(
            settings.cache_dir,
            namespace,
            ram_budget=settings.ram_budget,
            disk_budget=settings.disk_budget,
            policy=settings.policy,
            is_spilling=self._cut.is_cuttable,
            on_event=self._on_cache_event,
        )
        chunk = settings.prefill_chunk_tokens
        self._context = LiveContext(forward, live, self._prefixes, self._rates, chunk)
        self._prefixes.open(fields)
        self._emit(self._snapshot())

    def run(self, request: TurnRequest, stop: threading.Event) -> Iterator[TurnEvent]:
        """The events of one turn; always ends with TurnFinished or TurnFailed."""
        try:
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

    def estimate(self, journals: Sequence[tuple[int, ...]]) -> list[CostEstimate]:
        """The cost of continuing each journal. Changes nothing."""
        if not self._cut.is_cuttable:
            costs = [(len(journal), self._rates.prefill_ms(len(journal))) for journal in journals]
            return [CostEstimate(0, 0, total, cold_ms) for total, cold_ms in costs]
        return [self._context.estimate(pack(journal)) for journal in journals]

    def drain(self, timeout: float | None = None) -> bool:
        """Wait until what was said is spilled, as far as it can be."""
        return self._prefixes.drain(timeout)

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

    def _plan(self, request: TurnRequest) -> TurnState:
        began = time.perf_counter()
        plan = self._planner.plan(
            request.messages,
            request.journal,
            think=request.think,
            continue_answer=request.continue_answer,
        )
        room = self._loaded.max_context_tokens - len(plan.ids)
        if room <= 0:
            raise ContextFullError(
                f"The conversation has {len(plan.ids):,} tokens, but {self._loaded.name} reads at "
                f"most {self._loaded.max_context_tokens:,}.",
                "Fork from an earlier turn, start a new chat, or shorten the message.",
            )
        can_reuse = request.use_cache and self._cut.is_cuttable
        return TurnState(request, plan, pack(plan.ids), room, began, can_reuse)

    def _reuse(self, state: TurnState) -> None:
        """Make the live KV hold the longest reusable prefix of the prompt, and say why not more."""
        reuse = Reuse(0)
        if state.can_reuse:
            reuse = self._context.reuse(state.packed, state.limit)
        else:
            is_whole = self._cut.is_cuttable
            self._context.start_cold(None if is_whole else self._loaded.model.config)
        state.note_reuse(reuse)
        if reuse.disk_tokens:
            self._on_cache_event(
                "restored",
                f"restored {reuse.disk_tokens:,} tokens, {reuse.bytes_read / 1e6:.1f} MB, "
                f"{reuse.seconds:.2f} s",
            )
        self._explain(state, reuse)

    def _explain(self, state: TurnState, reuse: Reuse) -> None:
        divergence = state.plan.diverged
        facts = TurnFacts(
            prompt_ids=state.packed,
            reused=state.reused,
            keep=state.plan.keep,
            num_journal=len(state.request.journal),
            use_cache=state.request.use_cache,
            cut_problem=None if self._cut.is_cuttable else self._cut.detail,
            divergence=(divergence.kind, divergence.detail) if divergence else None,
            previous=state.request.previous,
            num_matched=reuse.num_matched,
            restore_problem=reuse.problem,
            is_damage=reuse.is_damage,
        )
        state.explanation = explain(
            facts,
            self.info.namespace,
            self.info.namespace_fields,
            self._prefixes.damaged,
            self._prefixes.expired,
        )

    def _planned(self, state: TurnState) -> TurnPlanned:
        return TurnPlanned(
            turn_id=state.request.turn_id,
            keep=state.plan.keep,
            new_ids=tuple(state.plan.ids[state.plan.keep :]),
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
        steps = self._context.prefill(state.packed, state.plan.ids, state.reused)
        while not stop.is_set() and (step := next(steps, None)) is not None:
            state.computed_to, state.logits = step.done, step.logits
            yield PrefillProgress(turn_id, step.done, total, state.reused)
        state.prefill_seconds = time.perf_counter() - began

    def _decode(
        self, state: TurnState, answer: Answer, stop: threading.Event
    ) -> Iterator[TurnEvent]:
        if state.logits is None or state.computed_to < len(state.plan.ids):
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
        ids = [*state.plan.ids[: state.computed_to], *answer.token_ids]
        bytes_written = 0
        if state.can_reuse:
            ends = (state.plan.system_tokens, len(state.plan.ids), len(ids))
            bytes_written = self._context.commit(pack(ids), ends)
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
        )

    # figures

    def _warm_up(self, forward: Forward, live: LiveKV) -> int:
        """Run the model once; returns the bytes of K and V per token (0: they are not ours).

        Where nothing was measured before, the run is long enough to tell the prefill rate."""
        if not self._cut.is_cuttable:
            return 0
        forward(live, [0], 0)
        num_bytes = live.num_bytes
        if not self._rates.is_measured:
            live.truncate(0)
            began = time.perf_counter()
            forward(live, [0] * MIN_MEASURED_TOKENS, 0)
            self._rates.note_prefill(MIN_MEASURED_TOKENS, time.perf_counter() - began)
        live.truncate(0)
        return num_bytes

    def _describe(self, namespace: str, fields: dict[str, str], kv_bytes: int) -> ModelInfo:
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
        rows = self._prefixes.rows(self._context.ids)[:_SNAPSHOT_ROWS]
        return CacheSnapshot(
            ram, disk, self._context.num_tokens, self._context.num_bytes, tuple(rows)
        )

    def _on_cache_event(self, kind: str, text: str) -> None:
        self._emit(CacheEvent(time.time(), kind, text))  # type: ignore[arg-type]
        if kind in ("spilled", "evicted"):
            self._emit(self._snapshot())
