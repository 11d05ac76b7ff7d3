"""The words that book, files and tensors share: spans of a path, blocks of K and V, the live KV.

The cache is free of torch: a block of K and V is anything that has a size and can list its memory,
and the live KV is anything that can take it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol


@dataclass(frozen=True, slots=True)
class Span:
    """Positions `start` to `stop` of a path, held by one segment."""

    segment_id: str
    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class TensorSource:
    """One tensor to write: dtype as safetensors names it, and its bytes in order, unjoined."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    buffers: tuple[memoryview, ...]

    @property
    def num_bytes(self) -> int:
        return sum(buffer.nbytes for buffer in self.buffers)


class LostBlockError(Exception):
    """The content of a block never got where it should be; `str(error)` says why."""


class Block(Protocol):
    """K and V of a run of tokens in host memory, immutable."""

    @property
    def num_bytes(self) -> int: ...

    @property
    def has_states(self) -> bool:
        """Whether the checkpoint behind its last token is in it."""

    def sources(self) -> Sequence[TensorSource]:
        """The tensors for a segment file. Raises LostBlockError if it has no content."""


class Resident(Protocol):
    """K and V of a run of tokens in the memory of a device, immutable."""

    @property
    def num_bytes(self) -> int: ...


class KVSink(Protocol):
    """The live KV, where a prefix is restored to. Positions are absolute."""

    def adopt(self, block: Any, num_tokens: int) -> bool:
        """Go on behind the first `num_tokens` of the path of a block where they lie, if they can be
        gone on with there; returns whether that is so."""

    def load(self, block: Any, at: int, start: int, stop: int) -> None:
        """Copy positions `start` to `stop` from a block, or a resident, whose first position is
        `at`. Raises LostBlockError if it has no content."""

    def flush(self) -> None:
        """Have what was loaded on its way, if it is not there yet."""

    def writable(
        self, name: str, dtype: str, shape: tuple[int, ...], start: int
    ) -> list[memoryview]:
        """Memory, a piece per head, for `[num_kv_heads, num_tokens, head_dim]` at `start`.

        Raises ValueError if the tensor does not fit the model."""

    def written(self, name: str, start: int) -> None:
        """The memory from `writable` is filled."""

    def set_length(self, num_tokens: int) -> None:
        """What was loaded or written up to here counts from now on."""

    def load_states(self, block: Any) -> None:
        """Put the checkpoint of a block back. Raises ValueError if it is not one of the model."""

    def writable_state(self, name: str, dtype: str, shape: tuple[int, ...]) -> memoryview:
        """Memory for a tensor of a checkpoint. Raises ValueError if the model has no such."""

    def states_written(self) -> None:
        """The memory from `writable_state` is filled. Raises ValueError if some is missing."""
