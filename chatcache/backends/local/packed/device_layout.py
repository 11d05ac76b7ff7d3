"""Where the fields of packed blocks lie on a card: apart from each other, as its kernels read them.

In a file a block has its scales and its codes side by side, in 17 or 210 bytes, so that hardly a
load is aligned. On the card the same number of bytes lies in another order: the low bits of all
codes of a matrix, then their high bits, the scales of runs within blocks, and the units, which a
whole block is scaled with. Codes follow each other as their columns do, so that those of 32 columns
are a whole number of words.

Owns that order, and what the codes of each kind are. The layouts in a file are those of ggml's
`block_*` structures (see `decoders.py`).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch

from chatcache.backends.local.packed.blocks import BlockKind, BlockMatrix

_CHUNK_WEIGHTS = 1 << 24  # put in order at a time


@dataclass(frozen=True, slots=True)
class Codes:
    """Numbers of `bits` from byte `start` to `stop` of a block: `run` bytes hold the lowest bits of
    so many columns, then, above them, those of the next ones."""

    start: int = 0
    stop: int = 0
    bits: int = 0
    run: int = 1


@dataclass(frozen=True, slots=True)
class Layout:
    """A kind of blocks. A weight is `scale x (code - middle) + minimum`, or what `book` has at its
    code. `scaling` says how scale and minimum of `span` columns are made of `scales` and `units`,
    which are bytes of a block from the first up to the second number."""

    scaling: str
    units: tuple[int, int]
    low: Codes
    high: Codes = Codes()
    scales: tuple[int, int] = (0, 0)
    span: int = 32
    middle: int = 0
    book: tuple[int, ...] = ()


_UNEVEN = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)
_FLOATS_OF_4_BITS = (0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12)

LAYOUTS = {
    "Q4_0": Layout("one", (0, 2), Codes(2, 18, 4, 16), middle=8),
    "Q4_1": Layout("two", (0, 4), Codes(4, 20, 4, 16)),
    "Q5_0": Layout("one", (0, 2), Codes(6, 22, 4, 16), Codes(2, 6, 1, 1), middle=16),
    "Q5_1": Layout("two", (0, 4), Codes(8, 24, 4, 16), Codes(4, 8, 1, 1)),
    "Q8_0": Layout("one", (0, 2), Codes(2, 34, 8, 32), middle=128),
    "Q2_K": Layout("Q2_K", (80, 84), Codes(16, 80, 2, 32), scales=(0, 16), span=16),
    "Q3_K": Layout(
        "Q3_K", (108, 110), Codes(32, 96, 2, 32), Codes(0, 32, 1, 32), (96, 108), 16, middle=4
    ),
    "Q4_K": Layout("Q4_K", (0, 4), Codes(16, 144, 4, 32), scales=(4, 16)),
    "Q5_K": Layout("Q4_K", (0, 4), Codes(48, 176, 4, 32), Codes(16, 48, 1, 32), (4, 16)),
    "Q6_K": Layout(
        "Q6_K", (208, 210), Codes(0, 128, 4, 64), Codes(128, 192, 2, 32), (192, 208), 16, middle=32
    ),
    "IQ4_NL": Layout("one", (0, 2), Codes(2, 18, 4, 16), book=_UNEVEN),
    "IQ4_XS": Layout("IQ4_XS", (0, 2), Codes(8, 136, 4, 16), scales=(2, 8), book=_UNEVEN),
    "MXFP4": Layout("MXFP4", (0, 1), Codes(1, 17, 4, 16), book=_FLOATS_OF_4_BITS),
    "TQ2_0": Layout("one", (64, 66), Codes(0, 64, 2, 32), middle=1),
}


@dataclass(frozen=True, slots=True)
class SplitMatrix:
    """Weights `[num_rows, num_columns]` with their fields apart: each is uint8 `[num_rows,
    num_blocks, bytes of a block]`, contiguous."""

    kind: BlockKind
    num_columns: int
    low: torch.Tensor
    high: torch.Tensor
    scales: torch.Tensor
    units: torch.Tensor

    @property
    def num_rows(self) -> int:
        return int(self.low.shape[0])

    @property
    def num_blocks(self) -> int:
        return int(self.low.shape[1])

    @property
    def address(self) -> int:
        return self.low.data_ptr()

    @property
    def num_bytes(self) -> int:
        return sum(field.numel() for field in self._fields)

    @property
    def _fields(self) -> tuple[torch.Tensor, ...]:
        return self.low, self.high, self.scales, self.units

    def rows(self, ids: torch.Tensor) -> SplitMatrix:
        """Some of its rows. Raises IndexError for an id that is no row."""
        return self._of(lambda field: field[ids])

    def part(self, start: int, stop: int) -> SplitMatrix:
        """The rows from `start` to `stop`: views."""
        return self._of(lambda field: field[start:stop])

    def _of(self, taken: Callable[[torch.Tensor], torch.Tensor]) -> SplitMatrix:
        return SplitMatrix(self.kind, self.num_columns, *map(taken, self._fields))


def split(matrix: BlockMatrix) -> SplitMatrix:
    """The same weights with their fields apart, in as many bytes."""
    layout, num_rows = LAYOUTS[matrix.kind.name], matrix.num_rows
    blocks = matrix.data.view(num_rows, -1, matrix.kind.num_bytes)
    places = [
        (layout.low.start, layout.low.stop),
        (layout.high.start, layout.high.stop),
        layout.scales,
        layout.units,
    ]
    fields = _fields_in(torch.empty_like(matrix.data), blocks, [end - at for at, end in places])
    step = max(1, _CHUNK_WEIGHTS // matrix.num_columns)
    for start in range(0, num_rows, step):
        rows = slice(start, start + step)
        chunk = blocks[rows]
        for field, (at, end), codes in zip(
            fields, places, (layout.low, layout.high, None, None), strict=True
        ):
            taken = chunk[:, :, at:end]
            field[rows] = taken if codes is None or at == end else _in_order(taken, codes)
    return SplitMatrix(matrix.kind, matrix.num_columns, *fields)


def _fields_in(
    data: torch.Tensor, blocks: torch.Tensor, sizes: list[int]
) -> tuple[torch.Tensor, ...]:
    """The fields of all blocks, one behind the other in `data`."""
    shapes = [(*blocks.shape[:2], size) for size in sizes]
    parts = torch.split(data.view(-1), [math.prod(shape) for shape in shapes])
    return tuple(part.view(shape) for part, shape in zip(parts, shapes, strict=True))


def _in_order(packed: torch.Tensor, codes: Codes) -> torch.Tensor:
    """The codes of blocks in the order of their columns, the first in the lowest bits."""
    numbers = numbers_in(packed.reshape(-1, packed.shape[2] // codes.run, codes.run), codes.bits)
    if codes.bits == 8:
        numbers = numbers ^ 128  # they have a sign: now from 0 up
    numbers = numbers.reshape(-1, 8 // codes.bits)
    ordered = torch.zeros_like(numbers[:, 0])
    for place in range(8 // codes.bits):
        ordered |= numbers[:, place] << (place * codes.bits)
    return ordered.view(packed.shape)


def numbers_in(packed: torch.Tensor, bits: int) -> torch.Tensor:
    """Numbers of so many bits in bytes `[num_blocks, runs, width]`: of each run the lowest bits
    first, `[num_blocks, runs * 8 / bits, width]`."""
    shifted = [(packed >> shift) & ((1 << bits) - 1) for shift in range(0, 8, bits)]
    return torch.stack(shifted, dim=2).flatten(1, 2)
