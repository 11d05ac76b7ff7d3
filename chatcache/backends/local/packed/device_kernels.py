"""Kernels of a card for packed weights: unpacked in registers and multiplied, or written out.

One form for all kinds (`device_layout.py`). A thread takes 32 columns of a few rows at a time. A
code becomes the mantissa of a float between 1 and 2, which costs no conversion; what that adds is
taken off once for all columns that share a scale, by the sum of their activations.

Sums are float32, in an order that does not depend on how many rows of activations there are. The
kernels ask nothing of the host, and their sizes follow from shapes alone, so that graphs can hold
them. Importing this imports Triton, which comes with torch's builds for CUDA. It reads these
functions as its own language, which is why they have no types.
"""

from __future__ import annotations

import triton
import triton.language as tl

_ONE = tl.constexpr(0x3F800000)  # 1.0 as bits
_PIECE = tl.constexpr(8)  # columns of which a thread has the activations at a time: 16 bytes


@triton.jit
def _bytes(at, is_there):
    return tl.load(at, is_there, other=0).to(tl.int32)


@triton.jit
def _half(units, number, is_there):
    """What a block is scaled with."""
    at = units.to(tl.pointer_type(tl.float16)) + number
    return tl.load(at, is_there, other=0.0).to(tl.float32)


@triton.jit
def _two_halves(units, block, is_there):
    """The same where there are two, side by side."""
    both = tl.load(units.to(tl.pointer_type(tl.int32)) + block, is_there, other=0)
    first = both.to(tl.int16).to(tl.float16, bitcast=True)
    second = (both >> 16).to(tl.int16).to(tl.float16, bitcast=True)
    return first.to(tl.float32), second.to(tl.float32)


