"""The live context of a model with states: recurrent or convolution layers.

A state sums up the whole past and cannot be taken back, so a path can be gone on with only from its
live end, or from a position where a checkpoint was taken: behind the system prompt, the last user
message, the answer.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import torch

from chatcache.backends.local.run.choices import read_words
from chatcache.backends.local.run.live_context import (
    LiveContext,
    PrefillStep,
    Reuse,
    chunks,
    live_run,
)
from chatcache.cache.book.rates import CLEARLY_DEARER
from chatcache.cache.tensors.blocks import TensorBlock
from chatcache.cache.views import CostEstimate
from chatcache.formatting import plural
from chatcache.token_ids import TokenIds

_MAX_TRIES = 8


@dataclass
class CheckpointContext(LiveContext):
    """`chunk`: the most tokens of a prompt that are given to the model at once. With `is_stepwise`,
    several tokens are right in one call only before any state: the rest of a prompt is computed one
    by one."""

    chunk: int
    is_stepwise: bool
    _checkpoints: dict[int, dict[str, torch.Tensor]] = field(default_factory=dict, init=False)
    _step_seconds: float | None = field(default=None, init=False)

    def reuse(self, ids: TokenIds, limit: int) -> Reuse:
        """Make the live context stand at the longest known prefix of at most `limit` ids that ends
        at a checkpoint, or where it stands already."""
        self._checkpoints.clear()
        began = time.perf_counter()
        problem: Reuse | None = None
        for _ in range(_MAX_TRIES):
            reuse = self._reuse_once(ids, limit)
            if reuse.problem is None:
                break
            problem = problem or reuse
            self.path.forget()
            reuse = Reuse()
        self.path.computed_from = self.path.num_kept = reuse.num_tokens
        seconds = time.perf_counter() - began
        if problem is not None:
            reuse = replace(reuse, problem=problem.problem, is_damage=problem.is_damage)
        declined = self._decline_steps(reuse.num_tokens, len(ids))
        if declined is not None:
            self.start_cold()
            return Reuse(num_matched=reuse.num_matched, seconds=seconds, declined=declined)
        return replace(reuse, seconds=seconds)

    def prefill(
        self, ids: TokenIds, start: int, chunk: int | None = None, stops: Sequence[int] = ()
    ) -> Iterator[PrefillStep]:
        """Checkpoints are taken at `stops`. A pace that is one step per token tells nothing of the
        pace of whole prompts."""
        began = time.perf_counter()
        pieces = self._pieces(start, len(ids), chunk or self.chunk, stops)
        is_typical = chunk is None and (start == 0 or not self.is_stepwise)
        try:
            for step in self.path.run(ids, pieces):
                if step.done in stops:
                    self._checkpoints[step.done] = self.path.kv.copy_states()
                if step.done == len(ids) and is_typical:
                    self.rates.note_prefill(len(ids) - start, time.perf_counter() - began, start)
                yield step
        except Exception:
            self.path.kv.is_torn = True  # some layers' states have moved on and others have not
            raise

    def step(self, token_id: int, position: int) -> torch.Tensor:
        path = self.path
        began = time.perf_counter()
        try:
            logits = path.forward(path.kv, [token_id], position)
        except Exception:
            self.path.kv.is_torn = True  # some layers' states have moved on and others have not
            raise
        seconds = time.perf_counter() - began
        before = self._step_seconds
        self._step_seconds = seconds if before is None else 0.9 * before + 0.1 * seconds
        path.kv.note_computed(position + 1)
        return logits

    def commit(self, ids: TokenIds, boundaries: Sequence[int]) -> int:
        """Keep what is live of this path, in segments that end at the checkpoints taken on the way
        and at its end. `boundaries` are not asked: states cannot be had anywhere else.

        Where more is live than `ids`, only what ends at an earlier checkpoint can be kept."""
        path = self.path
        held = path.kv.num_tokens
        taken, self._checkpoints = self._checkpoints, {}
        is_whole = held <= len(ids)
        if not is_whole:
            taken = {at: states for at, states in taken.items() if at <= len(ids)}
            held = max(taken, default=0)
        if path.kv.is_torn or held == 0:
            path.forget()
            return 0

        def export(start: int, stop: int) -> TensorBlock:
            return path.kv.export(start, stop, taken[stop])

        if is_whole:
            path.hold(ids, held)
            if held > path.computed_from:
                taken[held] = path.kv.copy_states()
            path.num_kept = held
        num_bytes = self.prefixes.commit(ids[:held], sorted(taken), export, path.computed_from)
        if not is_whole:
            path.forget()
        path.forget_unsettled()
        return num_bytes

    def estimate(self, ids: TokenIds) -> CostEstimate:
        held, num_live = self.prefixes.lookup(ids).held, self._num_usable(ids, len(ids))
        return self.rates.estimate(held, num_live, len(ids), can_decline=False)

    def _reuse_once(self, ids: TokenIds, limit: int) -> Reuse:
        path = self.path
        live = self._num_usable(ids, limit)
        with self.prefixes.acquire(ids, limit) as lease:
            num_matched = max(live, lease.num_matched)
            if live and live >= lease.num_tokens:
                return Reuse(live_run(live), num_matched=num_matched)
            start = min(path.ids.common_prefix(ids), lease.num_tokens)
            path.hold(ids, start)
            tokens = self.prefixes.restore(lease, path.kv, start)
            self.note_transfers(tokens)
            path.hold(ids, tokens.num_tokens)
            if tokens.problem is not None:
                return Reuse(problem=tokens.problem, is_damage=tokens.is_damage)
            states = self.prefixes.restore_states(lease, path.kv)
            self.note_transfers(states)
        return Reuse(
            runs=tokens.runs,
            num_matched=num_matched,
            bytes_read=tokens.bytes_read + states.bytes_read,
            read=read_words(self.rates, tokens, lease.held, len(ids)),
            problem=states.problem,
            is_damage=states.is_damage,
        )

    def _decline_steps(self, num_reused: int, num_prompt: int) -> str | None:
        """Why it is better to compute the whole prompt at once than its rest step by step."""
        cold_ms, num_steps = self.rates.prefill_ms(num_prompt), num_prompt - num_reused
        is_known = cold_ms is not None and self._step_seconds is not None
        if not (self.is_stepwise and num_reused and is_known and self.rates.is_measured):
            return None
        step_ms = 1000 * (self._step_seconds or 0.0) * num_steps
        if step_ms <= CLEARLY_DEARER * (cold_ms or 0.0):
            return None
        return (
            f"reading {plural(num_steps, 'token')} one by one would take about {step_ms:,.0f} ms, "
            f"the whole prompt at once about {cold_ms:,.0f} ms"
        )

    def _pieces(
        self, start: int, stop: int, chunk: int, stops: Sequence[int]
    ) -> Iterator[tuple[int, int]]:
        inside = sorted({at for at in stops if start < at < stop})
        if not self.is_stepwise:
            for begin, end in zip([start, *inside], [*inside, stop], strict=True):
                yield from chunks(begin, end, chunk)
            return
        if start == 0:
            # One piece as long as can be: what follows a state costs a step per token.
            start = inside[-1] if inside else stop
            yield 0, start
        yield from chunks(start, stop, 1)

    def _num_usable(self, ids: TokenIds, limit: int) -> int:
        """All tokens that are live, if the path goes on behind them; else none can be used."""
        kv, live = self.path.kv, self.path.ids.common_prefix(ids)
        is_whole = live == kv.num_tokens and not kv.is_torn
        return live if is_whole and live <= limit else 0
