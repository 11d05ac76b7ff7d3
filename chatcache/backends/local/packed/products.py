"""Products of rows of weights with activations, as code for one kind of block.

Weights of few bits are multiplied as 16-bit integers with activations that were rounded to 15 bits
of the largest in their group (`kernels.round_activations`): the sums within a block are exact, and
the rounding is finer than that of bfloat16. Blocks are decoded once for all rows of activations,
and what a row gets does not depend on how many there are.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from chatcache.backends.local.packed.blocks import KINDS_BY_TYPE, BlockKind
from chatcache.backends.local.packed.decoders import DECODERS, GROUP, RUN, Decoded
from chatcache.backends.local.packed.intrinsics import WIDTHS, at, emitting
from chatcache.backends.local.packed.vectors import FLOAT, HALF, I8, I16, I32, I64, Emitter, lanes

_LANES = 16
_STEP = 128
_COLUMNS = 64  # of float weights, at a time

# What the words of a record of activations are: addresses. The last are for tasks that keep
# records: which group the activations are rounded for (0: none), and room for floats.
FLOATS, INTEGERS, SCALES, SUMS, ROUNDED_FOR, OWN_FLOATS, _, NUM_WORDS = range(8)


def _zeros(count: int) -> Any:
    return ir.Constant(lanes(FLOAT, count), [0.0] * count)


@intrinsic(prefer_literal=True)
def integer_dots(
    typing: Any,
    kind: Any,
    num_x: Any,
    row: Any,
    records: Any,
    record_bytes: Any,
    num_blocks: Any,
    out: Any,
    step: Any,
) -> Any:
    """The products of a row of blocks of the constant `kind` with a constant number of rounded
    activations, in groups of a block's size: float32 at `out`, `step` of them apart."""
    constants = kind.literal_value, num_x.literal_value
    return emitting(types.void, [types.intp] * 6, _integer_dots, *constants)


@dataclass(frozen=True, slots=True)
class _Underway:
    """Rounded activations, and where their sums are under way."""

    integers: Any
    scales: Any
    sums: Any
    products: Any
    minima: dict[int, Any]  # by how many blocks are added at once


