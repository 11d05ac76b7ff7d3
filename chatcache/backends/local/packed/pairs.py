"""Products of bfloat16 weights that lie in pairs of columns, as oneDNN orders them for its kernels.

64 rows make a strip: for each two columns, in turn, the two weights of each row. So a lane is a
row, an activation is the same in all lanes, and nothing is added up across lanes. Sums are float32,
in the order of the columns: a row gets the same bits whatever it is computed with. Which weights
lie like this is `reordered.py`'s business.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
from llvmlite import ir
from numba import carray, njit, types
from numba.core import cgutils
from numba.extending import intrinsic

from chatcache.backends.local.packed.intrinsics import at, call_tile, emitting, floats_at, words_at
from chatcache.backends.local.packed.kernels import compiled
from chatcache.backends.local.packed.products import FLOATS, LANES
from chatcache.backends.local.packed.reordered import STRIP
from chatcache.backends.local.packed.vectors import FLOAT, I32, I64, Emitter, lanes

GROUPS = STRIP // LANES  # of rows, in a strip
_PART = 1024  # columns whose weights stay in the cache for all activations
_WIDE, _NARROW = 4, 2  # activations that are multiplied together
_UPPER = 0xFFFF0000
_SIGNATURE = types.void(*[types.intp] * 7)
_NUM_WORDS = 6


@intrinsic(prefer_literal=True)
def add_pairs(
    typing: Any,
    num_groups: Any,
    num_x: Any,
    weights: Any,
    first_column: Any,
    num_columns: Any,
    records: Any,
    record_bytes: Any,
    out: Any,
    step: Any,
) -> Any:
    """Add the products of a constant number of groups of 16 rows with a constant number of records
    of activations, over columns from `first_column` on, whose weights are at `weights`: to float32
    at `out`, `step` from one record's to the next."""
    constants = num_groups.literal_value, num_x.literal_value
    return emitting(types.void, [types.intp] * 7, _add_pairs, *constants)


def _add_pairs(
    emit: Emitter,
    num_groups: int,
    num_x: int,
    weights: Any,
    first_column: Any,
    num_columns: Any,
    records: Any,
    record_bytes: Any,
    out: Any,
    step: Any,
) -> None:
    b, out = emit.b, emit.pointer(out, FLOAT)
    weights = emit.pointer(weights, I32)
    vectors, targets, sums = [], [], []
    for x in range(num_x):
        number = ir.Constant(I64, x)
        record = emit.pointer(b.add(records, b.mul(record_bytes, number)), I64)
        floats = emit.pointer(emit.load(record, FLOATS, I64), FLOAT)
        vectors.append(b.gep(floats, [first_column]))
        targets.append(b.gep(out, [b.mul(step, number)]))
        sums.append(
            [
                cgutils.alloca_once_value(b, emit.load(targets[x], LANES * group, _SUMS))
                for group in range(num_groups)
            ]
        )
    with cgutils.for_range(b, b.sdiv(num_columns, ir.Constant(I64, 2))) as loop:
        pairs = at(emit, weights, loop.index, STRIP)
        loaded = [emit.load(pairs, LANES * group, _PAIRS) for group in range(num_groups)]
        for half in range(2):
            values = [_widened(emit, pair, half) for pair in loaded]
            for vector, places in zip(vectors, sums, strict=True):
                activation = emit.load(at(emit, vector, loop.index, 2), half, FLOAT)
                other = emit.splat(activation, LANES)
                for value, place in zip(values, places, strict=True):
                    b.store(emit.fma(value, other, b.load(place)), place)
    for target, places in zip(targets, sums, strict=True):
        for group, place in enumerate(places):
            emit.store(b.load(place), target, LANES * group)


_PAIRS, _SUMS = lanes(I32, LANES), lanes(FLOAT, LANES)


def _widened(emit: Emitter, pairs: Any, half: int) -> Any:
    """One weight of each pair as float32."""
    bits = emit.left(pairs, 16) if half == 0 else emit.b.and_(pairs, emit.constant(_UPPER, pairs))
    return emit.b.bitcast(bits, _SUMS)


def _kernel(num_groups: int, num_x: int) -> int:
    def add(weights, first_column, num_columns, records, record_bytes, out, step):  # type: ignore[no-untyped-def]
        add_pairs(
            num_groups, num_x, weights, first_column, num_columns, records, record_bytes, out, step
        )

    return compiled(add, _SIGNATURE)


@functools.cache
def pair_functions() -> np.ndarray:
    """The words that `multiply_pairs` reads: whole strips, then single groups, by activations."""
    sizes = [(groups, num_x) for groups in (GROUPS, 1) for num_x in (1, _NARROW, _WIDE)]
    return np.array([_kernel(*size) for size in sizes], dtype=np.int64)


@njit
def _multiply_groups(
    matrix: Any, num_columns: Any, groups: Any, activations: Any, out: Any, step: Any
) -> None:
    """`groups`: the first, and how many: all of a strip, or one."""
    functions, weights = matrix
    first, count = groups
    records, record_bytes, num_x = activations
    words = carray(words_at(functions), _NUM_WORDS)
    width = _WIDE if num_x >= _WIDE else min(num_x, _NARROW)
    kernel = words[(0 if count == GROUPS else 3) + (2 if width == _WIDE else width - 1)]
    place = weights + 2 * STRIP * num_columns * (first // GROUPS) + 4 * LANES * (first % GROUPS)
    for x in range(num_x):
        sums = carray(floats_at(out + 4 * step * x), LANES * count)
        for index in range(LANES * count):
            sums[index] = np.float32(0.0)
    for start in range(0, num_columns, _PART):
        part = min(_PART, num_columns - start)
        for x in range(0, num_x - num_x % width, width):
            record, target = records + record_bytes * x, out + 4 * step * x
            own = place + 2 * STRIP * start
            call_tile(kernel, own, start, part, record, record_bytes, target, step)
        for x in range(num_x - num_x % width, num_x):
            alone = words[0 if count == GROUPS else 3]
            record, target = records + record_bytes * x, out + 4 * step * x
            own = place + 2 * STRIP * start
            call_tile(alone, own, start, part, record, record_bytes, target, step)


@njit
def multiply_pairs(
    matrix: Any, num_columns: Any, rows: Any, activations: Any, out: Any, step: Any
) -> None:
    """Rows of a matrix in pairs times records of activations, which stay floats: float32 at `out`,
    `step` from one vector to the next.

    `matrix`: addresses of `pair_functions` and of the weights. `rows`: from here, a multiple of 16,
    to there. `activations`: address, bytes from one to the next, how many, and an address with room
    for 16 floats of each."""
    records, record_bytes, num_x, scratch = activations
    own = (records, record_bytes, num_x)
    row = rows[0]
    while row < rows[1]:
        first = row // LANES
        if first % GROUPS == 0 and row + STRIP <= rows[1]:
            _multiply_groups(matrix, num_columns, (first, GROUPS), own, out + 4 * row, step)
            row += STRIP
            continue
        if row + LANES <= rows[1]:
            _multiply_groups(matrix, num_columns, (first, 1), own, out + 4 * row, step)
        else:  # the matrix ends within this group
            count = rows[1] - row
            _multiply_groups(matrix, num_columns, (first, 1), own, scratch, LANES)
            for x in range(num_x):
                sums = carray(floats_at(scratch + 4 * LANES * x), count)
                target = carray(floats_at(out + 4 * (step * x + row)), count)
                for index in range(count):
                    target[index] = sums[index]
        row += LANES
