"""One layer of K and V that grows in place, given to transformers as a cache layer.

A layer owns one buffer per tensor, `[1, num_kv_heads, capacity, head_dim]`, writes new tokens in
place and hands out views, so a step copies nothing that is there already (the idea of mlx-lm's
KVCache). Truncating moves an offset. Whatever writes a buffer runs under `torch.inference_mode`: a
buffer made inside it cannot be written outside.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers.cache_utils import CacheLayerMixin

_GROWTH_TOKENS = 256
_GROWTH_SHARE = 32  # so much more at a time: little memory lies idle, and copies stay rare


class GrowingLayer(CacheLayerMixin):  # type: ignore[no-untyped-call]
    """K and V of one layer for tokens 0 to `num_tokens`, in one growing buffer each."""

    is_sliding = False
    is_compileable = False

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.num_tokens = 0
        self._buffers: dict[str, torch.Tensor] = {}
        self._room = _GROWTH_TOKENS

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        for kind, states in (("key", key_states), ("value", value_states)):
            self.allocate(kind, states.shape[1], states.shape[3], states.dtype, states.device)
        self.is_initialized = True

    def allocate(
        self, kind: str, num_heads: int, head_dim: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        """Make an empty buffer for "key" or "value", unless there is one."""
        if kind not in self._buffers:
            self._buffers[kind] = torch.empty(
                (1, num_heads, self._room, head_dim), dtype=dtype, device=device
            )

    def reserve(self, num_tokens: int) -> None:
        """Make room for `num_tokens` in all, and for some more to come."""
        if num_tokens <= self._room:
            return
        wanted = num_tokens + num_tokens // _GROWTH_SHARE
        room = -(-wanted // _GROWTH_TOKENS) * _GROWTH_TOKENS
        # Both or none: memory may run out in between.
        self._buffers = {kind: self._grown(old, room) for kind, old in self._buffers.items()}
        self._room = room

    def _grown(self, buffer: torch.Tensor, room: int) -> torch.Tensor:
        grown = buffer.new_empty((1, buffer.shape[1], room, buffer.shape[3]))
        grown[:, :, : self.num_tokens] = buffer[:, :, : self.num_tokens]
        return grown

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Append `[1, num_kv_heads, num_new, head_dim]`; returns views of all tokens."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        stop = self.num_tokens + key_states.shape[2]
        self.reserve(stop)
        self._buffers["key"][:, :, self.num_tokens : stop] = key_states
        self._buffers["value"][:, :, self.num_tokens : stop] = value_states
        self.set_length(stop)
        return self.view("key"), self.view("value")

    def set_length(self, num_tokens: int) -> None:
        """Say how many tokens count. The buffer must hold them already."""
        self.num_tokens = num_tokens
        self.is_initialized = len(self._buffers) == 2
        if self.is_initialized:
            self.keys, self.values = self.view("key"), self.view("value")

    def view(self, kind: str, start: int = 0, stop: int | None = None) -> torch.Tensor:
        """`[1, num_kv_heads, stop - start, head_dim]` of the buffer itself."""
        return self._buffers[kind][:, :, start : self.num_tokens if stop is None else stop]

    def get_seq_length(self) -> int:
        return self.num_tokens

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.num_tokens + query_length, 0

    def get_max_length(self) -> int:
        return -1
