"""The live path of a model, and what a turn asks of its live context, whatever the kind of cut.

A kind of cut says where a restored prefix may end (`model/cut_policy.py`), and with it how a path
is reused, computed and kept. Each kind is a class of its own on a `LivePath` and a `PrefixCache`:

    any_token.py     attention in all layers: a prefix may end after any token, or after any up to
                     the length at which the rotary embedding changes
    checkpoints.py   recurrent or convolution states: it ends where a checkpoint was taken
    whole_prompt.py  nothing is reused

Token ids and positions only; text, requests and events are not known here. The bench uses a context
like a turn does, so what is measured is what people get.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch

from chatcache.backends.local.model.failures import is_out_of_memory
from chatcache.backends.local.run.forward import Forward, memory_for
from chatcache.cache.book.entries import RestoreResult
from chatcache.cache.book.rates import RateBook
from chatcache.cache.prefix import PrefixCache
from chatcache.cache.tensors.live_kv import LiveKV
from chatcache.cache.views import CostEstimate, TierRun, num_tokens_of
from chatcache.errors import UnavailableError
from chatcache.token_ids import NO_IDS, TokenIds

Result = TypeVar("Result")


def chunks(start: int, stop: int, size: int) -> Iterator[tuple[int, int]]:
    """The prefill plan from `start` to `stop`: it depends on nothing but its arguments."""
    for begin in range(start, stop, size):
        yield begin, min(begin + size, stop)


@dataclass(frozen=True, slots=True)
class PrefillStep:
    """`done` prompt tokens are in the KV; `logits` `[1, vocab]` are those behind the last."""

    done: int
    logits: torch.Tensor


class LivePath:
    """One path at a time. Not thread-safe: it belongs to the engine's main thread.

    `ids`: whose K and V are live. Tokens of an answer join them when the answer is committed.
    `num_kept`: how many leading tokens were restored or committed, so that segments held them; what
    is behind was computed ahead of a turn, and no segment has it.
    `computed_from`: the first position that was computed since the last reuse. A commit writes what
    is there and behind in one piece, also where segments of another path hold its first tokens,
    and nothing of what comes before.
    `give_way`: has others let go of memory of the device; whether they held some.
    """

    def __init__(self, forward: Forward, kv: LiveKV):
        self.forward = forward
        self.kv = kv
        self.ids = NO_IDS
        self.num_kept = 0
        self.computed_from = 0
        self.give_way: Callable[[], bool] = lambda: False

    def hold(self, ids: TokenIds, num_tokens: int) -> None:
        """The live tokens are the first `num_tokens` of `ids` from now on; others are cut off."""
        self.kv.truncate(num_tokens)
        self.ids = ids[:num_tokens]
        self.num_kept = min(self.num_kept, num_tokens)

    def forget(self) -> None:
        self.hold(NO_IDS, 0)

    def forget_unsettled(self) -> None:
        """Forget what is live where segments keep other bits of it (int8): the next turn restores
        those, as a later resume would."""
        if self.kv.num_settled < self.num_kept:
            self.forget()

    def start_cold(self) -> None:
        """Forget what is live; all that is computed from now on is new."""
        self.forget()
        self.computed_from = 0

    def reserve(self, num_tokens: int) -> None:
        """Raises UnavailableError when there is no memory for as many."""
        with memory_for(num_tokens):
            self._with_room(lambda: self.kv.reserve(num_tokens))

    def compute(self, token_ids: Sequence[int], start: int) -> torch.Tensor:
        """Append ids at positions from `start`; raises what `Forward` raises."""
        return self._with_room(lambda: self.forward(self.kv, token_ids, start))

    def _with_room(self, work: Callable[[], Result]) -> Result:
        """Do what needs memory; once more, where the device had none and others gave way."""
        num_tokens = self.kv.num_tokens
        try:
            return work()
        except (MemoryError, RuntimeError, UnavailableError) as error:
            cause = error.__cause__ if isinstance(error, UnavailableError) else error
            if cause is None or not is_out_of_memory(cause) or not self.give_way():
                raise
        self.kv.truncate(num_tokens)
        return work()

    def run(self, ids: TokenIds, pieces: Iterable[tuple[int, int]]) -> Iterator[PrefillStep]:
        """Compute pieces of `ids`, each behind what is live; the caller may stop in between."""
        self.reserve(len(ids))
        for begin, end in pieces:
            logits = self.compute(ids[begin:end], begin)
            self.kv.note_computed(end)
            self.ids = ids[:end]
            yield PrefillStep(end, logits)


@dataclass(frozen=True, slots=True)
class Reuse:
    """How much of a prompt is in the live KV now, where it came from, and how long that took.

    `runs` are all of them; what was live already is in RAM. `num_matched` tokens were known; fewer
    are reused where a cut inside a segment does not pay, or where computing is quicker than reading
    (`declined` says so). `read` says how long reading took, and computing would have taken.
    """

    runs: tuple[TierRun, ...] = ()
    bytes_read: int = 0
    seconds: float = 0.0
    num_matched: int = 0
    problem: str | None = None
    is_damage: bool = False
    declined: str | None = None
    read: str | None = None

    @property
    def num_tokens(self) -> int:
        return self.runs[-1].stop if self.runs else 0

    @property
    def disk_tokens(self) -> int:
        return num_tokens_of(self.runs, "disk")


def live_run(num_tokens: int) -> tuple[TierRun, ...]:
    """As many leading tokens that are live already."""
    return (TierRun(num_tokens, "ram"),) if num_tokens else ()


@dataclass
class LiveContext(ABC):
    """The order of a turn: `reuse` or `start_cold`, `prefill`, `step` by step, `commit`.

    `path` says what is live."""

    path: LivePath
    prefixes: PrefixCache
    rates: RateBook

    def note_transfers(self, restored: RestoreResult) -> None:
        """Learn from a restore how fast each tier is. What is queued for a device arrives while the
        model computes already: `note_brought` learns of that."""
        for tier, each in restored.transfers.items():
            if tier == "disk" or not self.path.kv.is_queueing:
                self.rates.note_restore(each.num_bytes, each.seconds, tier, each.num_segments)

    def note_brought(self) -> float:
        """Learn from what a device has brought beside the host since the last time; returns the
        seconds that took. Nothing is waited for."""
        found = self.path.kv.brought()
        for each in found:
            self.rates.note_restore(each.num_bytes, each.seconds, each.source, each.num_runs)
        return sum(each.seconds for each in found)

    @abstractmethod
    def reuse(self, ids: TokenIds, limit: int) -> Reuse:
        """Make the live KV hold the longest known prefix of at most `limit` ids, and no more.

        Only what differs from what is live already is moved.
        """

    def start_cold(self) -> None:
        """Forget what is live: all of the next prompt is computed."""
        self.path.start_cold()

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

    def num_readable(self, ids: TokenIds) -> int:
        """Behind how many leading ids others could be computed from what is live, as it lies."""
        return 0

    @abstractmethod
    def estimate(self, ids: TokenIds) -> CostEstimate:
        """What continuing a path would cost now. Changes nothing."""

    def ready(self, ids: TokenIds) -> Reuse:
        """Like `reuse` of all ids, before it is known whether a turn will need them.

        What is live stays as it is while segments hold no more of the path: nothing is moved.
        """
        path = self.path
        live = path.ids.common_prefix(ids)
        if live < path.num_kept or self.prefixes.lookup(ids).num_tokens > live:
            return self.reuse(ids, len(ids))
        path.hold(ids, live)
        path.computed_from = path.num_kept
        return Reuse(live_run(live), num_matched=live)

    def can_leave(self, ids: TokenIds) -> bool:
        """Whether segments hold what would be lost of the live path by going over to another."""
        num_kept = self.path.num_kept
        is_shared = num_kept <= self.path.ids.common_prefix(ids)
        return is_shared or self.prefixes.lookup(self.path.ids).num_tokens >= num_kept
