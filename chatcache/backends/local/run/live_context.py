"""What a turn asks of the live context of a model, whatever the kind of cut.

A kind of cut says where a restored prefix may end (`model/cut_policy.py`), and with it how a path
is reused, computed and kept. Each kind is a class of its own on a `LivePath` and a `PrefixCache`:

    any_token.py     attention in all layers: a prefix may end after any token
    length_bound.py  the same, up to the length at which the rotary embedding changes
    checkpoints.py   recurrent or convolution states: it ends where a checkpoint was taken
    whole_prompt.py  nothing is reused

Token ids and positions only; text, requests and events are not known here. The bench uses a context
like a turn does, so what is measured is what people get.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from chatcache.backends.local.run.live_path import LivePath, PrefillStep
from chatcache.cache.book.rates import RateBook
from chatcache.cache.prefix import PrefixCache
from chatcache.cache.views import CostEstimate
from chatcache.token_ids import TokenIds


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


class LiveContext(ABC):
    """The order of a turn: `reuse` or `start_cold`, `prefill`, `step` by step, `commit`.

    `path` says what is live."""

    def __init__(self, path: LivePath, prefixes: PrefixCache, rates: RateBook):
        self.path = path
        self.prefixes = prefixes
        self.rates = rates

    @abstractmethod
    def reuse(self, ids: TokenIds, limit: int) -> Reuse:
        """Make the live KV hold the longest known prefix of at most `limit` ids, and no more.

        Only what differs from what is live already is moved.
        """

    @abstractmethod
    def start_cold(self) -> None:
        """Forget what is live: all of the next prompt is computed."""

    @abstractmethod
    def prefill(
        self, ids: TokenIds, start: int, chunk: int | None = None, stops: Sequence[int] = ()
    ) -> Iterator[PrefillStep]:
        """Compute the ids from `start` on, piece by piece; the caller may stop in between.

        `stops` are where messages end: a model that needs checkpoints takes them there. With a
        `chunk` of its own it is work ahead of a turn, whose pace says nothing of a turn's.
        """

    @abstractmethod
    def step(self, token_id: int, position: int) -> torch.Tensor:
        """Append one token; returns the logits `[1, vocab]` behind it."""

    @abstractmethod
    def commit(self, ids: TokenIds, boundaries: Sequence[int]) -> int:
        """Keep what is live of this path, in segments that end at `boundaries` where the kind of
        cut allows it; returns the bytes given to the disk tier."""

    @abstractmethod
    def estimate(self, ids: TokenIds) -> CostEstimate:
        """What continuing a path would cost now. Changes nothing."""

    def forget(self) -> None:
        """Nothing is live any more."""
        self.path.forget()

    def ready(self, ids: TokenIds) -> Reuse:
        """Like `reuse` of all ids, before it is known whether a turn will need them.

        What is live stays as it is while segments hold no more of the path: nothing is moved.
        """
        path = self.path
        live = path.common_prefix(ids)
        if live < path.num_kept or self.prefixes.lookup(ids).num_tokens > live:
            return self.reuse(ids, len(ids))
        path.hold(ids, live)
        path.computed_from = path.num_kept
        return Reuse(live, num_matched=live)

    def can_leave(self, ids: TokenIds) -> bool:
        """Whether segments hold what would be lost of the live path by going over to another."""
        num_kept = self.path.num_kept
        is_shared = num_kept <= self.path.common_prefix(ids)
        return is_shared or self.prefixes.lookup(self.path.ids).num_tokens >= num_kept


def estimate_cost(
    ids: TokenIds, num_live: int, prefixes: PrefixCache, rates: RateBook
) -> CostEstimate:
    """What continuing a path would cost, if `num_live` of its tokens can be gone on from."""
    held = prefixes.lookup(ids)
    in_ram = max(num_live, held.ram_tokens)
    from_disk = max(0, held.num_tokens - in_ram)
    if rates.is_restore_dearer(held.disk_bytes, from_disk):
        from_disk = 0
    disk_bytes = held.disk_bytes if from_disk else 0
    recompute = len(ids) - in_ram - from_disk
    compute_ms = rates.prefill_ms(recompute) if recompute else 0.0
    estimated = None if compute_ms is None else compute_ms + rates.restore_ms(disk_bytes)
    return CostEstimate(in_ram, from_disk, recompute, estimated, disk_bytes)
