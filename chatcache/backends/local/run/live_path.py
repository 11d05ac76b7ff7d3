"""The live path of a model: its K and V, the ids that they belong to, and running ids behind them.

It deals in token ids and positions only. What segments hold of a path, and what is kept of it, is
decided by the kinds of `LiveContext`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch

from chatcache.backends.local.run.forward import Forward, memory_for
from chatcache.cache.tensors.live_kv import LiveKV
from chatcache.token_ids import NO_IDS, TokenIds


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
    """

    def __init__(self, forward: Forward, kv: LiveKV):
        self.forward = forward
        self.kv = kv
        self.ids = NO_IDS
        self.num_kept = 0
        self.computed_from = 0

    def common_prefix(self, ids: TokenIds) -> int:
        """How many leading ids are live already."""
        return self.ids.common_prefix(ids)

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
            self.kv.reserve(num_tokens)

    def run(self, ids: TokenIds, pieces: Iterable[tuple[int, int]]) -> Iterator[PrefillStep]:
        """Compute pieces of `ids`, each behind what is live; the caller may stop in between."""
        self.reserve(len(ids))
        for begin, end in pieces:
            logits = self.forward(self.kv, ids[begin:end], begin)
            self.kv.note_computed(end)
            self.ids = ids[:end]
            yield PrefillStep(end, logits)
