"""Products with packed matrices on a GPU, and which way is taken.

A matrix whose fields were put apart (`device_ready.py`) is multiplied by a kernel where the rows
are few. For a prompt a part at a time is unpacked by a kernel, in the dtype of the model, and the
ordinary product reads it; so no weight is ever there in two forms for long.

Any other matrix lies on the device as in the file, and each part is unpacked by torch: arithmetic
of whole tensors, which takes about ten times as long per weight as weights that were unpacked
before. Both ways give the bits that unpacking gives on a CPU. The layouts are those of ggml's
`block_*` structures (see `decoders.py`). Nothing is asked of the host, so that a graph can hold it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.nn.functional import linear

from chatcache.backends.local.packed.blocks import BlockMatrix
from chatcache.backends.local.packed.device_layout import SplitMatrix
from chatcache.backends.local.packed.device_layout import numbers_in as _fields

FEW_ROWS = 16  # of activations: a kernel multiplies them without unpacked weights
_PART_WEIGHTS = 1 << 23  # unpacked at a time
_FLOATS = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


def product(rows: torch.Tensor, matrix: BlockMatrix | SplitMatrix) -> torch.Tensor:
    """`[num, num_columns]` times the transposed matrix: `[num, num_rows]`."""
    if isinstance(matrix, SplitMatrix) and len(rows) <= FEW_ROWS:
        output: torch.Tensor = _products().multiplied(rows, matrix)
        return output
    parts = [linear(rows, weights) for weights in _unpacked_parts(matrix, rows.dtype)]
    return torch.cat(parts, dim=1)


def unpacked(matrix: BlockMatrix | SplitMatrix, dtype: torch.dtype) -> torch.Tensor:
    """All weights of a matrix, `[num_rows, num_columns]`."""
    if isinstance(matrix, SplitMatrix):
        output: torch.Tensor = _products().unpacked(matrix, dtype)
        return output
    plain = _FLOATS.get(matrix.kind.name)
    if plain is not None:
        return matrix.data.view(plain).to(dtype)
    blocks = matrix.data.reshape(-1, matrix.kind.num_bytes)
    weights = UNPACKERS[matrix.kind.name](blocks)
    return weights.reshape(matrix.num_rows, matrix.num_columns).to(dtype)


def _unpacked_parts(
    matrix: BlockMatrix | SplitMatrix, dtype: torch.dtype
) -> Iterator[torch.Tensor]:
    size = max(1, _PART_WEIGHTS // matrix.num_columns)
    for start in range(0, matrix.num_rows, size):
        yield unpacked(matrix.part(start, start + size), dtype)


def _products() -> Any:
    """What launches kernels; imported where there is a matrix for them, because Triton is not
    everywhere."""
    from chatcache.backends.local.packed import device_products

    return device_products


# what the bytes of blocks mean: uint8 `[num_blocks, num_bytes]` to float32 `[num_blocks, ...]`


def _half(blocks: torch.Tensor, at: int) -> torch.Tensor:
    """A float of 16 bits in each block: float32 `[num_blocks, 1]`."""
    return blocks[:, at : at + 2].contiguous().view(torch.float16).float()


def _nibbles(packed: torch.Tensor) -> torch.Tensor:
    """32 numbers of 4 bits in 16 bytes: the low halves, then the high ones."""
    return _fields(packed[:, None], 4).flatten(1)


def _bits(packed: torch.Tensor) -> torch.Tensor:
    """The bits of bytes `[num_blocks, width]`, those of a byte side by side."""
    return torch.stack([(packed >> bit) & 1 for bit in range(8)], dim=2).flatten(1)


def _signed(numbers: torch.Tensor, middle: int) -> torch.Tensor:
    return numbers.to(torch.int8) - middle


def _q4_0(blocks: torch.Tensor) -> torch.Tensor:
    return _half(blocks, 0) * _signed(_nibbles(blocks[:, 2:]), 8)


def _q4_1(blocks: torch.Tensor) -> torch.Tensor:
    return _half(blocks, 0) * _nibbles(blocks[:, 4:]) + _half(blocks, 2)


def _five_bits(blocks: torch.Tensor, at: int) -> torch.Tensor:
    return _nibbles(blocks[:, at + 4 :]) | (_bits(blocks[:, at : at + 4]) << 4)


def _q5_0(blocks: torch.Tensor) -> torch.Tensor:
    return _half(blocks, 0) * _signed(_five_bits(blocks, 2), 16)


def _q5_1(blocks: torch.Tensor) -> torch.Tensor:
    return _half(blocks, 0) * _five_bits(blocks, 4) + _half(blocks, 2)


def _q8_0(blocks: torch.Tensor) -> torch.Tensor:
    return _half(blocks, 0) * blocks[:, 2:].view(torch.int8)


def _q2_k(blocks: torch.Tensor) -> torch.Tensor:
    numbers = _fields(blocks[:, 16:80].reshape(-1, 2, 32), 2).reshape(-1, 16, 16)
    scales = _half(blocks, 80) * (blocks[:, :16] & 15)
    minima = _half(blocks, 82) * (blocks[:, :16] >> 4)
    return scales[:, :, None] * numbers - minima[:, :, None]


def _q3_k(blocks: torch.Tensor) -> torch.Tensor:
    low = _fields(blocks[:, 32:96].reshape(-1, 2, 32), 2)
    numbers = _signed(low | (_fields(blocks[:, None, :32], 1) << 2), 4).reshape(-1, 16, 16)
    lower = _fields(blocks[:, None, 96:104], 4).flatten(1)
    upper = _fields(blocks[:, None, 104:108], 2).flatten(1)
    scales = _half(blocks, 108) * _signed(lower | (upper << 4), 32)
    return scales[:, :, None] * numbers


def _six_bit_scales(blocks: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """8 scales and 8 minima of Q4_K and Q5_K, `[num_blocks, 8, 1]` each."""
    first, second, third = blocks[:, 4:8], blocks[:, 8:12], blocks[:, 12:16]
    scales = torch.cat([first & 63, (third & 15) | ((first >> 2) & 48)], dim=1)
    minima = torch.cat([second & 63, (third >> 4) | ((second >> 2) & 48)], dim=1)
    return (_half(blocks, 0) * scales)[:, :, None], (_half(blocks, 2) * minima)[:, :, None]


def _q4_k(blocks: torch.Tensor) -> torch.Tensor:
    scales, minima = _six_bit_scales(blocks)
    return scales * _fields(blocks[:, 16:].reshape(-1, 4, 32), 4) - minima


def _q5_k(blocks: torch.Tensor) -> torch.Tensor:
    scales, minima = _six_bit_scales(blocks)
    low = _fields(blocks[:, 48:].reshape(-1, 4, 32), 4)
    return scales * (low | (_fields(blocks[:, None, 16:48], 1) << 4)) - minima


def _q6_k(blocks: torch.Tensor) -> torch.Tensor:
    low = _fields(blocks[:, :128].reshape(-1, 2, 64), 4).reshape(-1, 8, 32)
    high = _fields(blocks[:, 128:192].reshape(-1, 2, 32), 2)
    numbers = _signed(low | (high << 4), 32).reshape(-1, 16, 16)
    scales = _half(blocks, 208) * blocks[:, 192:208].view(torch.int8)
    return scales[:, :, None] * numbers


def _tq1_0(blocks: torch.Tensor) -> torch.Tensor:
    """Five digits of base 3 in a byte, as a fraction of 256: times 3, the carry is a digit."""
    pieces = ((blocks[:, :32], 5), (blocks[:, 32:48], 5), (blocks[:, 48:52], 4))
    places = [piece * 3**place for piece, count in pieces for place in range(count)]
    digits = (torch.cat(places, dim=1).to(torch.int16) * 3) >> 8
    return _half(blocks, 52) * (digits - 1)


def _tq2_0(blocks: torch.Tensor) -> torch.Tensor:
    numbers = _fields(blocks[:, :64].reshape(-1, 2, 32), 2).flatten(1)
    return _half(blocks, 64) * _signed(numbers, 1)


def _uneven(codes: torch.Tensor) -> torch.Tensor:
    """What the codes of 4 bits mean in IQ4_NL and IQ4_XS."""
    return _looked_up(
        codes, (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)
    )


def _looked_up(codes: torch.Tensor, book: tuple[int, ...]) -> torch.Tensor:
    """Without a table on the device: a graph cannot bring one there."""
    numbers = torch.zeros_like(codes, dtype=torch.int8)
    for code, number in enumerate(book):
        numbers.masked_fill_(codes == code, number)
    return numbers


def _iq4_nl(blocks: torch.Tensor) -> torch.Tensor:
    return _half(blocks, 0) * _uneven(_nibbles(blocks[:, 2:]))


def _iq4_xs(blocks: torch.Tensor) -> torch.Tensor:
    numbers = _uneven(_fields(blocks[:, 8:].reshape(-1, 8, 16), 4)).reshape(-1, 8, 32)
    low = torch.stack([blocks[:, 4:8] & 15, blocks[:, 4:8] >> 4], dim=2).flatten(1)
    high = torch.stack([(blocks[:, 2:4] >> shift) & 3 for shift in (0, 2, 4, 6)], dim=2).flatten(1)
    scales = _half(blocks, 0) * _signed(low | (high << 4), 32)
    return scales[:, :, None] * numbers


def _mxfp4(blocks: torch.Tensor) -> torch.Tensor:
    """The codebook is twice the numbers, and the scale, a power of two, half of what is written."""
    codes = _nibbles(blocks[:, 1:])
    numbers = _looked_up(codes, (0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12))
    exponent = blocks[:, :1].to(torch.int32)
    below = torch.full_like(exponent, 0x00200000) << exponent.clamp(max=1)
    scales = torch.where(exponent < 2, below, (exponent - 1) << 23).view(torch.float32)
    return scales * numbers


UNPACKERS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "Q4_0": _q4_0,
    "Q4_1": _q4_1,
    "Q5_0": _q5_0,
    "Q5_1": _q5_1,
    "Q8_0": _q8_0,
    "Q2_K": _q2_k,
    "Q3_K": _q3_k,
    "Q4_K": _q4_k,
    "Q5_K": _q5_k,
    "Q6_K": _q6_k,
    "IQ4_NL": _iq4_nl,
    "IQ4_XS": _iq4_xs,
    "MXFP4": _mxfp4,
    "TQ1_0": _tq1_0,
    "TQ2_0": _tq2_0,
}
