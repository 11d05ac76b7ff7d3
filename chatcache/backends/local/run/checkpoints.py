"""The live context of a model with states: recurrent or convolution layers.

A state sums up the whole past and cannot be taken back, so a path can be gone on with only from its
live end, or from a position where a checkpoint was taken: behind the system prompt, the last user
message, the answer. Everything else is `context.py`'s.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch

from chatcache.backends.local.run.forward import chunks
from chatcache.backends.local.run.live_context import LiveContext, PrefillStep, Reuse
from chatcache.cache.book.rates import CLEARLY_DEARER
from chatcache.cache.tensors.blocks import TensorBlock
from chatcache.formatting import plural
from chatcache.token_ids import TokenIds

_MAX_TRIES = 8


class CheckpointContext(LiveContext):
    """With `is_stepwise`, several tokens are right in one call only before any state: the rest of
    a prompt is computed one by one."""

    def __init__(self, *args: Any, is_stepwise: bool = False):
        super().__init__(*args)
        self._is_stepwise = is_stepwise
        self._checkpoints: dict[int, dict[str, torch.Tensor]] = {}
        self._step_seconds: float | None = None

    def reuse(self, ids: TokenIds, limit: int) -> Reuse:
        """Make the live context stand at the longest known prefix of at most `limit` ids that ends
        at a checkpoint, or where it stands already."""
        self._cache = self._live
        self._checkpoints.clear()
        began = time.perf_counter()
        problem: Reuse | None = None
        for _ in range(_MAX_TRIES):
            reuse = self._reuse_once(ids, limit)
            if reuse.problem is None:
                break
            problem = problem or reuse
            self.forget()
            reuse = Reuse(0)
        self._computed_from = self._kept = reuse.num_tokens
        seconds = time.perf_counter() - began
        if reuse.bytes_read:
            self._rates.note_restore(reuse.bytes_read, seconds)
        if problem is not None:
            reuse = replace(reuse, problem=problem.problem, is_damage=problem.is_damage)
        declined = self._decline_steps(reuse.num_tokens, len(ids))
        if declined is not None:
            self.forget()
            self._computed_from = 0
            return Reuse(0, num_matched=reuse.num_matched, seconds=seconds, declined=declined)
        return replace(reuse, seconds=seconds)

    def _decline_steps(self, num_reused: int, num_prompt: int) -> str | None:
        """Why it is better to compute the whole prompt at once than its rest step by step."""
        cold_ms, num_steps = self._rates.prefill_ms(num_prompt), num_prompt - num_reused
        is_known = cold_ms is not None and self._step_seconds is not None
        if not (self._is_stepwise and num_reused and is_known and self._rates.is_measured):
            return None
        step_ms = 1000 * (self._step_seconds or 0.0) * num_steps
        if step_ms <= CLEARLY_DEARER * (cold_ms or 0.0):
            return None
        return (
            f"reading {plural(num_steps, 'token')} one by one would take about {step_ms:,.0f} ms, "
            f"the whole prompt at once about {cold_ms:,.0f} ms"
        )

    def _reuse_once(self, ids: TokenIds, limit: int) -> Reuse:
        live = self._live_tokens(ids, limit)
        with self._prefixes.acquire(ids, limit) as lease:
            num_matched = max(live, lease.num_matched)
            if live and live >= lease.num_tokens:
                return Reuse(live, num_matched=num_matched)
            start = min(self._ids.common_prefix(ids), lease.num_tokens)
            self._set_length(ids, start)
            tokens = self._prefixes.restore(lease, self._live, start)
            self._set_length(ids, tokens.num_tokens)
            if tokens.problem is not None:
                return Reuse(0, problem=tokens.problem, is_damage=tokens.is_damage)
            states = self._prefixes.restore_states(lease, self._live)
        return Reuse(
            num_tokens=tokens.num_tokens,
            num_matched=num_matched,
            disk_tokens=tokens.disk_tokens,
            bytes_read=tokens.bytes_read + states.bytes_read,
            problem=states.problem,
            is_damage=states.is_damage,
        )

    def commit(self, ids: TokenIds, boundaries: Sequence[int]) -> int:
        """Keep what is live of this path, in segments that end at the checkpoints taken on the way
        and at its end. `boundaries` are not asked: states cannot be had anywhere else."""
        if self._live.is_torn or self._live.num_tokens > len(ids):
            self.forget()
            return 0
        held = self._live.num_tokens
        self._set_length(ids, held)
        taken, self._checkpoints = self._checkpoints, {}
        if held > self._computed_from:
            taken[held] = self._live.copy_states()
        computed_from, self._kept = self._computed_from, held

        def export(start: int, stop: int) -> TensorBlock:
            return self._live.export(start, stop, taken[stop])

        num_bytes = self._prefixes.commit(self._ids, sorted(taken), export, computed_from)
        self._stay_settled()
        return num_bytes

    def prefill(self, *args: Any, **options: Any) -> Iterator[PrefillStep]:
        with self._torn_by_failure():
            yield from super().prefill(*args, **options)

    def step(self, token_id: int, position: int) -> torch.Tensor:
        began = time.perf_counter()
        with self._torn_by_failure():
            logits = super().step(token_id, position)
        seconds = time.perf_counter() - began
        before = self._step_seconds
        self._step_seconds = seconds if before is None else 0.9 * before + 0.1 * seconds
        if self._cache is self._live:
            self._live.note_computed(position + 1)
        return logits

    @contextlib.contextmanager
    def _torn_by_failure(self) -> Iterator[None]:
        """Where the model fails half-way, some layers' states have moved on and others have not."""
        try:
            yield
        except Exception:
            self._live.is_torn = True
            raise

    def _pieces(
        self, start: int, stop: int, chunk: int, stops: Sequence[int]
    ) -> Iterator[tuple[int, int]]:
        inside = sorted({at for at in stops if start < at < stop})
        if not self._is_stepwise:
            for begin, end in zip([start, *inside], [*inside, stop], strict=True):
                yield from chunks(begin, end, chunk)
            return
        if start == 0:
            # One piece as long as can be: what follows a state costs a step per token.
            start = inside[-1] if inside else stop
            yield 0, start
        yield from chunks(start, stop, 1)

    def _settle(self, ids: TokenIds, start: int) -> bool:
        """States belong to the keys and values that they were computed with."""
        return True

    def _is_typical(self, start: int) -> bool:
        return start == 0 or not self._is_stepwise

    def _computed(self, end: int, stops: Sequence[int]) -> None:
        self._live.note_computed(end)
        if end in stops:
            self._checkpoints[end] = self._live.copy_states()

    def _live_tokens(self, ids: TokenIds, limit: int | None = None) -> int:
        """All tokens that are live, if the path goes on behind them; else none can be used."""
        live = self._ids.common_prefix(ids)
        is_whole = live == self._live.num_tokens and not self._live.is_torn
        return live if is_whole and (limit is None or live <= limit) else 0
