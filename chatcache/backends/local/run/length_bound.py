"""The live context of a model whose rotary embedding changes with the length of the prompt.

Up to `max_tokens` it is one embedding, behind that another one (longrope, dynamic scaling):
transformers then rotates new keys differently and leaves the old ones as they were, which is
silently wrong. So K and V are kept and reused up to there; what grows beyond is computed anew, in
one piece, when it crosses.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence

import torch

from chatcache.backends.local.run.any_token import AnyTokenContext
from chatcache.backends.local.run.live_context import LiveContext, Reuse
from chatcache.backends.local.run.live_path import PrefillStep
from chatcache.cache.views import CostEstimate
from chatcache.token_ids import TokenIds


class LengthBoundContext(LiveContext):
    """`within` does the work up to `max_tokens`, the length of the longest path that is kept."""

    def __init__(self, within: AnyTokenContext, max_tokens: int):
        super().__init__(within.path, within.prefixes, within.rates)
        self._within = within
        self._max_tokens = max_tokens
        self._decoded: list[int] = []  # behind the prompt, since the last prefill
        self._is_beyond = False

    def reuse(self, ids: TokenIds, limit: int) -> Reuse:
        if self._is_beyond:
            self.forget()
        if len(ids) > self._max_tokens:
            self.start_cold()
            return Reuse(0)
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
            return self.path.forward(self.path.kv, [token_id], position)
        return self._cross(token_id)

    def commit(self, ids: TokenIds, boundaries: Sequence[int]) -> int:
        """Nothing is kept of a path that has crossed: what came before was kept as it crossed."""
        if self._is_beyond:
            self.start_cold()
            return 0
        return self._within.commit(ids, boundaries)

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
