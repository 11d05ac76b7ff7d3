"""The live context of a model of which no verdict says where a prefix may be cut.

Nothing is reused and nothing is kept. It runs on transformers' own cache, and is given a prompt in
one piece: that it may be given in several is not known either.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from transformers.cache_utils import DynamicCache
from transformers.configuration_utils import PreTrainedConfig

from chatcache.backends.local.run.live_context import LiveContext, PrefillStep, Reuse
from chatcache.cache.views import CostEstimate
from chatcache.token_ids import TokenIds


@dataclass
class WholePromptContext(LiveContext):
    """`config` is the model's, with which transformers makes its cache."""

    config: PreTrainedConfig
    _own_cache: DynamicCache = field(default_factory=DynamicCache, init=False)

    def reuse(self, ids: TokenIds, limit: int) -> Reuse:
        self.start_cold()
        return Reuse()

    def start_cold(self) -> None:
        self._own_cache = DynamicCache(config=self.config)

    def prefill(
        self, ids: TokenIds, start: int, chunk: int | None = None, stops: Sequence[int] = ()
    ) -> Iterator[PrefillStep]:
        began = time.perf_counter()
        logits = self.path.forward(self._own_cache, ids, 0)
        if chunk is None:
            self.rates.note_prefill(len(ids), time.perf_counter() - began)
        yield PrefillStep(len(ids), logits)

    def step(self, token_id: int, position: int) -> torch.Tensor:
        return self.path.forward(self._own_cache, [token_id], position)

    def commit(self, ids: TokenIds, boundaries: Sequence[int]) -> int:
        self.start_cold()
        return 0

    def estimate(self, ids: TokenIds) -> CostEstimate:
        return CostEstimate(0, 0, len(ids), self.rates.prefill_ms(len(ids)))
