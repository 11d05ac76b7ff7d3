"""Products of several rows of weights with several rows of activations: a short message.

The rows of weights are decoded once, into memory that stays in the cache, and multiplied a tile at
a time: what is loaded of a row is used with every row of the other side. Each product has the bits
that `products.integer_dot` gives it alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from chatcache.backends.local.packed.blocks import KINDS_BY_TYPE, BlockKind
from chatcache.backends.local.packed.decoders import DECODERS, GROUP, RUN, WITH_MINIMA
from chatcache.backends.local.packed.intrinsics import at, emitting
from chatcache.backends.local.packed.products import (
    Blocks,
    add_totals,
    begun,
    ended,
    over_blocks,
    rounded_at,
    together,
)
from chatcache.backends.local.packed.vectors import FLOAT, I8, I16, I64, Emitter, lanes

_LINE = 64  # bytes


@intrinsic(prefer_literal=True)
def decode_row(typing: Any, kind: Any, row: Any, num_blocks: Any, decoded: Any) -> Any:
    """Write a row of blocks of the constant `kind` as `integer_dots` reads it."""
    return emitting(types.void, [types.intp] * 3, _decode_row, kind.literal_value)


@intrinsic(prefer_literal=True)
def integer_dots(
    typing: Any,
    kind: Any,
    num_rows: Any,
    num_x: Any,
    decoded: Any,
    decoded_bytes: Any,
    records: Any,
    record_bytes: Any,
    num_blocks: Any,
    out: Any,
    step: Any,
) -> Any:
    """The products of a constant number of decoded rows with a constant number of rounded
    activations: float32 at `out`, one for each row, `step` from one activation's to the next."""
    constants = kind.literal_value, num_rows.literal_value, num_x.literal_value
    return emitting(types.void, [types.intp] * 7, _integer_dots, *constants)


def decoded_bytes(num_columns: int, num_weights: int) -> int:
    """Of a decoded row of a kind with so many weights in a block: integers, then a scale for each
    block, then a minimum for each group."""
    return sum(_aligned(size) for size in _sizes(num_columns, num_weights))


def _sizes(num_columns: int, num_weights: int) -> tuple[int, int, int]:
    return 2 * num_columns, 4 * (num_columns // num_weights), 4 * (num_columns // GROUP)


def _aligned(size: int) -> int:
    return -(-size // _LINE) * _LINE


@dataclass(frozen=True, slots=True)
class _DecodedRow:
    """Where the parts of a decoded row are."""

    integers: Any
    scales: Any
    minima: Any


def _row_at(emit: Emitter, kind: BlockKind, address: Any, num_blocks: Any) -> _DecodedRow:
    b, place, places = emit.b, address, []
    for size in (2 * kind.num_weights, 4):
        places.append(place)
        size_of_all = b.mul(num_blocks, ir.Constant(I64, size))
        lines = b.sdiv(b.add(size_of_all, ir.Constant(I64, _LINE - 1)), ir.Constant(I64, _LINE))
        place = b.add(place, b.mul(lines, ir.Constant(I64, _LINE)))
    integers, scales = places
    return _DecodedRow(
        emit.pointer(integers, I16), emit.pointer(scales, FLOAT), emit.pointer(place, FLOAT)
    )


def _decode_row(emit: Emitter, number: int, row: Any, num_blocks: Any, decoded: Any) -> None:
    kind, b = KINDS_BY_TYPE[number], emit.b
    row, target = emit.pointer(row, I8), _row_at(emit, kind, decoded, num_blocks)
    num_groups = kind.num_weights // GROUP

    def add(first: Any, count: int) -> None:
        block = at(emit, row, first, kind.num_bytes)
        places = [b.gep(block, [ir.Constant(I64, kind.num_bytes * each)]) for each in range(count)]
        blocks = together(emit, [DECODERS[number](emit, place) for place in places])
        integers = at(emit, target.integers, first, kind.num_weights)
        for each, runs in enumerate(blocks.runs):
            for run, weights in enumerate(runs):
                emit.store(weights, integers, kind.num_weights * each + RUN * run)
        emit.store(blocks.scales, at(emit, target.scales, first, 1), 0)
        if blocks.minima is not None:
            emit.store(blocks.minima, at(emit, target.minima, first, num_groups), 0)

    over_blocks(emit, kind, num_blocks, add)


def _integer_dots(
    emit: Emitter,
    number: int,
    num_rows: int,
    num_x: int,
    decoded: Any,
    row_bytes: Any,
    records: Any,
    record_bytes: Any,
    num_blocks: Any,
    out: Any,
    step: Any,
) -> None:
    kind, b = KINDS_BY_TYPE[number], emit.b
    out = emit.pointer(out, FLOAT)

    def nth(base: Any, size: Any, index: int) -> Any:
        return b.add(base, b.mul(size, ir.Constant(I64, index)))

    rows = [
        _row_at(emit, kind, nth(decoded, row_bytes, index), num_blocks) for index in range(num_rows)
    ]
    vectors = [rounded_at(emit, nth(records, record_bytes, index)) for index in range(num_x)]
    own = [[begun(emit, kind) for _ in vectors] for _ in rows]

    def add(first: Any, count: int) -> None:
        weights = [at(emit, row.integers, first, kind.num_weights) for row in rows]
        values = [at(emit, vector.integers, first, kind.num_weights) for vector in vectors]
        totals = _totals(emit, kind, weights, values, count)
        for row, row_totals, row_own in zip(rows, totals, own, strict=True):
            blocks = _loaded(emit, kind, row, first, count)
            for vector, sums, place in zip(vectors, row_totals, row_own, strict=True):
                add_totals(emit, kind, blocks, sums, first, vector, place)

    over_blocks(emit, kind, num_blocks, add)
    sums = emit.totals([ended(emit, row_own[x]) for x in range(num_x) for row_own in own])
    for x in range(num_x):
        target = b.gep(out, [b.mul(step, ir.Constant(I64, x))])
        for index in range(num_rows):
            b.store(sums[x * num_rows + index], b.gep(target, [ir.Constant(I64, index)]))


def _loaded(emit: Emitter, kind: BlockKind, row: _DecodedRow, first: Any, count: int) -> Blocks:
    """The scales and minima of the next blocks of a decoded row."""
    minima, num_groups = None, kind.num_weights // GROUP
    if kind.ggml_type in WITH_MINIMA:
        width = lanes(FLOAT, count * num_groups)
        minima = emit.load(at(emit, row.minima, first, num_groups), 0, width)
    return Blocks([], emit.load(row.scales, first, lanes(FLOAT, count)), minima)


def _totals(
    emit: Emitter, kind: BlockKind, weights: list[Any], values: list[Any], count: int
) -> list[list[list[Any]]]:
    """The sums of integers times activations, in 16 lanes: by row, activations and block."""
    totals: list[list[list[Any]]] = [[[] for _ in values] for _ in weights]
    for block in range(count):
        for run in range(kind.num_weights // RUN):
            start, vector = kind.num_weights * block + RUN * run, lanes(I16, RUN)
            loaded = [emit.load(place, start, vector) for place in weights]
            for x, place in enumerate(values):
                other = emit.load(place, start, vector)
                for row, integers in enumerate(loaded):
                    sums = totals[row][x]
                    pairs = emit.pair_products(integers, other)
                    if run == 0:
                        sums.append(pairs)
                    else:
                        sums[-1] = emit.b.add(sums[-1], pairs)
    return totals
