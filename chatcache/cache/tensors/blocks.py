"""K and V of a run of tokens in host memory, for the RAM tier and for segment files.

A block has memory of its own (`KVBlock`), or lies where it was computed, in the buffers of the live
path (`LentBlock`). What lies there is never written again: whoever would have to takes other
buffers (see `layers.py`). So both kinds are immutable to whoever reads them, in any thread.
"""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch

from chatcache.cache.segments import TensorSource
from chatcache.cache.tensors.layers import Buffers

_DTYPE_NAMES = {
    torch.float32: "F32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.int8: "I8",
}
DTYPES = {name: dtype for dtype, name in _DTYPE_NAMES.items()}


class TensorBlock(Protocol):
    """What both kinds of blocks are to the live KV: tensors by name (`key.0`, `value.0`, ...),
    each `[num_kv_heads, num_tokens, head_dim]`, contiguous within a head."""

    @property
    def tensors(self) -> Mapping[str, torch.Tensor]: ...

    @property
    def states(self) -> Mapping[str, torch.Tensor]: ...

    @property
    def num_bytes(self) -> int: ...

    @property
    def has_states(self) -> bool: ...

    def sources(self) -> list[TensorSource]: ...


@dataclass(frozen=True, slots=True)
class KVBlock:
    """A block with memory of its own, a contiguous tensor per name.

    `states` is the checkpoint behind the last token, for models that have one.
    """

    tensors: dict[str, torch.Tensor]
    states: dict[str, torch.Tensor] = field(default_factory=dict)

    @property
    def num_bytes(self) -> int:
        return sum(tensor.nbytes for tensor in (*self.tensors.values(), *self.states.values()))

    @property
    def has_states(self) -> bool:
        return bool(self.states)

    def sources(self) -> list[TensorSource]:
        """The block as a segment file wants it; the memory is shared."""
        return sources_of({**self.tensors, **self.states})


@dataclass(eq=False, slots=True, weakref_slot=True)
class LentBlock:
    """Positions `start` to `stop` of the buffers of a live path, by layer number. Only the
    `lender`, a live KV, may go on behind them.

    All positions before `stop` are frozen there, so the buffers hold the whole path of the block.
    """

    homes: dict[int, Buffers]
    start: int
    stop: int
    lender: weakref.ref[Any]

    @property
    def tensors(self) -> dict[str, torch.Tensor]:
        return {
            f"{kind}.{number}": tensor[0, :, self.start : self.stop]
            for number, home in self.homes.items()
            for kind, tensor in home.tensors.items()
        }

    @property
    def states(self) -> dict[str, torch.Tensor]:
        return {}

    @property
    def num_bytes(self) -> int:
        return sum(tensor.nbytes for tensor in self.tensors.values())

    @property
    def has_states(self) -> bool:
        return False

    def sources(self) -> list[TensorSource]:
        """The block as a segment file wants it; the memory is shared."""
        return sources_of(self.tensors)

    def move(self, number: int, home: Buffers) -> None:
        """The buffers of a layer have grown: the same positions lie in others now."""
        self.homes[number] = home


@dataclass(frozen=True, slots=True)
class ResidentBlock:
    """A run that stays on the device that the model computes on, a contiguous tensor per name."""

    tensors: dict[str, torch.Tensor]

    @property
    def num_bytes(self) -> int:
        return sum(tensor.nbytes for tensor in self.tensors.values())


def sources_of(tensors: Mapping[str, torch.Tensor]) -> list[TensorSource]:
    """Tensors in host memory as a segment file wants them; the memory is shared."""
    return [
        TensorSource(name, _DTYPE_NAMES[tensor.dtype], tuple(tensor.shape), _pieces(tensor))
        for name, tensor in tensors.items()
    ]


def _pieces(tensor: torch.Tensor) -> tuple[memoryview, ...]:
    if tensor.is_contiguous():
        return (memory_of(tensor),)
    return tuple(memory_of(head) for head in tensor)


def memory_of(tensor: torch.Tensor) -> memoryview:
    """The bytes of a contiguous CPU tensor, shared."""
    flat = tensor.view(-1).view(torch.uint8)
    return memoryview(flat.numpy())  # type: ignore[arg-type]
