"""K and V of a few tokens behind the first tokens of a live KV, which stays as it is.

Nothing is written to the live KV and nothing of it is copied for good: each layer joins what lies
there with what is new, for as long as it computes.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers.cache_utils import Cache, CacheLayerMixin

from chatcache.cache.tensors.layers import GrowingLayer
from chatcache.cache.tensors.live_kv import LiveKV


class BehindKV(Cache):
    """Goes on behind the first `num_tokens` of `live`, which must not change meanwhile. Not for
    models with states."""

    def __init__(self, live: LiveKV, num_tokens: int) -> None:
        super().__init__(layers=[_BehindLayer(layer, num_tokens) for layer in live.growing])


class _BehindLayer(CacheLayerMixin):  # type: ignore[no-untyped-call]
    is_sliding = False
    is_compileable = False

    def __init__(self, kept: GrowingLayer, num_kept: int) -> None:
        # Not the constructor of the class above, which asks for tensors that are not there yet.
        self._kept, self._num_kept = kept, num_kept
        self.keys: torch.Tensor | None = None
        self.values: torch.Tensor | None = None

    @property
    def is_initialized(self) -> bool:  # type: ignore[override]
        return self.keys is not None

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        self.keys, self.values = key_states[:, :, :0], value_states[:, :, :0]

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Append `[1, num_kv_heads, num_new, head_dim]`; returns copies of all tokens."""
        if self.keys is None or self.values is None:
            self.keys, self.values = key_states, value_states
        else:
            self.keys = torch.cat([self.keys, key_states], dim=2)
            self.values = torch.cat([self.values, value_states], dim=2)
        kept, stop = self._kept, self._num_kept
        return (
            torch.cat([kept.view("key", 0, stop), self.keys], dim=2),
            torch.cat([kept.view("value", 0, stop), self.values], dim=2),
        )

    def get_seq_length(self) -> int:
        return self._num_kept + (0 if self.keys is None else self.keys.shape[2])

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.get_seq_length() + query_length, 0

    def get_max_length(self) -> int:
        return -1
