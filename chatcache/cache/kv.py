"""The live K and V of one path, given to transformers as its cache; and blocks cut out of it.

A layer owns one buffer per tensor, `[1, num_kv_heads, capacity, head_dim]`, writes new tokens in
place and hands out views, so a step copies nothing that is there already (the idea of mlx-lm's
KVCache). Truncating moves an offset. This module knows tensors and positions, and nothing of
token ids, files or budgets. Whatever writes a buffer runs under `torch.inference_mode`: a buffer
made inside it cannot be written outside.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from transformers.cache_utils import Cache, CacheLayerMixin

from chatcache.cache.segfile import TensorSource

_GROWTH_TOKENS = 256
_DTYPE_NAMES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}
_DTYPES = {name: dtype for dtype, name in _DTYPE_NAMES.items()}


class GrowingLayer(CacheLayerMixin):  # type: ignore[no-untyped-call]
    """K and V of one layer for tokens 0 to `num_tokens`, in one growing buffer each."""

    is_sliding = False
    is_compileable = False

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.num_tokens = 0
        self._buffers: dict[str, torch.Tensor] = {}

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
                (1, num_heads, _GROWTH_TOKENS, head_dim), dtype=dtype, device=device
            )

    def reserve(self, num_tokens: int) -> None:
        """Make room for `num_tokens` in all. Growing by half keeps the copies linear in total."""
        for kind, buffer in self._buffers.items():
            capacity = buffer.shape[2]
            if num_tokens <= capacity:
                continue
            wanted = max(num_tokens, capacity + capacity // 2)
            rounded = -(-wanted // _GROWTH_TOKENS) * _GROWTH_TOKENS
            grown = buffer.new_empty((1, buffer.shape[1], rounded, buffer.shape[3]))
            grown[:, :, : self.num_tokens] = buffer[:, :, : self.num_tokens]
            self._buffers[kind] = grown

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


@dataclass(frozen=True, slots=True)
class KVBlock:
    """K and V of a run of tokens in host memory, by tensor name (`key.0`, `value.0`, ...).

    Each tensor is contiguous, `[num_kv_heads, num_tokens, head_dim]`, and never written again.
    """

    tensors: dict[str, torch.Tensor]

    @property
    def num_bytes(self) -> int:
        return sum(tensor.nbytes for tensor in self.tensors.values())

    def sources(self) -> list[TensorSource]:
        """The block as a segment file wants it; the buffers share the block's memory."""
        return [
            TensorSource(name, _DTYPE_NAMES[tensor.dtype], tuple(tensor.shape), (_memory(tensor),))
            for name, tensor in self.tensors.items()
        ]


class LiveKV(Cache):
    """The growing layers of the active path. All layers always hold the same tokens."""

    def __init__(self, num_layers: int, dtype: torch.dtype, device: torch.device):
        self._growing = [GrowingLayer() for _ in range(num_layers)]
        super().__init__(layers=list(self._growing))
        self._dtype = dtype
        self._device = device
        self._staged: dict[str, torch.Tensor] = {}

    @property
    def num_tokens(self) -> int:
        return min(layer.num_tokens for layer in self._growing)

    @property
    def num_bytes(self) -> int:
        """Bytes of the tokens held (the buffers may be up to half as large again)."""
        return sum(
            layer.view(kind).nbytes
            for layer in self._growing
            if layer.is_initialized
            for kind in ("key", "value")
        )

    def truncate(self, num_tokens: int) -> None:
        """Keep the first `num_tokens` tokens; in O(1), nothing is freed."""
        for layer in self._growing:
            layer.set_length(min(layer.num_tokens, num_tokens))

    @torch.inference_mode()
    def export(self, start: int, stop: int) -> KVBlock:
        """Copy tokens `start` to `stop` into host memory."""
        tensors = {}
        for index, layer in enumerate(self._growing):
            for kind in ("key", "value"):
                view = layer.view(kind, start, stop)[0]
                tensors[f"{kind}.{index}"] = view.to("cpu", copy=True).contiguous()
        return KVBlock(tensors)

    @torch.inference_mode()
    def load(self, block: KVBlock, at: int, start: int, stop: int) -> None:
        """Copy tokens `start` to `stop` of a block whose first token has position `at`."""
        for name, tensor in block.tensors.items():
            layer, kind = self._locate(name)
            layer.allocate(kind, tensor.shape[0], tensor.shape[2], self._dtype, self._device)
            layer.reserve(stop)
            layer.view(kind, start, stop)[0].copy_(tensor[:, start - at : stop - at])

    @torch.inference_mode()
    def writable(
        self, name: str, dtype: str, shape: tuple[int, ...], start: int
    ) -> list[memoryview]:
        """Memory for a tensor `[num_kv_heads, num_tokens, head_dim]` at `start`: a piece per head.

        On the CPU it is the live buffer itself. On other devices it is host memory that `written`
        copies over. Raises ValueError if the tensor does not belong to this model.
        """
        layer, kind = self._locate(name)
        if _DTYPES.get(dtype) != self._dtype or len(shape) != 3:
            raise ValueError(f"{name} is {dtype}{list(shape)}, the model wants {self._dtype}")
        layer.allocate(kind, shape[0], shape[2], self._dtype, self._device)
        stop = start + shape[1]
        layer.reserve(stop)
        target = layer.view(kind, start, stop)[0]
        if target.shape != shape:
            raise ValueError(f"{name} is {list(shape)}, the model wants {list(target.shape)}")
        if self._device.type != "cpu":
            target = self._staged[name] = torch.empty(shape, dtype=self._dtype)
        return [_memory(head) for head in target]

    @torch.inference_mode()
    def written(self, name: str, start: int) -> None:
        """The memory that `writable` gave is filled."""
        staged = self._staged.pop(name, None)
        if staged is not None:
            layer, kind = self._locate(name)
            layer.view(kind, start, start + staged.shape[1])[0].copy_(staged)

    def set_length(self, num_tokens: int) -> None:
        """All layers now hold `num_tokens` tokens: what was loaded or read in place counts."""
        for layer in self._growing:
            layer.set_length(num_tokens)

    def _locate(self, name: str) -> tuple[GrowingLayer, str]:
        kind, _, index = name.partition(".")
        is_known = kind in ("key", "value") and index.isdecimal()
        if not is_known or int(index) >= len(self._growing):
            raise ValueError(f"{name} is not a tensor of this model")
        return self._growing[int(index)], kind


def _memory(tensor: torch.Tensor) -> memoryview:
    """The bytes of a contiguous CPU tensor, shared."""
    flat = tensor.view(-1).view(torch.uint8)
    return memoryview(flat.numpy())  # type: ignore[arg-type]
