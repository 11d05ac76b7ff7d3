"""K and V kept as 8-bit integers: about half the bytes of bfloat16, and approximate.

`x` is kept as `round(x / scale)`, at most 127 either way. A scale is shared by one channel of the
keys in a block, and by one token of the values: keys have channels that are far larger than the
others (KIVI, Liu et al., arXiv 2402.02750). Whatever is kept is read back into the live K and V at
once, so a conversation that goes on has the same bits as one that was closed and resumed. States of
recurrent and convolution layers stay exact: an error in them would grow with each token.

Segments of this kind have a namespace of their own (`namespace.py`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from chatcache.cache.tensors.blocks import KVBlock, TensorBlock, memory_of
from chatcache.cache.tensors.live_kv import LiveKV

MAX_INTEGER = 127
_SHARED_BY = {"key": 1, "value": 2}  # the dimension whose numbers share a scale
_ROUNDING_UP = 1 + 2**-8  # a scale in bfloat16 must not come out too small
SCALE_PREFIXES = ("key_scale.", "value_scale.")


def quantise(tensor: torch.Tensor, kind: str) -> tuple[torch.Tensor, torch.Tensor]:
    """`[num_kv_heads, num_tokens, head_dim]` as int8, and the scales in bfloat16:
    `[num_kv_heads, 1, head_dim]` for "key", `[num_kv_heads, num_tokens, 1]` for "value".

    The difference is at most half a scale; a scale is the largest |x| that shares it, / 127.
    """
    wide = tensor.float()
    largest = wide.abs().amax(dim=_SHARED_BY[kind], keepdim=True)
    scales = (largest * (_ROUNDING_UP / MAX_INTEGER)).to(torch.bfloat16)
    divisors = torch.where(scales == 0, torch.ones_like(scales), scales).float()
    integers = (wide / divisors).round_().clamp_(-MAX_INTEGER, MAX_INTEGER)
    return integers.to(torch.int8), scales


def dequantise(integers: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """The inverse of `quantise` as far as there is one, in float32."""
    return integers * scales.float()


class SettlingKV(LiveKV):
    """A live KV some of whose first tokens are what blocks hold of them, and others are exact."""

    def __init__(self, *args: Any, **options: Any):
        super().__init__(*args, **options)
        self._num_settled = 0

    @property
    def lends(self) -> bool:
        return False  # blocks are integers

    @property
    def num_settled(self) -> int:
        return self._num_settled

    def truncate(self, num_tokens: int) -> None:
        super().truncate(num_tokens)
        self._num_settled = min(self._num_settled, num_tokens)

    def set_length(self, num_tokens: int) -> None:
        super().set_length(num_tokens)
        self._num_settled = num_tokens

    def note_exported(self, start: int, stop: int) -> None:
        if start <= self._num_settled:
            self._num_settled = max(self._num_settled, stop)


class Int8KV(SettlingKV):
    """A live KV whose blocks and files are 8-bit integers."""

    @torch.inference_mode()
    def export(
        self, start: int, stop: int, states: dict[str, torch.Tensor] | None = None
    ) -> KVBlock:
        """Like the exact one; what is live from `start` to `stop` is then what is in the block."""
        tensors: dict[str, torch.Tensor] = {}
        for name, live in self._runs(start, stop).items():
            integers, scales = settle(live, name)
            tensors[scales_of(name)] = scales.cpu().contiguous()
            tensors[name] = integers.cpu().contiguous()
        self.note_exported(start, stop)
        return KVBlock(tensors, states or {})

    @torch.inference_mode()
    def load(self, block: TensorBlock, at: int, start: int, stop: int) -> None:
        for name, (integers, scales) in parts_of(block.tensors, start - at, stop - at).items():
            self._put(name, integers, scales, start)

    @torch.inference_mode()
    def writable(
        self, name: str, dtype: str, shape: tuple[int, ...], start: int
    ) -> list[memoryview]:
        """Host memory for the integers of a tensor, or for its scales, which come before them."""
        self._locate(name.replace("_scale", ""))
        staged = torch.empty(shape, dtype=stored_dtype(name, dtype, shape))
        self._staged[name] = staged
        return [memory_of(head) for head in staged]

    @torch.inference_mode()
    def written(self, name: str, start: int) -> None:
        if name.startswith(SCALE_PREFIXES):
            return
        integers, scales = self._staged.pop(name), self._staged.pop(scales_of(name), None)
        if scales is None or not are_scales_of(integers, scales, name):
            raise ValueError(f"{name} has no scales")
        self._put(name, integers, scales, start)

    def _put(self, name: str, integers: torch.Tensor, scales: torch.Tensor, start: int) -> None:
        """Write `[num_kv_heads, num_tokens, head_dim]` to the live positions from `start` on."""
        layer, kind = self._locate(name)
        num_heads, num_tokens, head_dim = integers.shape
        layer.allocate(kind, num_heads, head_dim, self._dtype, self._device)
        layer.claim(start, start + num_tokens)
        live = layer.view(kind, start, start + num_tokens)[0]
        if live.shape != integers.shape:
            raise ValueError(f"{name} is {list(integers.shape)}, the model has {list(live.shape)}")
        live.copy_(dequantise(integers.to(self._device), scales.to(self._device)))


def settle(live: torch.Tensor, name: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Quantise what is live of a tensor, `key.N` or `value.N`; it is then what the integers say."""
    integers, scales = quantise(live, name.partition(".")[0])
    live.copy_(dequantise(integers, scales))
    return integers, scales


def parts_of(
    tensors: Mapping[str, torch.Tensor], start: int, stop: int
) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Tokens `start` to `stop` of a block: the integers of each tensor, and the scales."""
    parts = {}
    for name, integers in tensors.items():
        if name.startswith(SCALE_PREFIXES):
            continue
        scales = tensors[scales_of(name)]
        is_per_token = scales.shape[1] == integers.shape[1]
        part = scales[:, start:stop] if is_per_token else scales
        parts[name] = integers[:, start:stop], part
    return parts


def stored_dtype(name: str, dtype: str, shape: tuple[int, ...]) -> torch.dtype:
    """How a tensor of a file is kept: integers, or their scales. Raises ValueError for others."""
    is_scale = name.startswith(SCALE_PREFIXES)
    if (dtype, len(shape)) != ("BF16" if is_scale else "I8", 3):
        raise ValueError(f"{name} is {dtype}{list(shape)}, the model wants int8 and its scales")
    return torch.bfloat16 if is_scale else torch.int8


def are_scales_of(integers: torch.Tensor, scales: torch.Tensor, name: str) -> bool:
    """Whether the shape of the scales fits a tensor, `key.N` or `value.N`."""
    wanted = list(integers.shape)
    wanted[_SHARED_BY[name.partition(".")[0]]] = 1
    return list(scales.shape) == wanted


def scales_of(name: str) -> str:
    """The name of the scales that belong to a tensor: `key.0` has `key_scale.0`."""
    kind, _, index = name.partition(".")
    return f"{kind}_scale.{index}"
