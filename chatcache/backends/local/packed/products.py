"""Products of rows of weights with activations, as code for one kind of block.

Weights of few bits are multiplied as 16-bit integers with activations that were rounded to 15 bits
of the largest in their group (`kernels.round_activations`): the sums within a block are exact, and
the rounding is finer than that of bfloat16. Blocks are decoded once for all rows of activations,
and what a row gets does not depend on how many there are.
"""

from __future__ import annotations

from collections.abc import Callable
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

LANES = 16
_STEP = 128
_COLUMNS = 64  # of float weights, at a time

# What the words of a record of activations are: addresses. The last are for tasks that keep
# records: which group the activations are rounded for (0: none), and room for floats.
FLOATS, INTEGERS, SCALES, SUMS, ROUNDED_FOR, OWN_FLOATS, _, NUM_WORDS = range(8)


def zeros(count: int) -> Any:
    return ir.Constant(lanes(FLOAT, count), [0.0] * count)


@intrinsic(prefer_literal=True)
def integer_dot(typing: Any, kind: Any, row: Any, record: Any, num_blocks: Any, out: Any) -> Any:
    """The product of a row of blocks of the constant `kind` with activations that were rounded in
    groups of a block's size: a float32 at `out`."""
    return emitting(types.void, [types.intp] * 4, _integer_dot, kind.literal_value)


@dataclass(frozen=True, slots=True)
class Rounded:
    """Rounded activations."""

    integers: Any
    scales: Any
    sums: Any


@dataclass(frozen=True, slots=True)
class Underway:
    """Where the sums of a row of weights with a row of activations are under way."""

    products: Any
    minima: dict[int, Any]  # by how many blocks are added at once


def rounded_at(emit: Emitter, record: Any) -> Rounded:
    words = emit.pointer(record, I64)
    places = ((INTEGERS, I16), (SCALES, FLOAT), (SUMS, FLOAT))
    return Rounded(*(emit.pointer(emit.load(words, at, I64), kind) for at, kind in places))


def begun(emit: Emitter, kind: BlockKind) -> Underway:
    products = cgutils.alloca_once(emit.b, lanes(FLOAT, LANES))
    emit.b.store(zeros(LANES), products)
    minima = {}
    for count in {_at_once(kind), 1}:
        width = count * kind.num_weights // GROUP
        minima[count] = cgutils.alloca_once(emit.b, lanes(FLOAT, width))
        emit.b.store(zeros(width), minima[count])
    return Underway(products, minima)


