"""The live context of a model: its KV, the ids it holds, and the prefix cache behind it.

It deals in token ids and positions only; text, requests and events are not known here. The bench
uses it like a turn does, so what is measured is what people get.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from transformers import DynamicCache, PreTrainedConfig
from transformers.cache_utils import Cache

from chatcache.backends.local.generate import Forward, chunks
from chatcache.cache.kv import LiveKV
from chatcache.cache.prefix import PrefixCache
from chatcache.cache.rates import RateBook
from chatcache.cache.rows import CostEstimate
from chatcache.cache.tokens import BYTES_PER_ID, common_prefix

# Computing fewer tokens than this takes about as long as computing one: both read all weights.
MIN_PART_TOKENS = 64


@dataclass(frozen=True, slots=True)
class Reuse:
    """How much of a prompt is in the live KV now, where it came from, and how long that took.

    `num_matched` tokens were known; fewer are reused where a cut inside a segment does not pay.
    """

    num_tokens: int
    disk_tokens: int = 0
    bytes_read: int = 0
    seconds: float = 0.0
    num_matched: int = 0
    problem: str | None = None
    is_damage: bool = False


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
        self._ids = b""
        self._computed_from = 0

    @property
    def num_tokens(self) -> int:
        return self._live.num_tokens

    @property
    def num_bytes(self) -> int:
        return self._live.num_bytes

    @property
    def ids(self) -> bytes:
        """The packed ids whose K and V are live."""
        return self._ids

    def reuse(self, packed: bytes, limit: int) -> Reuse:
        """Make the live KV hold the longest known prefix of at most `limit` ids, and no more.

        Only what differs from what is live already is moved.
        """
        self._cache = self._live
        began = time.perf_counter()
        live = min(common_prefix(self._ids, packed), limit)
        with self._prefixes.acquire(packed, limit, MIN_PART_TOKENS) as lease:
            if live <= lease.num_matched:
                live = min(live, lease.num_tokens)
            self._set_length(packed, live)
            restored = self._prefixes.restore(lease, self._live, live)
        seconds = time.perf_counter() - began
        self._set_length(packed, restored.num_tokens)
        self._computed_from = restored.num_tokens
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
        )

    def start_cold(self, own_cache: PreTrainedConfig | None = None) -> None:
        """Forget what is live. With a config, run on transformers' own cache for one turn: for
        models that may not be cut."""
        self.forget()
        self._computed_from = 0
        self._cache = self._live if own_cache is None else DynamicCache(config=own_cache)

    def forget(self) -> None:
        self._set_length(b"", 0)

    def prefill(self, packed: bytes, ids: Sequence[int], start: int) -> Iterator[PrefillStep]:
        """Compute the ids from `start` on, chunk by chunk; the caller may stop in between."""
        began = time.perf_counter()
        for begin, end in chunks(start, len(ids), self._chunk):
            logits = self._forward(self._cache, ids[begin:end], begin)
            if self._cache is self._live:
                self._ids = packed[: end * BYTES_PER_ID]
            if end == len(ids):
                self._rates.note_prefill(end - start, time.perf_counter() - began)
            yield PrefillStep(end, logits)

    def step(self, token_id: int, position: int) -> torch.Tensor:
        """Append one token; returns the logits `[1, vocab]` behind it."""
        return self._forward(self._cache, [token_id], position)

    def commit(self, packed: bytes, boundaries: Sequence[int]) -> int:
        """Keep what is live of this path; returns the bytes given to the disk tier."""
        held = min(self._live.num_tokens, len(packed) // BYTES_PER_ID)
        self._set_length(packed, held)
        ends = sorted({min(end, held) for end in boundaries} - {0})
        return self._prefixes.commit(self._ids, ends, self._live.export, self._computed_from)

    def estimate(self, packed: bytes) -> CostEstimate:
        """What continuing a path would cost now. Changes nothing."""
        total = len(packed) // BYTES_PER_ID
        held = self._prefixes.lookup(packed)
        live = common_prefix(self._ids, packed)
        in_ram = max(live, held.ram_tokens)
        from_disk = max(0, held.num_tokens - in_ram)
        disk_bytes = held.disk_bytes if from_disk else 0
        recompute = total - in_ram - from_disk
        compute_ms = self._rates.prefill_ms(recompute) if recompute else 0.0
        estimated = None
        if compute_ms is not None:
            estimated = compute_ms + self._rates.restore_ms(disk_bytes)
        return CostEstimate(in_ram, from_disk, recompute, estimated, disk_bytes)

    def _set_length(self, packed: bytes, num_tokens: int) -> None:
        self._live.truncate(num_tokens)
        self._ids = packed[: num_tokens * BYTES_PER_ID]