def _integer_dots(
    emit: Emitter,
    number: int,
    num_x: int,
    row: Any,
    records: Any,
    record_bytes: Any,
    num_blocks: Any,
    out: Any,
    step: Any,
) -> None:
    kind, b = KINDS_BY_TYPE[number], emit.b
    row, out = emit.pointer(row, I8), emit.pointer(out, FLOAT)
    at_once = max(1, _STEP // kind.num_weights)
    rows = []
    for x in range(num_x):
        record = b.add(records, b.mul(record_bytes, ir.Constant(I64, x)))
        rows.append(_begun(emit, kind, emit.pointer(record, I64), at_once))
    num_steps = b.sdiv(num_blocks, ir.Constant(I64, at_once))
    with cgutils.for_range(b, num_steps) as loop:
        _add_blocks(emit, kind, row, b.mul(loop.index, ir.Constant(I64, at_once)), at_once, rows)
    if at_once > 1:
        done = b.mul(num_steps, ir.Constant(I64, at_once))
        with cgutils.for_range(b, b.sub(num_blocks, done)) as loop:
            _add_blocks(emit, kind, row, b.add(done, loop.index), 1, rows)
    for x, own in enumerate(rows):
        total = emit.total(b.load(own.products))
        for place in own.minima.values():
            total = b.fadd(total, emit.total(b.load(place)))
        b.store(total, b.gep(out, [b.mul(step, ir.Constant(I64, x))]))


def _begun(emit: Emitter, kind: BlockKind, words: Any, at_once: int) -> _Underway:
    def pointer(word: int, element: Any) -> Any:
        return emit.pointer(emit.load(words, word, I64), element)

    products = cgutils.alloca_once_value(emit.b, _zeros(_LANES))
    minima = {
        count: cgutils.alloca_once_value(emit.b, _zeros(count * kind.num_weights // GROUP))
        for count in (at_once, 1)
    }
    return _Underway(
        pointer(INTEGERS, I16), pointer(SCALES, FLOAT), pointer(SUMS, FLOAT), products, minima
    )


def _add_blocks(
    emit: Emitter, kind: BlockKind, row: Any, first: Any, count: int, rows: list[_Underway]
) -> None:
    """The next blocks of a row of weights, with all rows of activations."""
    b, num_groups = emit.b, kind.num_weights // GROUP
    block = at(emit, row, first, kind.num_bytes)
    decoded = [
        DECODERS[kind.ggml_type](emit, b.gep(block, [ir.Constant(I64, kind.num_bytes * number)]))
        for number in range(count)
    ]
    scales = emit.widened([each.scale for each in decoded])
    minima = _minima(emit, decoded)
    for own in rows:
        values = at(emit, own.integers, first, kind.num_weights)
        units = b.fmul(scales, emit.load(own.scales, first, lanes(FLOAT, count)))
        totals = []
        for number, each in enumerate(decoded):
            start = kind.num_weights * number
            totals.append(_block_total(emit, each, at(emit, values, ir.Constant(I64, start), 1)))
        for number in range(0, count, 2):
            total, unit = _paired(emit, totals[number : number + 2], units, number)
            b.store(emit.fma(emit.floats(total), unit, b.load(own.products)), own.products)
        if minima is not None:
            width = lanes(FLOAT, count * num_groups)
            sums = emit.load(at(emit, own.sums, first, num_groups), 0, width)
            place = own.minima[count]
            b.store(emit.fma(minima, sums, b.load(place)), place)


def _block_total(emit: Emitter, decoded: Decoded, values: Any) -> Any:
    """The sums over a block of integers times activations, in 16 lanes."""
    total = None
    for run, weights in enumerate(decoded.runs):
        pairs = emit.pair_products(weights, emit.load(values, RUN * run, lanes(I16, RUN)))
        total = pairs if total is None else emit.b.add(total, pairs)
    return total


def _paired(emit: Emitter, totals: list[Any], units: Any, number: int) -> tuple[Any, Any]:
    """Two blocks in the lanes of one, and the unit of each lane."""
    if len(totals) == 1:
        return totals[0], emit.pick(units, [number] * _LANES)
    half = _LANES // 2
    lower = [*range(half), *range(_LANES, _LANES + half)]
    upper = [lane + half for lane in lower]
    first, second = totals
    total = emit.b.add(emit.both(first, second, lower), emit.both(first, second, upper))
    return total, emit.pick(units, [number] * half + [number + 1] * half)


def _minima(emit: Emitter, decoded: list[Decoded]) -> Any | None:
    """Those of all blocks, one for each group."""
    found = [each.minima for each in decoded if each.minima is not None]
    if not found:
        return None
    if isinstance(found[0].type, ir.VectorType):
        assert len(found) == 1
        return found[0]
    groups = RUN * len(decoded[0].runs) // GROUP
    return emit.pick(
        emit.widened(found), [block for block in range(len(found)) for _ in range(groups)]
    )


@intrinsic(prefer_literal=True)
def float_dot(typing: Any, kind: Any, row: Any, x: Any, num_columns: Any) -> Any:
    """The product of a row of float weights of the constant `kind` with float32 activations."""
    arguments = [types.intp, types.intp, types.intp]
    return emitting(types.float32, arguments, _float_dot, kind.literal_value)


def _float_dot(emit: Emitter, number: int, row: Any, x: Any, num_columns: Any) -> Any:
    b, width = emit.b, WIDTHS[number]
    row, x = emit.pointer(row, width), emit.pointer(x, FLOAT)
    places = [cgutils.alloca_once_value(b, _zeros(_LANES)) for _ in range(_COLUMNS // _LANES)]
    rest = cgutils.alloca_once_value(b, ir.Constant(FLOAT, 0.0))
    num_whole = b.sdiv(num_columns, ir.Constant(I64, _COLUMNS))
    with cgutils.for_range(b, num_whole) as loop:
        weights, values = (at(emit, pointer, loop.index, _COLUMNS) for pointer in (row, x))
        for part, place in enumerate(places):
            loaded = _widened(emit, emit.load(weights, _LANES * part, lanes(width, _LANES)))
            other = emit.load(values, _LANES * part, lanes(FLOAT, _LANES))
            b.store(emit.fma(loaded, other, b.load(place)), place)
    start = b.mul(num_whole, ir.Constant(I64, _COLUMNS))
    with cgutils.for_range(b, b.sub(num_columns, start)) as loop:
        index = b.add(start, loop.index)
        loaded = _widened(emit, emit.load(row, index, lanes(width, 1)))
        product = b.fmul(b.extract_element(loaded, ir.Constant(I32, 0)), emit.load(x, index, FLOAT))
        b.store(b.fadd(product, b.load(rest)), rest)
    sums = [b.load(place) for place in places]
    total = b.fadd(b.fadd(sums[0], sums[1]), b.fadd(sums[2], sums[3]))
    return b.fadd(emit.total(total), b.load(rest))


@intrinsic(prefer_literal=True)
def weighted_rows(
    typing: Any, kind: Any, weights: Any, rows: Any, num_rows: Any, width: Any, out: Any
) -> Any:
    """`out`, float32 [width], is the sum of rows (float type `kind`, contiguous) times a float32
    weight each, first to last; `width` is a multiple of 16."""
    arguments = [types.intp] * 5
    return emitting(types.void, arguments, _weighted_rows, kind.literal_value)


def _weighted_rows(
    emit: Emitter, number: int, weights: Any, rows: Any, num_rows: Any, width: Any, out: Any
) -> None:
    b, kind = emit.b, WIDTHS[number]
    weights, rows, out = (
        emit.pointer(address, each)
        for address, each in ((weights, FLOAT), (rows, kind), (out, FLOAT))
    )
    done: Any = ir.Constant(I64, 0)
    # Columns in registers, many at a time, then few: rows are read once for each such strip.
    for num_parts in (8, 4, 1):
        strip = _LANES * num_parts
        places = [cgutils.alloca_once(b, lanes(FLOAT, _LANES)) for _ in range(num_parts)]
        num_strips = b.sdiv(b.sub(width, done), ir.Constant(I64, strip))
        with cgutils.for_range(b, num_strips) as strips:
            start = b.add(done, b.mul(strips.index, ir.Constant(I64, strip)))
            for place in places:
                b.store(_zeros(_LANES), place)
            with cgutils.for_range(b, num_rows) as loop:
                row = b.gep(rows, [b.add(b.mul(loop.index, width), start)])
                weight = emit.splat(emit.load(weights, loop.index, FLOAT), _LANES)
                for part, place in enumerate(places):
                    values = _widened(emit, emit.load(row, _LANES * part, lanes(kind, _LANES)))
                    b.store(emit.fma(values, weight, b.load(place)), place)
            target = b.gep(out, [start])
            for part, place in enumerate(places):
                emit.store(b.load(place), target, _LANES * part)
        done = b.add(done, b.mul(num_strips, ir.Constant(I64, strip)))


def _widened(emit: Emitter, loaded: Any) -> Any:
    """Weights as float32."""
    kind, count = loaded.type.element, loaded.type.count
    if kind == FLOAT:
        return loaded
    if kind == HALF:
        return emit.halves(loaded)
    return emit.b.bitcast(emit.left(emit.unsigned(loaded, I32), 16), lanes(FLOAT, count))