def _at_once(kind: BlockKind) -> int:
    return max(1, _STEP // kind.num_weights)


def over_blocks(
    emit: Emitter, kind: BlockKind, num_blocks: Any, add: Callable[[Any, int], None]
) -> None:
    """Code for all blocks of a row: `add` emits that for some at a time, from the first on."""
    b, at_once = emit.b, ir.Constant(I64, _at_once(kind))
    num_steps = b.sdiv(num_blocks, at_once)
    with cgutils.for_range(b, num_steps) as loop:
        add(b.mul(loop.index, at_once), _at_once(kind))
    if _at_once(kind) > 1:
        done = b.mul(num_steps, at_once)
        with cgutils.for_range(b, b.sub(num_blocks, done)) as loop:
            add(b.add(done, loop.index), 1)


def ended(emit: Emitter, own: Underway) -> Any:
    """All sums of a product in 16 lanes; what is left is to add these up."""
    total, width = emit.b.load(own.products), LANES
    for count in sorted(own.minima, reverse=True):
        minima = emit.b.load(own.minima[count])
        missing = ir.Constant(minima.type, [0.0] * minima.type.count)
        lanes_of_both = [min(lane, minima.type.count) for lane in range(width)]
        total = emit.b.fadd(total, emit.both(minima, missing, lanes_of_both))
    return total


def _integer_dot(
    emit: Emitter, number: int, row: Any, record: Any, num_blocks: Any, out: Any
) -> None:
    kind, b = KINDS_BY_TYPE[number], emit.b
    row, out = emit.pointer(row, I8), emit.pointer(out, FLOAT)
    rounded, own = rounded_at(emit, record), begun(emit, kind)

    def add(first: Any, count: int) -> None:
        block = at(emit, row, first, kind.num_bytes)
        places = [b.gep(block, [ir.Constant(I64, kind.num_bytes * each)]) for each in range(count)]
        decoded = [DECODERS[kind.ggml_type](emit, place) for place in places]
        _add_blocks(emit, kind, together(emit, decoded), first, rounded, own)

    over_blocks(emit, kind, num_blocks, add)
    b.store(emit.total(ended(emit, own)), out)


@dataclass(frozen=True, slots=True)
class Blocks:
    """Blocks of a row: their runs, block by block; float32 [blocks] and [groups], if any."""

    runs: list[list[Any]]
    scales: Any
    minima: Any | None


def together(emit: Emitter, decoded: list[Decoded]) -> Blocks:
    scales = emit.widened([each.scale for each in decoded])
    return Blocks([each.runs for each in decoded], scales, _minima(emit, decoded))


def _add_blocks(
    emit: Emitter, kind: BlockKind, blocks: Blocks, first: Any, rounded: Rounded, own: Underway
) -> None:
    """The next blocks of a row of weights, with a row of activations."""
    values = at(emit, rounded.integers, first, kind.num_weights)
    totals = []
    for number, runs in enumerate(blocks.runs):
        start = kind.num_weights * number
        totals.append(_block_total(emit, runs, at(emit, values, ir.Constant(I64, start), 1)))
    add_totals(emit, kind, blocks, totals, first, rounded, own)


def add_totals(
    emit: Emitter,
    kind: BlockKind,
    blocks: Blocks,
    totals: list[Any],
    first: Any,
    rounded: Rounded,
    own: Underway,
) -> None:
    """What was summed up in integers, to the products; and the minima."""
    b, count, num_groups = emit.b, len(totals), kind.num_weights // GROUP
    units = b.fmul(blocks.scales, emit.load(rounded.scales, first, lanes(FLOAT, count)))
    for number in range(0, count, 2):
        total, unit = _paired(emit, totals[number : number + 2], units, number)
        b.store(emit.fma(emit.floats(total), unit, b.load(own.products)), own.products)
    if blocks.minima is not None:
        width = lanes(FLOAT, count * num_groups)
        sums = emit.load(at(emit, rounded.sums, first, num_groups), 0, width)
        place = own.minima[count]
        b.store(emit.fma(blocks.minima, sums, b.load(place)), place)


def _block_total(emit: Emitter, runs: list[Any], values: Any) -> Any:
    """The sums over a block of integers times activations, in 16 lanes."""
    total = None
    for run, weights in enumerate(runs):
        pairs = emit.pair_products(weights, emit.load(values, RUN * run, lanes(I16, RUN)))
        total = pairs if total is None else emit.b.add(total, pairs)
    return total


def _paired(emit: Emitter, totals: list[Any], units: Any, number: int) -> tuple[Any, Any]:
    """Two blocks in the lanes of one, and the unit of each lane."""
    if len(totals) == 1:
        return totals[0], emit.pick(units, [number] * LANES)
    half = LANES // 2
    lower = [*range(half), *range(LANES, LANES + half)]
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
    places = [cgutils.alloca_once_value(b, zeros(LANES)) for _ in range(_COLUMNS // LANES)]
    rest = cgutils.alloca_once_value(b, ir.Constant(FLOAT, 0.0))
    num_whole = b.sdiv(num_columns, ir.Constant(I64, _COLUMNS))
    with cgutils.for_range(b, num_whole) as loop:
        weights, values = (at(emit, pointer, loop.index, _COLUMNS) for pointer in (row, x))
        for part, place in enumerate(places):
            loaded = widened(emit, emit.load(weights, LANES * part, lanes(width, LANES)))
            other = emit.load(values, LANES * part, lanes(FLOAT, LANES))
            b.store(emit.fma(loaded, other, b.load(place)), place)
    start = b.mul(num_whole, ir.Constant(I64, _COLUMNS))
    with cgutils.for_range(b, b.sub(num_columns, start)) as loop:
        index = b.add(start, loop.index)
        loaded = widened(emit, emit.load(row, index, lanes(width, 1)))
        product = b.fmul(b.extract_element(loaded, ir.Constant(I32, 0)), emit.load(x, index, FLOAT))
        b.store(b.fadd(product, b.load(rest)), rest)
    sums = [b.load(place) for place in places]
    total = b.fadd(b.fadd(sums[0], sums[1]), b.fadd(sums[2], sums[3]))
    return b.fadd(emit.total(total), b.load(rest))


def widened(emit: Emitter, loaded: Any) -> Any:
    """Weights as float32."""
    kind, count = loaded.type.element, loaded.type.count
    if kind == FLOAT:
        return loaded
    if kind == HALF:
        return emit.halves(loaded)
    return emit.b.bitcast(emit.left(emit.unsigned(loaded, I32), 16), lanes(FLOAT, count))
