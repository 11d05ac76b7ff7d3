"""The live context of a model with attention in all layers: a prefix may end after any token; in
some models only up to a length."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch

from chatcache.backends.local.run.choices import declined_words, read_words
from chatcache.backends.local.run.live_context import (
    LiveContext,
    PrefillStep,
    Reuse,
    chunks,
)
from chatcache.cache.book.entries import Lease, RestoreResult
from chatcache.cache.tensors.live_kv import MIN_LENT_TOKENS
from chatcache.cache.views import CostEstimate, to_read
from chatcache.token_ids import TokenIds

# Long enough that a part of it, all but its last token, is still worth a restore.
_SHORT_END = 128
# Computing fewer tokens than this takes about as long as computing one: both read all weights.
MIN_PART_TOKENS = 64


@dataclass
class AnyTokenContext(LiveContext):
    """`chunk`: the most tokens of a prompt that are given to the model at once. `on_restore` is
    told of the tokens and bytes that are about to be read from disk."""

    chunk: int
    on_restore: Callable[[int, int], None] = lambda num_tokens, num_bytes: None
    is_reusing: bool = False  # whether this turn may use what segments hold

    def reuse(self, ids: TokenIds, limit: int) -> Reuse:
        self.is_reusing = True
        self.note_brought()  # for another turn, or ahead of one
        began = time.perf_counter()
        path = self.path
        live = min(path.ids.common_prefix(ids), limit)
        with self.prefixes.acquire(ids, limit, MIN_PART_TOKENS) as lease:
            is_ahead = live > max(path.num_kept, lease.num_matched)
            if not is_ahead:
                live = min(live, path.num_kept)
                if live <= lease.num_matched:
                    live = min(live, lease.num_tokens)
            kept = path.ids[: path.kv.num_settled]
            self.prefixes.vram.keep(kept, live, path.kv.reside, path.kv.token_bytes)
            path.hold(ids, live)
            path.reserve(len(ids))
            restored, declined = self._bring(lease, live)
        seconds = time.perf_counter() - began
        path.hold(ids, restored.num_tokens)
        if not is_ahead:
            path.num_kept = restored.num_tokens
        # What was known and is computed again is not written again.
        path.computed_from = path.num_kept if declined is None else lease.num_tokens
        return Reuse(
            runs=restored.runs,
            num_matched=max(lease.num_matched, restored.num_tokens),
            bytes_read=restored.bytes_read,
            seconds=seconds,
            problem=restored.problem,
            is_damage=restored.is_damage,
            declined=declined,
            read=read_words(self.rates, restored, lease.held, len(ids)),
        )

    def start_cold(self) -> None:
        super().start_cold()
        self.is_reusing = False

    def prefill(
        self, ids: TokenIds, start: int, chunk: int | None = None, stops: Sequence[int] = ()
    ) -> Iterator[PrefillStep]:
        began = time.perf_counter()
        for step in self.path.run(ids, chunks(start, len(ids), chunk or self.chunk)):
            if step.done == len(ids) and chunk is None:
                self.rates.note_prefill(len(ids) - start, time.perf_counter() - began, start)
                if not self._settle(ids, start):
                    yield from self.prefill(ids, start)
                    return
            yield step

    def step(self, token_id: int, position: int) -> torch.Tensor:
        return self.path.compute([token_id], position)

    def commit(self, ids: TokenIds, boundaries: Sequence[int]) -> int:
        path = self.path
        held = min(path.kv.num_tokens, len(ids))
        path.hold(ids, held)
        ends = sorted({min(end, held) for end in boundaries} - {0})
        if path.kv.lends:
            ends = _with_short_ends(ends)
        path.num_kept = held
        num_bytes = self.prefixes.commit(path.ids, ends, path.kv.export, path.computed_from)
        self.prefixes.promote(path.ids, path.kv.lend)
        path.forget_unsettled()
        return num_bytes

    def num_readable(self, ids: TokenIds) -> int:
        return self.path.ids.common_prefix(ids)

    def estimate(self, ids: TokenIds) -> CostEstimate:
        held, num_live = self.prefixes.lookup(ids).held, self.path.ids.common_prefix(ids)
        return self.rates.estimate(held, num_live, len(ids))

    def _bring(self, lease: Lease, live: int) -> tuple[RestoreResult, str | None]:
        """Bring back what is held of the lease, or as much as is not computed more quickly; then
        there are words for that."""
        rates, held, total = self.rates, lease.held, len(lease.ids)
        stop = rates.best_stop(held, live, total)
        trial = rates.trial_stop(held, stop) if stop < lease.num_tokens else None
        restored = self._restore(lease, live, stop if trial is None else trial)
        if trial is not None and restored.problem is None:
            stop = max(trial, rates.best_stop(held, trial, total))
            restored = restored.then(self._restore(lease, restored.num_tokens, stop))
        if stop >= lease.num_tokens:
            return restored, None
        rates.note_declined(each.tier for each in held if each.stop > stop)
        return restored, declined_words(rates.cost(held, stop, total))

    def _restore(self, lease: Lease, live: int, stop: int) -> RestoreResult:
        """Bring the lease back up to `stop`, and learn from it."""
        wanted = lease if stop >= lease.num_tokens else lease.up_to(max(live, stop))
        start = self.prefixes.adopt(wanted, self.path.kv, live)
        num_tokens, num_bytes = to_read(wanted.held, start)
        if num_tokens > 0:
            self.on_restore(num_tokens, num_bytes)
        restored = self.prefixes.restore(wanted, self.path.kv, start)
        self.note_transfers(restored)
        return restored

    def _settle(self, ids: TokenIds, start: int) -> bool:
        """Where segments hold a whole prompt that was computed once more (for its logits), their
        bits count: the answer goes on from what a later resume brings back.

        False when a segment turned out to be damaged: what is live is then right up to `start`.
        A long segment is not read from disk for the sake of a last bit.
        """
        if not self.is_reusing:
            return True
        held = self.prefixes.lookup(ids)
        total = len(ids)
        if held.num_tokens < total:
            return True
        if held.disk_tokens and held.spans[-1].start < total - MIN_PART_TOKENS - 1:
            return True
        with self.prefixes.acquire(ids, total, is_use=False) as lease:
            restored = self.prefixes.restore(lease, self.path.kv, start)
        is_whole = restored.num_tokens == total
        self.path.hold(ids, total if is_whole else start)
        return is_whole


def _with_short_ends(ends: Sequence[int]) -> list[int]:
    """The last tokens of a long run are a segment of their own.

    A message that is asked again is computed anew from its last token on. Memory that is lent to a
    segment is never written to, so what is used of the segment is copied first: of a short one
    that is little."""
    cuts = [
        stop - _SHORT_END
        for start, stop in pairwise([0, *ends])
        if stop - start >= MIN_LENT_TOKENS + _SHORT_END
    ]
    return sorted({*ends, *cuts})


class LengthBoundContext(LiveContext):
    """For a model whose rotary embedding changes with the length of the prompt.

    Up to `max_tokens` it is one embedding, behind that another one (longrope, dynamic scaling):
    transformers then rotates new keys differently and leaves the old ones as they were, which is
    silently wrong. So K and V are kept and reused up to there, by `within`; what grows beyond is
    computed anew, in one piece, when it crosses.
    """

    def __init__(self, within: AnyTokenContext, max_tokens: int):
        super().__init__(within.path, within.prefixes, within.rates)
        self._within = within
        self._max_tokens = max_tokens
        self._decoded: list[int] = []  # behind the prompt, since the last prefill
        self._is_beyond = False

    def reuse(self, ids: TokenIds, limit: int) -> Reuse:
        if self._is_beyond:
            self.path.forget()
        if len(ids) > self._max_tokens:
            self.start_cold()
            return Reuse()
        self._is_beyond = False
        return self._within.reuse(ids, limit)

    def start_cold(self) -> None:
        self._within.start_cold()
        self._is_beyond = False

    def prefill(
        self, ids: TokenIds, start: int, chunk: int | None = None, stops: Sequence[int] = ()
    ) -> Iterator[PrefillStep]:
        self._decoded.clear()
        self._is_beyond = len(ids) > self._max_tokens
        if not self._is_beyond:
            yield from self._within.prefill(ids, start, chunk, stops)
            return
        began = time.perf_counter()
        if start:
            self._within.start_cold()
        for step in self.path.run(ids, [(0, len(ids))]):
            if chunk is None:
                self.rates.note_prefill(len(ids), time.perf_counter() - began)
            yield step

    def step(self, token_id: int, position: int) -> torch.Tensor:
        if self._is_beyond or position < self._max_tokens:
            self._decoded.append(token_id)
            return self.path.compute([token_id], position)
        return self._cross(token_id)

    def commit(self, ids: TokenIds, boundaries: Sequence[int]) -> int:
        """Nothing is kept of a path that has crossed: what came before was kept as it crossed."""
        if self._is_beyond:
            self.start_cold()
            return 0
        return self._within.commit(ids, boundaries)

    def num_readable(self, ids: TokenIds) -> int:
        return 0 if self._is_beyond else self._within.num_readable(ids)

    def estimate(self, ids: TokenIds) -> CostEstimate:
        return self._within.estimate(ids)

    def _cross(self, token_id: int) -> torch.Tensor:
        """Keep what is live, then compute all of it again with the embedding of long prompts."""
        path = self.path
        num_prompt = len(path.ids)
        ids = path.ids + TokenIds([*self._decoded, token_id])
        if self._within.is_reusing:
            self._within.commit(ids[:-1], [num_prompt, len(ids) - 1])
        self._within.start_cold()
        self._is_beyond = True
        return path.forward(path.kv, ids, 0)
