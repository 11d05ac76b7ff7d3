"""Where a turn goes: render, match, restore, prefill, decode, commit (the spill follows behind).

It deals in requests and events; the conversation database and the channel to the front end are not
known here. Everything runs in one thread under one grad mode; the cache's writer thread only reads
blocks that never change. `assemble.py` puts the parts together.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from pathlib import Path

from chatcache.backends.base import (
    CacheReport,
    CostEstimate,
    ModelInfo,
    PrefillProgress,
    Prepare,
    Prepared,
    TurnEvent,
    TurnFailed,
    TurnFinished,
    TurnPlanned,
    TurnRequest,
    TurnResult,
)
from chatcache.backends.local.model.loader import LoadedModel
from chatcache.backends.local.run.cache_reporter import CacheReporter
from chatcache.backends.local.run.explainer import TurnExplainer
from chatcache.backends.local.run.generated_answer import GeneratedAnswer
from chatcache.backends.local.run.idle import IdleWork
from chatcache.backends.local.run.live_context import LiveContext, Reuse
from chatcache.backends.local.run.sampling import Sampler, with_defaults
from chatcache.backends.local.run.turn_planner import TurnPlanner
from chatcache.backends.local.run.turn_state import TurnState
from chatcache.errors import ChatcacheError, UnavailableError
from chatcache.formatting import size
from chatcache.token_ids import TokenIds

log = logging.getLogger(__name__)


class TurnRunner:
    """Answers turns on one loaded model, one at a time."""

    def __init__(
        self,
        loaded: LoadedModel,
        info: ModelInfo,
        planner: TurnPlanner,
        context: LiveContext,
        idle: IdleWork,
        explainer: TurnExplainer,
        reporter: CacheReporter,
        log_path: Path | None,
    ):
        self.info = info
        self._loaded = loaded
        self._planner = planner
        self._context = context
        self._prefixes = context.prefixes
        self._rates = context.rates
        self._idle = idle
        self._explainer = explainer
        self._reporter = reporter
        self._log_path = log_path

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
                    f"The traceback is in {self._log_path}.",
                ),
            )

    def estimate(self, journals: Sequence[TokenIds]) -> list[CostEstimate]:
        """The cost of continuing each journal. Changes nothing."""
        return [self._context.estimate(journal) for journal in journals]

    def prepare(
        self, request: Prepare, is_wanted: Callable[[], bool]
    ) -> Generator[None, None, Prepared]:
        """Idle work; it ends at the next step once it is not wanted any more."""
        if self.info.cut == "none":
            return Prepared(request.prepare_id, request.kind)
        prepared = yield from self._idle.run(request, is_wanted)
        if prepared.tokens_restored:
            text = f"restored {prepared.tokens_restored:,} tokens ahead, {prepared.seconds:.2f} s"
            self._reporter.note("restored", text)
        self._reporter.show()
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
        state = self._planner.turn(request)
        self._reuse(state)
        yield _planned(state)
        yield from self._prefill(state, stop)
        answer = GeneratedAnswer(self._loaded.tokenizer, state.plan)
        try:
            yield from self._decode(state, answer, stop)
        except UnavailableError as error:
            result = self._finish(state, answer)
            yield TurnFailed(request.turn_id, error, result if answer.token_ids else None)
            return
        yield TurnFinished(request.turn_id, self._finish(state, answer))
        self._reporter.show()

    def _reuse(self, state: TurnState) -> None:
        """Make the live KV hold the longest reusable prefix of the prompt, and say why not more."""
        reuse = Reuse(0)
        if state.request.use_cache:
            reuse = self._context.reuse(state.plan.ids, state.limit)
        else:
            self._context.start_cold()
        state.note_reuse(reuse)
        state.ahead_tokens = self._idle.take_used(state.plan.ids, state.reused)
        if reuse.disk_tokens:
            self._reporter.note(
                "restored",
                f"restored {reuse.disk_tokens:,} tokens, {size(reuse.bytes_read)}, "
                f"{reuse.seconds:.2f} s",
            )
        state.explanation = self._explainer.explain(state, reuse)

    def _prefill(self, state: TurnState, stop: threading.Event) -> Iterator[TurnEvent]:
        """Compute the rest of the prompt, chunk by chunk; leaves the logits of its last token."""
        turn_id, total = state.request.turn_id, len(state.plan.ids)
        began = time.perf_counter()
        yield PrefillProgress(turn_id, state.reused, total, state.reused)
        ends = self._planner.message_ends(state.plan, state.request.think)
        steps = self._context.prefill(state.plan.ids, state.reused, stops=ends)
        while not stop.is_set() and (step := next(steps, None)) is not None:
            state.computed_to, state.logits = step.done, step.logits
            yield PrefillProgress(turn_id, step.done, total, state.reused)
        state.prefill_seconds = time.perf_counter() - began

    def _decode(
        self, state: TurnState, answer: GeneratedAnswer, stop: threading.Event
    ) -> Iterator[TurnEvent]:
        if state.logits is None or state.computed_to < len(state.plan.ids):
            self._explainer.note_stopped(state.plan.ids, state.computed_to)
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
            # Once the last token has been read, too, the KV holds exactly the journal.
            self._context.step(token_id, position)

    def _finish(self, state: TurnState, answer: GeneratedAnswer) -> TurnResult:
        """Commit what is new, and put the figures together."""
        ids = state.plan.ids[: state.computed_to] + TokenIds(answer.token_ids)
        bytes_written = 0
        if state.request.use_cache:
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
            is_approximate=self._explainer.is_approximate(state),
        )


def _planned(state: TurnState) -> TurnPlanned:
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
