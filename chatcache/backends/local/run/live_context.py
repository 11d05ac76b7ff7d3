"""The live context of a model: its KV, the ids it holds, and the prefix cache behind it.

It deals in token ids and positions only; text, requests and events are not known here. The bench
uses it like a turn does, so what is measured is what people get.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from transformers import DynamicCache, PreTrainedConfig
from transformers.cache_utils import Cache

from chatcache.backends.local.run.forward import Forward, chunks, memory_for
from chatcache.cache.book.entries import Lease
from chatcache.cache.book.rates import RateBook
from chatcache.cache.prefix import PrefixCache
from chatcache.cache.tensors.live_kv import MIN_LENT_TOKENS, LiveKV
from chatcache.cache.views import CostEstimate
from chatcache.formatting import plural, size
from chatcache.token_ids import TokenIds

# Long enough that a part of it, all but its last token, is still worth a restore.
_SHORT_END = 128
# Computing fewer tokens than this takes about as long as computing one: both read all weights.
MIN_PART_TOKENS = 64


@dataclass(frozen=True, slots=True)
class Reuse:
    """How much of a prompt is in the live KV now, where it came from, and how long that took.

    `num_matched` tokens were known; fewer are reused where a cut inside a segment does not pay, or
    where computing is quicker than reading (`declined` says so).
    """

    num_tokens: int
    disk_tokens: int = 0
    bytes_read: int = 0
    seconds: float = 0.0
    num_matched: int = 0
    problem: str | None = None
    is_damage: bool = False
    declined: str | None = None


@dataclass(frozen=True, slots=True)
class PrefillStep:
    """`done` prompt tokens are in the KV; `logits` `[1, vocab]` are those behind the last."""

    done: int
    logits: torch.Tensor


class LiveContext:
    """One path at a time. Not thread-safe: it belongs to the engine's main thread."""

    def __init__(
        self, forward: Forward, live: LiveKV, prefixes: PrefixCache, rates: RateBook, chunk: int
    ):
        self._forward = forward
        self._live = live
        self._prefixes = prefixes
        self._rates = rates
        self._chunk = chunk
        self._cache: Cache = live
        self._ids = TokenIds()
        self._computed_from = 0
        # Live tokens that were committed or restored; the ones behind them were computed ahead.
        self._kept = 0
        self._is_reusing = False
        # Told of the tokens and bytes that are about to be read from disk.
        self.on_restore: Callable[[int, int], None] = lambda num_tokens, num_bytes: None

    @property
    def num_tokens(self) -> int:
        return self._live.num_tokens

    @property
    def num_bytes(self) -> int:
        return self._live.num_bytes

    @property
    def ids(self) -> TokenIds:
        """The ids whose K and V are live."""
        return self._ids

    def reuse(self, ids: TokenIds, limit: int) -> Reuse:
        """Make the live KV hold the longest known prefix of at most `limit` ids, and no more.

        Only what differs from what is live already is moved.
        """
        self._cache, self._is_reusing = self._live, True
        began = time.perf_counter()
        live = min(self._ids.common_prefix(ids), limit)
        with self._prefixes.acquire(ids, limit, MIN_PART_TOKENS) as lease:
            is_ahead = live > max(self._kept, lease.num_matched)
            if not is_ahead:
                live = min(live, self._kept)
                if live <= lease.num_matched:
                    live = min(live, lease.num_tokens)
            self._set_length(ids, live)
            declined = self._decline(lease, live)
            wanted = lease if declined is None else lease.up_to(max(live, lease.disk_start))
            start = self._prefixes.adopt(wanted, self._live, live)
            self._reserve(len(ids))
            if (num_to_read := wanted.num_tokens - max(start, wanted.disk_start)) > 0:
                self.on_restore(num_to_read, wanted.disk_bytes)
            restored = self._prefixes.restore(wanted, self._live, start)
        seconds = time.perf_counter() - began
        self._set_length(ids, restored.num_tokens)
        if not is_ahead:
            self._kept = restored.num_tokens
        # What was known and is computed again is not written again.
        self._computed_from = self._kept if declined is None else lease.num_tokens
        if restored.disk_tokens:
            self._rates.note_restore(restored.bytes_read, seconds)
        return Reuse(
            num_tokens=restored.num_tokens,
            num_matched=max(lease.num_matched, restored.num_tokens),
            disk_tokens=restored.disk_tokens,
            bytes_read=restored.bytes_read,
            seconds=seconds,
            problem=restored.problem,
            is_damage=restored.is_damage,
            declined=declined,
        )

    def _decline(self, lease: Lease, live: int) -> str | None:
        """Why computing beats reading what files hold of the lease; None: it does not."""
        num_tokens = lease.num_tokens - max(live, lease.disk_start)
        compute_ms = self._rates.prefill_ms(num_tokens)
        if compute_ms is None or num_tokens <= 0:
            return None
        if not self._rates.is_restore_dearer(lease.disk_bytes, num_tokens):
            return None
        read_ms = self._rates.restore_ms(lease.disk_bytes)
        self._rates.note_declined()
        return (
            f"reading {size(lease.disk_bytes)} would take about {read_ms:,.0f} ms, computing "
            f"{plural(num_tokens, 'token')} about {compute_ms:,.0f} ms"
        )

    def ready(self, ids: TokenIds) -> Reuse:
        """Like `reuse` of all ids, before it is known whether a turn will need them.

        What is live stays as it is while segments hold no more of the path: nothing is moved.
        """
        live = self._ids.common_prefix(ids)
        if live < self._kept or self._prefixes.lookup(ids).num_tokens > live:
            return self.reuse(ids, len(ids))
        self._cache = self._live
        self._set_length(ids, live)
        self._computed_from = self._kept
        return Reuse(live, num_matched=live)

    def can_leave(self, ids: TokenIds) -> bool:
        """Whether segments hold what would be lost of the live path by going over to another."""
        shared = self._ids.common_prefix(ids)
        return self._kept <= shared or self._prefixes.lookup(self._ids).num_tokens >= self._kept

    def start_cold(self, own_cache: PreTrainedConfig | None = None) -> None:
        """Forget what is live. With a config, run on transformers' own cache for one turn: for
        models that may not be cut."""
        self.forget()
        self._computed_from, self._is_reusing = 0, False
        self._cache = self._live if own_cache is None else DynamicCache(config=own_cache)

    def forget(self) -> None:
        self._set_length(TokenIds(), 0)

    def prefill(
        self,
        ids: TokenIds,
        start: int,
        chunk: int | None = None,
        stops: Sequence[int] = (),
    ) -> Iterator[PrefillStep]:
        """Compute the ids from `start` on, chunk by chunk; the caller may stop in between.

        `stops` are where messages end: a model that needs checkpoints takes them there.

        With a `chunk` of its own it is work ahead of a turn, whose pace says nothing of a turn's.
        """
        began = time.perf_counter()
        if self._cache is self._live:
            self._reserve(len(ids))
        for begin, end in self._pieces(start, len(ids), chunk or self._chunk, stops):
            logits = self._forward(self._cache, ids[begin:end], begin)
            if self._cache is self._live:
                self._ids = ids[:end]
                self._computed(end, stops)
            if end == len(ids) and chunk is None and self._is_typical(start):
                self._rates.note_prefill(end - start, time.perf_counter() - began)
                if not self._settle(ids, start):
                    yield from self.prefill(ids, start, stops=stops)
                    return
            yield PrefillStep(end, logits)

    def step(self, token_id: int, position: int) -> torch.Tensor:
        """Append one token; returns the logits `[1, vocab]` behind it."""
        return self._forward(self._cache, [token_id], position)

    def commit(self, ids: TokenIds, boundaries: Sequence[int]) -> int:
        """Keep what is live of this path; returns the bytes given to the disk tier."""
        held = min(self._live.num_tokens, len(ids))
        self._set_length(ids, held)
        ends = sorted({min(end, held) for end in boundaries} - {0})
        if self._live.lends:
            ends = _with_short_ends(ends)
        computed_from, self._kept = self._computed_from, held
        num_bytes = self._prefixes.commit(self._ids, ends, self._live.export, computed_from)
        self._prefixes.promote(self._ids, self._live.lend)
        self._stay_settled()
        return num_bytes

    def _stay_settled(self) -> None:
        """Where the bits that are kept are not those that were computed, the kept ones count: what
        another turn had kept before is brought back by the next one."""
        if self._live.num_settled < self._kept:
            self.forget()

    def _settle(self, ids: TokenIds, start: int) -> bool:
        """Where segments hold a whole prompt that was computed once more (for its logits), their
        bits count: the answer goes on from what a later resume brings back.

        False when a segment turned out to be damaged: what is live is then right up to `start`.
        A long segment is not read from disk for the sake of a last bit.
        """
        if self._cache is not self._live or not self._is_reusing:
            return True
        held = self._prefixes.lookup(ids)
        total = len(ids)
        if held.num_tokens < total:
            return True
        if held.disk_tokens and held.spans[-1].start < total - MIN_PART_TOKENS - 1:
            return True
        with self._prefixes.acquire(ids, total) as lease:
            restored = self._prefixes.restore(lease, self._live, start)
        is_whole = restored.num_tokens == total
        self._set_length(ids, total if is_whole else start)
        return is_whole

    def _pieces(
        self, start: int, stop: int, chunk: int, stops: Sequence[int]
    ) -> Iterator[tuple[int, int]]:
        if self._cache is not self._live:
            # No verdict says that this model may be given a prompt in pieces.
            return iter([(start, stop)])
        return chunks(start, stop, chunk)

    def _is_typical(self, start: int) -> bool:
        """Whether the pace of a prefill from there on tells that of others."""
        return True

    def _computed(self, end: int, stops: Sequence[int]) -> None:
        """The live KV has just come to `end`."""

    def _live_tokens(self, ids: TokenIds) -> int:
        """How many leading ids could be gone on with from what is live."""
        return self._ids.common_prefix(ids)

    def estimate(self, ids: TokenIds) -> CostEstimate:
        """What continuing a path would cost now. Changes nothing."""
        total = len(ids)
        held = self._prefixes.lookup(ids)
        live = self._live_tokens(ids)
        in_ram = max(live, held.ram_tokens)
        from_disk = max(0, held.num_tokens - in_ram)
        if self._rates.is_restore_dearer(held.disk_bytes, from_disk):
            from_disk = 0
        disk_bytes = held.disk_bytes if from_disk else 0
        recompute = total - in_ram - from_disk
        compute_ms = self._rates.prefill_ms(recompute) if recompute else 0.0
        estimated = None
        if compute_ms is not None:
            estimated = compute_ms + self._rates.restore_ms(disk_bytes)
        return CostEstimate(in_ram, from_disk, recompute, estimated, disk_bytes)

    def _reserve(self, num_tokens: int) -> None:
        """Raises UnavailableError when there is no memory for as many."""
        with memory_for(num_tokens):
            self._live.reserve(num_tokens)

    def _set_length(self, ids: TokenIds, num_tokens: int) -> None:
        self._live.truncate(num_tokens)
        self._ids = ids[:num_tokens]
        self._kept = min(self._kept, num_tokens)


def _with_short_ends(ends: Sequence[int]) -> list[int]:
    """The end of a long run is a segment of its own. A message that is asked again is computed
    anew from its last token on, and what is lent is not written again: it would have to move."""
    cuts = [
        stop - _SHORT_END
        for start, stop in pairwise([0, *ends])
        if stop - start >= MIN_LENT_TOKENS + _SHORT_END
    ]
    return sorted({*ends, *cuts})
