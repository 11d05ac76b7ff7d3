"""Split matrices put together again, and products with them, without the kernels of a GPU."""

from __future__ import annotations

from types import SimpleNamespace

import torch
from torch.nn.functional import linear

from chatcache.backends.local.packed import device_computing
from chatcache.backends.local.packed.blocks import BlockMatrix
from chatcache.backends.local.packed.device_layout import LAYOUTS, Codes, SplitMatrix


def joined(split: SplitMatrix) -> BlockMatrix:
    """The blocks as they lie in a file."""
    layout = LAYOUTS[split.kind.name]
    shape = (split.num_rows, split.num_blocks, split.kind.num_bytes)
    blocks = torch.zeros(shape, dtype=torch.uint8)
    for codes, field in ((layout.low, split.low), (layout.high, split.high)):
        if codes.bits:
            blocks[:, :, codes.start : codes.stop] = _as_in_file(field, codes)
    for (start, stop), field in ((layout.scales, split.scales), (layout.units, split.units)):
        blocks[:, :, start:stop] = field
    return BlockMatrix(split.kind, blocks.flatten(1), split.num_columns)


def _as_in_file(field: torch.Tensor, codes: Codes) -> torch.Tensor:
    shifts = range(0, 8, codes.bits)
    numbers = torch.stack([(field >> shift) & ((1 << codes.bits) - 1) for shift in shifts], -1)
    if codes.bits == 8:
        numbers = numbers ^ 128
    runs = numbers.reshape(*field.shape[:2], -1, len(shifts), codes.run)
    packed = torch.zeros_like(runs[:, :, :, 0])
    for place, shift in enumerate(shifts):
        packed |= runs[:, :, :, place] << shift
    return packed.flatten(2)


def unpacked(split: SplitMatrix, dtype: torch.dtype) -> torch.Tensor:
    return device_computing.unpacked(joined(split), dtype)


def multiplied(rows: torch.Tensor, split: SplitMatrix) -> torch.Tensor:
    return linear(rows, unpacked(split, rows.dtype))


# In the place of `device_products`, which imports Triton.
PRODUCTS = SimpleNamespace(unpacked=unpacked, multiplied=multiplied)
