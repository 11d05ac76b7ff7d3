"""K and V of a run of tokens in slabs of host memory, for a model on a device of its own.

Immutable. What is on its way there is waited for by whoever reads it.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch

from chatcache.cache.segments import LostBlockError, TensorSource
from chatcache.cache.tensors.blocks import sources_of
from chatcache.cache.tensors.link import Event, Stream
from chatcache.cache.tensors.slabs import SlabPiece, Slabs

_ALIGNMENT = 16  # of each tensor in its piece


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """What a tensor is, without its content."""

    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def num_bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    @property
    def room(self) -> int:
        """Its bytes, and those up to where another tensor may begin."""
        return -(-self.num_bytes // _ALIGNMENT) * _ALIGNMENT


@dataclass(slots=True)
class SlabTensors:
    """Contiguous tensors by name, and the pieces of slabs that they are views of."""

    tensors: dict[str, torch.Tensor] = field(default_factory=dict)
    pieces: list[SlabPiece] = field(default_factory=list)

    @property
    def num_bytes(self) -> int:
        return sum(tensor.nbytes for tensor in self.tensors.values())

    def join(self, other: SlabTensors) -> None:
        self.tensors.update(other.tensors)
        self.pieces += other.pieces


class SlabBlock:
    """A run in host memory; `states` is the checkpoint behind its last token, if there is one.

    Made before its content is there: `fill` says where that is, and when it has arrived.
    """

    def __init__(self, num_bytes: int, states: dict[str, torch.Tensor] | None = None):
        self.states: Mapping[str, torch.Tensor] = states or {}
        state_bytes = sum(tensor.nbytes for tensor in self.states.values())
        self.num_bytes = num_bytes + state_bytes
        self._memory = SlabTensors()
        self._arrival: Event | None = None
        self._problem: str | None = None
        self._is_queued = threading.Event()

    def fill(self, memory: SlabTensors, arrival: Event | None = None) -> None:
        """The content lies in `memory` once `arrival` is over."""
        self._memory, self._arrival = memory, arrival
        self._is_queued.set()

    def lose(self, problem: str) -> None:
        """There will be no content."""
        self._problem = problem
        self._is_queued.set()

    @property
    def has_states(self) -> bool:
        return bool(self.states)

    def has_arrived(self) -> bool:
        """Whether the content is there, or lost; nobody waits."""
        if not self._is_queued.is_set():
            return False
        arrival = self._arrival
        return arrival is None or arrival.is_over()

    @property
    def tensors(self) -> Mapping[str, torch.Tensor]:
        """By name, each `[num_kv_heads, num_tokens, head_dim]`; the host waits for them. They are
        good as long as the block is held. Raises LostBlockError."""
        tensors = self._queued()
        if (arrival := self._arrival) is not None:
            arrival.wait()
        return tensors

    def tensors_behind(self, stream: Stream) -> Mapping[str, torch.Tensor]:
        """The same for what is queued on `stream` from now on: it waits, and not the host."""
        tensors = self._queued()
        if (arrival := self._arrival) is not None:
            stream.follow(arrival)
        return tensors

    def sources(self) -> list[TensorSource]:
        """The block as a segment file wants it; the memory is shared. Raises LostBlockError."""
        return sources_of({**self.tensors, **self.states})

    def _queued(self) -> Mapping[str, torch.Tensor]:
        self._is_queued.wait()
        if self._problem is not None:
            raise LostBlockError(self._problem)
        return self._memory.tensors


def carve_tensors(slabs: Slabs, like: Mapping[str, TensorSpec], share_bytes: int) -> SlabTensors:
    """Memory for tensors of these shapes. Those of up to `share_bytes` in all share a piece, so
    that a short run is one. Raises MemoryError or RuntimeError."""
    made = SlabTensors()
    group: dict[str, TensorSpec] = {}
    size = 0
    for name, spec in like.items():
        if group and size + spec.room > share_bytes:
            _add_piece(made, slabs, group, size)
            group, size = {}, 0
        group[name] = spec
        size += spec.room
    if group:
        _add_piece(made, slabs, group, size)
    return made


def _add_piece(
    made: SlabTensors, slabs: Slabs, group: Mapping[str, TensorSpec], num_bytes: int
) -> None:
    """Carve one piece for a group of tensors, one behind the other."""
    piece = slabs.carve(num_bytes)
    tensors, start = {}, 0
    for name, spec in group.items():
        memory = piece.memory[start : start + spec.num_bytes]
        tensors[name] = memory.view(spec.dtype).view(spec.shape)
        start += spec.room
    made.join(SlabTensors(tensors, [piece]))
