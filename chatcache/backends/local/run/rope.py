"""The live context of a model whose rotary embedding changes with the length of the prompt.

Up to `max_tokens` it is one embedding, behind that another one (longrope, dynamic scaling):
transformers then rotates new keys differently and leaves the old ones as they were, which is
silently wrong. So K and V are kept and reused up to there; what grows beyond is computed anew, in
one piece, when it crosses.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch

from chatcache.backends.local.run.live_context import LiveContext, Reuse
from chatcache.token_ids import TokenIds


class LengthBoundContext(LiveContext):
    """`max_tokens`: the longest path whose K and V are kept."""

    def __init__(self, *args: Any, max_tokens: int):
        super().__init__(*args)
        self._max_tokens = max_tokens
        self._decoded: list[int] = []
        self._is_beyond = False
        self._is_cached = False

    def reuse(self, ids: TokenIds, limit: int) -> Reuse:
        if self._is_beyond:
            self.forget()
        if len(ids) > self._max_tokens:
            self.start_cold()
            return Reuse(0)
        reuse = super().reuse(ids, limit)
        self._is_cached = True
        return reuse

    def step(self, token_id: int, position: int) -> torch.Tensor:
        if self._is_beyond or position < self._max_tokens:
            self._decoded.append(token_id)
            return super().step(token_id, position)
        return self._cross(token_id)

    def commit(self, ids: TokenIds, boundaries: Sequence[int]) -> int:
        """Nothing is kept of a path that has crossed: what it was before has been kept already."""
        if self._is_beyond:
            self.forget()
            return 0
        return super().commit(ids, boundaries)

    def forget(self) -> None:
        super().forget()
        self._decoded.clear()
        self._is_beyond = self._is_cached = False

    def _cross(self, token_id: int) -> torch.Tensor:
        """Keep what is live, then compute all of it again with the embedding of long prompts."""
        num_prompt = len(self._ids)
        ids = self._ids + TokenIds([*self._decoded, token_id])
        if self._is_cached:
            super().commit(ids[:-1], [num_prompt, len(ids) - 1])
        self.start_cold()
        self._is_beyond = True
        return self._forward(self._cache, ids, 0)

    def _pieces(
        self, start: int, stop: int, chunk: int, stops: Sequence[int]
    ) -> Iterator[tuple[int, int]]:
        self._decoded.clear()
        self._is_beyond = stop > self._max_tokens
        if not self._is_beyond:
            return super()._pieces(start, stop, chunk, stops)
        if start:
            self.start_cold()
            self._is_beyond = True
        return iter([(0, stop)])
