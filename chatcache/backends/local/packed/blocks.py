"""Matrices of weights in GGUF's block formats, as they lie in a file.

Owns the kinds of blocks and their sizes. A row of a matrix is a run of blocks; a block holds a
fixed number of weights in a fixed number of bytes, its scale among them. Nothing here knows files,
models, or how a product is computed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch


@dataclass(frozen=True, slots=True)
class BlockKind:
    """How a run of weights is laid out. `ggml_type` is its number in a GGUF file."""

    name: str
    ggml_type: int
    num_weights: int
    num_bytes: int

    def row_bytes(self, num_columns: int) -> int:
        """Raises ValueError for a row that is no whole number of blocks."""
        num_blocks, rest = divmod(num_columns, self.num_weights)
        if rest:
            raise ValueError(f"{num_columns} columns are no whole number of {self.name} blocks")
        return num_blocks * self.num_bytes


# name, number in a file, weights per block, bytes per block. The sizes are those of ggml's
# `block_*` structures.
_SIZES = (
    ("F32", 0, 1, 4),
    ("F16", 1, 1, 2),
    ("BF16", 30, 1, 2),
    ("Q4_0", 2, 32, 18),
    ("Q4_1", 3, 32, 20),
    ("Q5_0", 6, 32, 22),
    ("Q5_1", 7, 32, 24),
    ("Q8_0", 8, 32, 34),
    ("Q2_K", 10, 256, 84),
    ("Q3_K", 11, 256, 110),
    ("Q4_K", 12, 256, 144),
    ("Q5_K", 13, 256, 176),
    ("Q6_K", 14, 256, 210),
    ("IQ4_NL", 20, 32, 18),
    ("IQ4_XS", 23, 256, 136),
    ("MXFP4", 39, 32, 17),
    ("TQ1_0", 34, 256, 54),
    ("TQ2_0", 35, 256, 66),
)
KINDS = {name: BlockKind(name, *numbers) for name, *numbers in _SIZES}
KINDS_BY_TYPE = {kind.ggml_type: kind for kind in KINDS.values()}


@dataclass(frozen=True, slots=True)
class BlockMatrix:
    """Weights `[num_rows, num_columns]` as blocks: `data` is uint8 `[num_rows, row_bytes]`,
    contiguous, usually a view of a mapped file. Raises ValueError if the sizes do not fit."""

    kind: BlockKind
    data: torch.Tensor
    num_columns: int

    def __post_init__(self) -> None:
        expected = self.kind.row_bytes(self.num_columns)
        is_right = self.data.dim() == 2 and self.data.shape[1] == expected
        if not is_right or self.data.dtype != torch.uint8 or not self.data.is_contiguous():
            raise ValueError(
                f"rows of {self.num_columns} weights in {self.kind.name} are {expected} bytes; "
                f"got {self.data.dtype} {tuple(self.data.shape)}"
            )

    @property
    def num_rows(self) -> int:
        return int(self.data.shape[0])

    @property
    def address(self) -> int:
        return self.data.data_ptr()

    @property
    def num_bytes(self) -> int:
        return int(self.data.numel())

    def rows(self, ids: torch.Tensor) -> BlockMatrix:
        """Some of its rows. Raises IndexError for an id that is no row."""
        return BlockMatrix(self.kind, self.data[ids], self.num_columns)

    def part(self, start: int, stop: int) -> BlockMatrix:
        """The rows from `start` to `stop`: a view."""
        return BlockMatrix(self.kind, self.data[start:stop], self.num_columns)


class PackedMatrix(Protocol):
    """A packed matrix in whatever form: where its bytes begin, and how many they are."""

    @property
    def kind(self) -> BlockKind: ...

    @property
    def address(self) -> int: ...

    @property
    def num_bytes(self) -> int: ...


class PackedModule(torch.nn.Module):
    """A module with matrices of blocks. What is one can be told without the kernels."""

    @property
    def matrices(self) -> Sequence[PackedMatrix]:
        """All that it holds."""
        raise NotImplementedError


def is_packed(model: torch.nn.Module) -> bool:
    """Whether a model has weights in blocks."""
    return any(isinstance(module, PackedModule) for module in model.modules())
