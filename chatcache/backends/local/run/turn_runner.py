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
from dataclasses import dataclass, replace
from pathlib import Path

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
    TurnEvent,
    TurnFailed,
    TurnFinished,
    TurnPlanned,
    TurnRequest,
    TurnResult,
)
from chatcache.backends.local.model.failures import without_gpu
from chatcache.backends.local.model.loader import LoadedModel
from chatcache.backends.local.run.idle import IdleWork
from chatcache.backends.local.run.live_context import LiveContext, LivePath
from chatcache.backends.local.run.loops import LoopWatch
from chatcache.backends.local.run.reasons import TurnExplainer
from chatcache.backends.local.run.sampling import Sampler, with_defaults
from chatcache.backends.local.run.turn import GeneratedAnswer, TurnPlanner, TurnState
from chatcache.backends.local.study.answers import Answers
from chatcache.backends.questions import Answer, Question
from chatcache.backends.usage import DEFAULT_NEW_TOKENS
from chatcache.cache.prefix import PrefixCache
from chatcache.errors import ChatcacheError, NotFiniteError, UnavailableError
from chatcache.formatting import size
from chatcache.token_ids import TokenIds

log = logging.getLogger(__name__)

_SNAPSHOT_ROWS = 50


class CacheReporter:
    """Tells the front end what the cache of a model does, and what it holds.

    `prefixes` is set before anything is reported: the cache itself reports here."""

    prefixes: PrefixCache

    def __init__(self, emit: Callable[[BackendEvent], None], path: LivePath):
        self._emit = emit
        self._path = path

    def note(self, kind: str, text: str) -> None:
        """Something has happened; what is held is shown, too, where that changed."""
        self._emit(CacheEvent(time.time(), kind, text))  # type: ignore[arg-type]
        if kind in ("spilled", "evicted"):
            self.show()

    def show(self) -> None:
        """What is held in RAM and on disk, and what is live."""
        ram, disk = self.prefixes.use()
        rows = self.prefixes.rows(self._path.ids, _SNAPSHOT_ROWS)
        live = self._path.kv
        vram = self.prefixes.vram.use()
        tokens, pinned = live.num_tokens, live.pinned_bytes
        self._emit(CacheSnapshot(ram, disk, tokens, tuple(rows), vram, pinned))