@triton.jit
def _scaling(scales, units, block, column, is_there, kind: tl.constexpr):
    """Scale and minimum of columns that share them: `block` counts from the start of the matrix,
    `column` from that of the block."""
    if kind == "two":
        return _two_halves(units, block, is_there)
    elif kind == "Q2_K":
        scale, depth = _two_halves(units, block, is_there)
        both = _bytes(scales + block * 16 + column // 16, is_there)
        return scale * (both & 15).to(tl.float32), -depth * (both >> 4).to(tl.float32)
    elif kind == "Q4_K":
        scale, depth = _two_halves(units, block, is_there)
        run = column // 32
        at = scales + block * 12 + run % 4
        first, second = _bytes(at, is_there), _bytes(at + 4, is_there)
        third = _bytes(at + 8, is_there)
        is_early = run < 4
        times = tl.where(is_early, first & 63, third & 15 | (first >> 2) & 48)
        deep = tl.where(is_early, second & 63, third >> 4 | (second >> 2) & 48)
        return scale * times.to(tl.float32), -depth * deep.to(tl.float32)
    elif kind == "MXFP4":
        exponent = _bytes(units + block, is_there)
        below = 0x00200000 << tl.minimum(exponent, 1)
        bits = tl.where(exponent < 2, below, (exponent - 1) << 23)
        scale = bits.to(tl.float32, bitcast=True)
        return scale, tl.zeros_like(scale)
    else:
        scale = _half(units, block, is_there)
        if kind == "Q3_K":
            run, at = column // 16, scales + block * 12
            low = _bytes(at + run % 8, is_there) >> (run // 8 * 4)
            high = _bytes(at + 8 + run % 4, is_there) >> (run // 4 * 2)
            scale *= ((low & 15 | (high & 3) << 4) - 32).to(tl.float32)
        elif kind == "Q6_K":
            times = _bytes(scales + block * 16 + column // 16, is_there)
            scale *= ((times ^ 128) - 128).to(tl.float32)
        elif kind == "IQ4_XS":
            run, at = column // 32, scales + block * 6
            low = _bytes(at + 2 + run // 2, is_there) >> (run % 2 * 4)
            high = _bytes(at + run // 4, is_there) >> (run % 4 * 2)
            scale *= ((low & 15 | (high & 3) << 4) - 32).to(tl.float32)
        else:
            tl.static_assert(kind == "one")
        return scale, tl.zeros_like(scale)


@triton.jit
def _halves(whole, first: tl.constexpr, second: tl.constexpr, count: tl.constexpr):
    """`[first, second, count]` as its first and its second half along the last dimension."""
    if count > 2:
        whole = tl.permute(tl.reshape(whole, (first, second, 2, count // 2)), (0, 1, 3, 2))
    return tl.split(whole)


@triton.jit
def _apart(whole, first: tl.constexpr, second: tl.constexpr, count: tl.constexpr):
    """`[first, second, count]` as so many tensors `[first, second]`: registers get other names."""
    pieces = (tl.reshape(whole, (first, second)) if count == 1 else whole,)
    for level in tl.static_range(5):
        if count >> level > 1:
            halves = ()
            for number in tl.static_range(1 << level):
                halves = halves + _halves(pieces[number], first, second, count >> level)
            pieces = halves
    return pieces


@triton.jit
def _words(
    field, row, group, is_there, rows: tl.constexpr, groups: tl.constexpr, bits: tl.constexpr
):
    """The codes of 32 columns each, as `bits` words `[rows, groups]`."""
    at = field.to(tl.pointer_type(tl.int32)) + row + group * bits
    place = at[:, :, None] + tl.arange(0, bits)[None, None, :]
    return _apart(tl.load(place, is_there[:, :, None], other=0), rows, groups, bits)


@triton.jit
def _code(words, column: tl.constexpr, bits: tl.constexpr):
    return (words[column * bits // 32] >> (column * bits % 32)) & ((1 << bits) - 1)


@triton.jit
def _float_of(code, book, bits: tl.constexpr, has_book: tl.constexpr):
    """What the book has at a code, or `1 + code / 2 ** bits`."""
    if has_book:
        return tl.load(book + code)
    else:
        return (code << (23 - bits) | _ONE).to(tl.float32, bitcast=True)


@triton.jit(
    do_not_specialize=["num_tokens", "num_rows", "num_blocks"],
    do_not_specialize_on_alignment=["scales", "units"],
)
def multiply(
    x, low, high, scales, units, book, output, num_tokens, num_rows, num_blocks,
    tokens: tl.constexpr, rows: tl.constexpr, groups: tl.constexpr,
    block_size: tl.constexpr, scaling: tl.constexpr, span: tl.constexpr,
    low_bits: tl.constexpr, high_bits: tl.constexpr,
    middle: tl.constexpr, has_book: tl.constexpr,
):  # fmt: skip
    """`tokens` rows of `x` times `rows` rows of the transposed matrix, `groups` of 32 columns at a
    time. `span`: so many columns share a scale."""
    bits: tl.constexpr = low_bits + high_bits
    factor: tl.constexpr = 1 if has_book else 1 << bits
    offset: tl.constexpr = 0 if has_book else factor + middle
    row = tl.program_id(0) * rows + tl.arange(0, rows)
    is_row = row < num_rows
    row = tl.minimum(row, num_rows - 1)[:, None]
    token = tl.program_id(1) * tokens + tl.arange(0, tokens)[:, None]
    num_groups = num_blocks * (block_size // 32)
    first_group = row.to(tl.int64) * num_groups
    sums = tl.zeros((tokens, rows, groups), tl.float32)
    for start in range(0, num_groups, groups):
        group = start + tl.arange(0, groups)[None, :]
        is_there = group < num_groups
        is_state = (token < num_tokens) & is_there
        words = _words(low, first_group * low_bits, group, is_there, rows, groups, low_bits)
        if high_bits > 0:
            tops = _words(high, first_group * high_bits, group, is_there, rows, groups, high_bits)
        for run in tl.static_range(32 // span):
            products = tl.zeros((tokens, rows, groups), tl.float32)
            total = tl.zeros((tokens, groups), tl.float32)
            for part in tl.static_range(span // _PIECE):
                place = x + (token * num_groups + group) * 32 + (run * span + part * _PIECE)
                place = place[:, :, None] + tl.arange(0, _PIECE)[None, None, :]
                states = tl.load(place, is_state[:, :, None], other=0.0)
                states = _apart(states, tokens, groups, _PIECE)
                for number in tl.static_range(_PIECE):
                    code = _code(words, run * span + part * _PIECE + number, low_bits)
                    if high_bits > 0:
                        top = _code(tops, run * span + part * _PIECE + number, high_bits)
                        code |= top << low_bits
                    state = states[number].to(tl.float32)
                    products += _float_of(code, book, bits, has_book)[None] * state[:, None]
                    total += state
            column_in_row = group * 32 + run * span
            block = row * num_blocks + column_in_row // block_size
            scale, minimum = _scaling(
                scales, units, block, column_in_row % block_size, is_there, scaling
            )
            sums += (scale * factor)[None] * products
            sums += (minimum - scale * offset)[None] * total[:, None]
    result = tl.sum(sums, 2).to(output.dtype.element_ty)
    tl.store(
        output + token * num_rows + tl.trans(row), result, (token < num_tokens) & is_row[None, :]
    )


@triton.jit
def _codes(field, row, column, is_there, bits: tl.constexpr):
    at = column * bits
    word = tl.load(field.to(tl.pointer_type(tl.int32)) + row + at // 32, is_there, other=0)
    return (word >> (at % 32)) & ((1 << bits) - 1)


@triton.jit(
    do_not_specialize=["num_rows", "num_blocks"],
    do_not_specialize_on_alignment=["scales", "units"],
)
def unpack(
    low, high, scales, units, book, output, num_rows, num_blocks,
    rows: tl.constexpr, spans: tl.constexpr,
    block_size: tl.constexpr, scaling: tl.constexpr, span: tl.constexpr,
    low_bits: tl.constexpr, high_bits: tl.constexpr,
    middle: tl.constexpr, has_book: tl.constexpr,
):  # fmt: skip
    """All weights of a matrix, `[num_rows, columns]`."""
    bits: tl.constexpr = low_bits + high_bits
    factor: tl.constexpr = 1 if has_book else 1 << bits
    offset: tl.constexpr = 0 if has_book else factor + middle
    row = tl.program_id(0) * rows + tl.arange(0, rows)[:, None]
    is_row = row < num_rows
    row = tl.minimum(row, num_rows - 1)
    num_groups = num_blocks * (block_size // 32)
    first_group = row.to(tl.int64) * num_groups
    first = (tl.program_id(1) * spans + tl.arange(0, spans)[None, :]) * span
    column = first[:, :, None] + tl.arange(0, span)[None, None, :]
    is_there = first < num_groups * 32
    is_column = is_there[:, :, None]
    code = _codes(low, (first_group * low_bits)[:, :, None], column, is_column, low_bits)
    if high_bits > 0:
        at = (first_group * high_bits)[:, :, None]
        code |= _codes(high, at, column, is_column, high_bits) << low_bits
    block = row * num_blocks + first // block_size
    scale, minimum = _scaling(scales, units, block, first % block_size, is_there, scaling)
    numbers = _float_of(code, book, bits, has_book) * factor - offset
    weights = scale[:, :, None] * numbers + minimum[:, :, None]
    target = output + (row.to(tl.int64) * (num_groups * 32))[:, :, None] + column
    is_wanted = (is_there & is_row)[:, :, None]
    tl.store(target, weights.to(output.dtype.element_ty), is_wanted)