@dataclass(frozen=True, slots=True)
class TurnRunner:
    """Answers turns on one loaded model, one at a time."""

    loaded: LoadedModel
    info: ModelInfo
    planner: TurnPlanner
    context: LiveContext
    idle: IdleWork
    explainer: TurnExplainer
    reporter: CacheReporter
    answers: Answers
    log_path: Path | None

    def run(self, request: TurnRequest, stop: threading.Event) -> Iterator[TurnEvent]:
        """The events of one turn; always ends with TurnFinished or TurnFailed."""
        try:
            with self.context.prefixes.computing():
                yield from self._run(request, stop)
        except NotFiniteError as error:
            self.context.path.forget()
            yield TurnFailed(request.turn_id, error)
        except ChatcacheError as error:
            yield TurnFailed(request.turn_id, error)
        except Exception as error:
            log.exception("turn %s failed", request.turn_id)
            self.context.path.forget()
            yield TurnFailed(
                request.turn_id,
                UnavailableError(
                    f"The model failed: {type(error).__name__}: {error}",
                    f"The traceback is in {self.log_path}.{without_gpu(error)}",
                ),
            )

    def estimate(self, journals: Sequence[TokenIds]) -> list[CostEstimate]:
        """The cost of continuing each journal. Changes nothing."""
        return [self.context.estimate(journal) for journal in journals]

    def study(self, question: Question) -> Generator[None, None, Answer]:
        """What the model and its cache have to say; what can be gone on with is as it was."""
        return self.answers.to(question)

    def prepare(
        self, request: Prepare, is_wanted: Callable[[], bool]
    ) -> Generator[None, None, Prepared]:
        """Idle work; it ends at the next step once it is not wanted any more."""
        if self.info.cut == "none":
            return Prepared(request.prepare_id, request.kind)
        prepared = yield from self.idle.run(request, is_wanted)
        if prepared.tokens_restored:
            text = f"restored {prepared.tokens_restored:,} tokens ahead, {prepared.seconds:.2f} s"
            self.reporter.note("restored", text)
        self.reporter.show()
        return prepared

    def look_ahead(self) -> bool:
        """Make one of the things that the next turn would have to wait for; False: all is there."""
        path = self.context.path
        return path.forward.look_ahead(path.kv)

    def drain(self, timeout: float | None = None) -> bool:
        """Wait until what was said is spilled, as far as it can be."""
        return self.context.prefixes.drain(timeout)

    def spill(self, segment_id: str | None = None) -> int:
        """Have written what is in memory alone; returns the bytes that will be."""
        return self.context.prefixes.spill(segment_id)

    def forget_deleted(self, *, is_all: bool) -> None:
        """Give up in memory what has been deleted on disk, or all that is in memory. Between
        turns: nothing is live afterwards."""
        self.context.path.forget()
        self.answers.forget()
        self.context.prefixes.forget_deleted(is_all=is_all)
        self.reporter.show()

    def is_outdated(self) -> bool:
        """Whether the files that the model was loaded from are other ones by now."""
        return self.loaded.watch.is_outdated()

    def close(self) -> None:
        """Write out what is still to be spilled."""
        self.context.prefixes.close()
        self.context.rates.save()

    # one turn, in order

    def _run(self, request: TurnRequest, stop: threading.Event) -> Iterator[TurnEvent]:
        state = self.planner.turn(request)
        self._reuse(state)
        yield _planned(state)
        yield from self._prefill(state, stop)
        answer = self.planner.answer(state)
        try:
            yield from self._decode(state, answer, stop)
        except UnavailableError as error:
            is_sound = not isinstance(error, NotFiniteError)
            result = self._finish(state, answer, may_keep=is_sound)
            yield TurnFailed(request.turn_id, error, result if answer.token_ids else None)
            return
        yield TurnFinished(request.turn_id, self._finish(state, answer))
        self.reporter.show()

    def _reuse(self, state: TurnState) -> None:
        """Make the live KV hold the longest reusable prefix of the prompt, and say why not more."""
        if state.request.use_cache:
            state.reuse = self.context.reuse(state.plan.ids, state.limit)
        else:
            self.context.start_cold()
        reuse, state.computed_to = state.reuse, state.reused
        state.ahead_tokens = self.idle.ahead.take_used(state.plan.ids, state.reused)
        if reuse.disk_tokens:
            self.reporter.note(
                "restored",
                f"restored {reuse.disk_tokens:,} tokens, {size(reuse.bytes_read)}, "
                f"{reuse.seconds:.2f} s",
            )
        state.explanation = self.explainer.explain(state)

    def _prefill(self, state: TurnState, stop: threading.Event) -> Iterator[TurnEvent]:
        """Compute the rest of the prompt, chunk by chunk; leaves the logits of its last token."""
        turn_id, total = state.request.turn_id, len(state.plan.ids)
        began = time.perf_counter()
        yield PrefillProgress(turn_id, state.reused, total, state.reused)
        ends = self.planner.message_ends(state.plan, state.request.think)
        steps = self.context.prefill(state.plan.ids, state.reused, stops=ends)
        while not stop.is_set() and (step := next(steps, None)) is not None:
            state.computed_to, state.logits = step.done, step.logits
            yield PrefillProgress(turn_id, step.done, total, state.reused)
        state.prefill_seconds = time.perf_counter() - began

    def _decode(
        self, state: TurnState, answer: GeneratedAnswer, stop: threading.Event
    ) -> Iterator[TurnEvent]:
        if state.logits is None or state.computed_to < len(state.plan.ids):
            self.explainer.stopped.append((state.plan.ids, state.computed_to))
            answer.finish_reason = "stopped"
            return
        params = with_defaults(state.request.sampling, self.loaded.generation_defaults)
        likeliest = self.context.path.forward.likeliest
        sampler = Sampler(params, state.plan.ids, self.loaded.device, likeliest)
        limit = min(params.max_new_tokens or DEFAULT_NEW_TOKENS, state.room)
        position, logits = len(state.plan.ids), state.logits
        loops = LoopWatch()
        while True:
            token_id = sampler.choose(logits)
            state.note_token()
            yield from answer.push(token_id)
            if answer.finish_reason is None:
                if loops.push(token_id):
                    answer.finish_reason, state.num_sound = "loop", loops.num_sound
                elif len(answer.token_ids) >= limit:
                    answer.finish_reason = "length"
                elif stop.is_set():
                    answer.finish_reason = "stopped"
            if answer.finish_reason is not None:
                break
            logits = self.context.step(token_id, position)
            position += 1
        yield from answer.close()
        # States cannot go back to where the answer ended.
        has_ended_before = self.info.cut != "turn_boundary" and answer.drop_next_turn()
        is_kept = not has_ended_before and state.num_sound is None
        if is_kept and position < self.loaded.max_context_tokens:
            # Once the last token has been read, too, the KV holds exactly the journal.
            self.context.step(token_id, position)

    def _finish(
        self, state: TurnState, answer: GeneratedAnswer, *, may_keep: bool = True
    ) -> TurnResult:
        """Commit what is new, if it may be kept, and put the figures together."""
        ids = state.plan.ids[: state.computed_to] + TokenIds(answer.token_ids)
        bytes_written = 0
        if state.num_sound is not None:  # K and V of a loop are worth neither memory nor disk
            sound = state.computed_to + state.num_sound
            self.explainer.stopped.append((ids, sound))
            ids = ids[:sound]
        if state.request.use_cache and may_keep:
            ends = (state.plan.system_tokens, len(state.plan.ids), len(ids))
            bytes_written = self.context.commit(ids, ends)
        else:
            self.context.path.forget()
        # Of a device: what was only queued for it is there by now.
        brought = self.context.note_brought()
        state.reuse = replace(state.reuse, seconds=state.reuse.seconds + brought)
        self.context.rates.save()
        return answer.result(
            usage=state.usage(len(answer.token_ids)),
            timings=state.timings(),
            cache=self._report(state, bytes_written),
        )

    def _report(self, state: TurnState, bytes_written: int) -> CacheReport:
        cold_ms = self.context.rates.prefill_ms(len(state.plan.ids))
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
            bytes_read=state.reuse.bytes_read,
            bytes_written=bytes_written,
            is_estimate_measured=self.context.rates.is_measured,
            system_tokens=state.plan.system_tokens,
            ahead_tokens=state.ahead_tokens,
            is_approximate=self.explainer.is_approximate(state),
            runs=state.reuse.runs,
        )


def _planned(state: TurnState) -> TurnPlanned:
    return TurnPlanned(
        turn_id=state.request.turn_id,
        keep=state.plan.keep,
        new_ids=state.plan.ids[state.plan.keep :],
        cached_ram_tokens=state.ram_tokens,
        cached_disk_tokens=state.reuse.disk_tokens,
        prompt_tokens=len(state.plan.ids),
        reason=state.explanation.reason,
        detail=state.explanation.detail,
    )
