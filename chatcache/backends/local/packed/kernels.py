"""The kernels of packed weights, compiled for this processor when they are first needed.

A kernel is a C function of addresses. Those of rows (`product_rows`, `unpacked_rows`) exist once
per kind of block; a task runs in all threads of a team at once, each of which takes its share. What
a task needs is an array of int64, described where it is made (`modules.py`, `step.py`).

Compiled code is kept (`kernel_store.py`) under a name of all that it depends on, so that another
version of these sources, or of numba, never runs it. The results do not depend on the number of
threads: a row is always computed by one.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable
from typing import Any

import numba
import numpy as np
from numba import carray, cfunc, njit, types

from chatcache.backends.local.packed.blocks import KINDS
from chatcache.backends.local.packed.decoders import DECODERS, GROUP, RUN
from chatcache.backends.local.packed.intrinsics import (
    FLOAT_KINDS,
    call_rows,
    call_tile,
    floats_at,
    shorts_at,
    unpack_blocks,
    words_at,
)
from chatcache.backends.local.packed.kernel_store import STORE
from chatcache.backends.local.packed.products import (
    FLOATS,
    INTEGERS,
    NUM_WORDS,
    OWN_FLOATS,
    SCALES,
    SUMS,
    float_dot,
    integer_dot,
)
from chatcache.backends.local.packed.tiles import decode_row, decoded_bytes, integer_dots
from chatcache.backends.local.packed.vectors import has_wide_registers

PRODUCT_KINDS = frozenset(DECODERS) | FLOAT_KINDS
_LARGEST = np.float32(16383.0)
_ROWS = types.void(*[types.intp] * 6)
_TILE = types.void(*[types.intp] * 7)
# Vectors in a tile; two rows of weights are the other side of it.
WIDE, NARROW = (4, 2) if has_wide_registers() else (2, 2)
# The words of `product_functions`.
F_ROWS, F_DECODE, F_WIDE, F_NARROW, F_GROUP, F_NUM_WORDS = range(6)
_TASK = types.void(*[types.intp] * 3)
_SUMS = {"reassoc", "contract", "nsz"}  # sums in any order; NaN and infinity stay what they are
_ALIGNED = 64
ROWS_AT_ONCE = 8  # of weights, decoded together


def compiled(function: Callable[..., None], signature: Any) -> int:
    """The address of a C function; it lives as long as the process."""
    made: Any = None
    place = STORE.open()
    if place is not None:
        numba.config.CACHE_DIR = str(place)
        try:
            made = cfunc(signature, cache=True)(function)
            STORE.seal()
        except (OSError, RuntimeError) as error:
            STORE.give_up(error)
    if made is None:
        made = cfunc(signature)(function)
    _COMPILED.append(made)
    return int(made.address)


_COMPILED: list[Any] = []


def task(function: Callable[..., None]) -> int:
    """The address of a task `(job, thread, num_threads)`."""
    return compiled(function, _TASK)


@functools.cache
def product_rows(kind: int) -> int:
    """`(weights, row_bytes, num_rows, num_columns, activations, out)`: the products of rows of
    weights with one vector, float32 [num_rows]."""
    num_weights = 1
    if kind in FLOAT_KINDS:

        def rows(weights, row_bytes, num_rows, num_columns, activations, out):  # type: ignore[no-untyped-def]
            values = carray(words_at(activations), NUM_WORDS)
            target = carray(floats_at(out), num_rows)
            for row in range(num_rows):
                target[row] = float_dot(
                    kind, weights + row * row_bytes, values[FLOATS], num_columns
                )

    else:
        num_weights = _group(kind)

        def rows(weights, row_bytes, num_rows, num_columns, activations, out):  # type: ignore[no-untyped-def]
            num_blocks = num_columns // num_weights
            for row in range(num_rows):
                place = weights + row * row_bytes
                integer_dot(kind, place, activations, num_blocks, out + 4 * row)

    return compiled(rows, _ROWS)


def _decoding(kind: int) -> int:
    """`(weights, row_bytes, num_rows, num_columns, decoded_bytes, decoded)`: rows of weights as
    tiles read them, so many bytes apart."""
    num_weights = _group(kind)

    def rows(weights, row_bytes, num_rows, num_columns, decoded_bytes, decoded):  # type: ignore[no-untyped-def]
        for row in range(num_rows):
            source, target = weights + row * row_bytes, decoded + row * decoded_bytes
            decode_row(kind, source, num_columns // num_weights, target)

    return compiled(rows, _ROWS)


def _tile(kind: int, num_x: int) -> int:
    """`(decoded, decoded_bytes, num_columns, records, record_bytes, out, step)`: the products of
    two decoded rows with so many vectors, each `step` floats behind the other in `out`."""
    num_weights = _group(kind)

    def tile(decoded, decoded_bytes, num_columns, records, record_bytes, out, step):  # type: ignore[no-untyped-def]
        num_blocks = num_columns // num_weights
        integer_dots(
            kind, 2, num_x, decoded, decoded_bytes, records, record_bytes, num_blocks, out, step
        )

    return compiled(tile, _TILE)


@functools.cache
def product_functions(kind: int) -> np.ndarray:
    """The words that `multiply_rows` reads. Kernels of tiles are 0 for float weights, which are
    multiplied one by one."""
    words = np.zeros(F_NUM_WORDS, dtype=np.int64)
    words[F_ROWS] = product_rows(kind)
    if kind not in FLOAT_KINDS:
        words[F_DECODE] = _decoding(kind)
        words[F_WIDE], words[F_NARROW] = _tile(kind, WIDE), _tile(kind, NARROW)
        words[F_GROUP] = _group(kind)
    return words


@functools.cache
def unpacked_rows(kind: int, to: int) -> int:
    """`(weights, row_bytes, num_rows, num_columns, out_row_bytes, out)`: rows of weights as F32 or
    BF16 (`to`, a number of ggml's)."""
    num_weights = _group(kind)

    def rows(weights, row_bytes, num_rows, num_columns, out_row_bytes, out):  # type: ignore[no-untyped-def]
        for row in range(num_rows):
            source, target = weights + row * row_bytes, out + row * out_row_bytes
            unpack_blocks(kind, to, source, target, num_columns // num_weights)

    return compiled(rows, _ROWS)


def group_of(kind: int) -> int:
    """How many activations are rounded together for this kind of weights; 0: they stay floats."""
    return 0 if kind in FLOAT_KINDS else _group(kind)


def _group(kind: int) -> int:
    return next(each.num_weights for each in KINDS.values() if each.ggml_type == kind)


# what tasks are made of


@njit(fastmath=_SUMS)
def unsound(values: Any) -> Any:
    """0, or NaN if there is a value that is no finite number."""
    sound = np.float32(0.0)
    for index in range(len(values)):
        sound += values[index] * np.float32(0.0)
    return sound


@njit(fastmath=True)
def _largest(values: Any) -> Any:
    largest = np.float32(0.0)
    for index in range(len(values)):
        largest = max(largest, abs(values[index]))
    return largest


@njit(error_model="numpy")
def round_activations(num_columns: Any, group: Any, record: Any) -> None:
    """Fill the integers, scales and sums of a record from its floats. What is not finite makes its
    scale NaN, so that no sum hides it."""
    words = carray(words_at(record), NUM_WORDS)
    values = carray(floats_at(words[FLOATS]), num_columns)
    integers = carray(shorts_at(words[INTEGERS]), num_columns)
    scales = carray(floats_at(words[SCALES]), num_columns // group)
    sums = carray(floats_at(words[SUMS]), num_columns // GROUP)
    for part in range(num_columns // group):
        own = values[part * group : (part + 1) * group]
        largest = _largest(own)
        scale = largest / _LARGEST + unsound(own)
        inverse = _LARGEST / largest if largest > np.float32(0.0) else np.float32(0.0)
        scales[part] = scale
        rounded = integers[part * group : (part + 1) * group]
        for index in range(group):
            rounded[index] = np.int16(np.rint(own[index] * inverse))
        for run in range(group // GROUP):
            total = np.int32(0)
            for index in range(GROUP):
                total += np.int32(rounded[run * GROUP + index])
            sums[part * (group // GROUP) + run] = np.float32(total) * scale


def scratch_bytes(num_columns: int) -> int:
    """Room for the decoded rows of any kind."""
    return ROWS_AT_ONCE * decoded_bytes(num_columns, RUN)


def record_bytes(num_columns: int) -> int:
    """Of a record and all that it points to, for so many activations."""
    needed = 8 * NUM_WORDS + (2 + 4) * num_columns + 4 * -(-num_columns // GROUP)
    return -(-needed // _ALIGNED) * _ALIGNED + 3 * _ALIGNED


def make_record(address: int, num_columns: int, floats: int = 0) -> None:
    """Write a record at an address with `record_bytes` behind it."""
    words = (ctypes.c_int64 * NUM_WORDS).from_address(address)
    place = address + 8 * NUM_WORDS
    for word, size in ((INTEGERS, 2 * num_columns), (SCALES, 4 * num_columns), (SUMS, 0)):
        words[word] = place
        place += -(-size // _ALIGNED) * _ALIGNED
    words[OWN_FLOATS] = floats


@njit
def share(total: Any, thread: Any, num_threads: Any) -> Any:
    """The part of a thread: from here to there."""
    return total * thread // num_threads, total * (thread + 1) // num_threads


@njit
def _decoded_bytes(num_columns: Any, num_weights: Any) -> Any:
    """As `tiles.decoded_bytes` has it."""
    total = 0
    for size in (2 * num_columns, 4 * (num_columns // num_weights), 4 * (num_columns // GROUP)):
        total += (size + _ALIGNED - 1) // _ALIGNED * _ALIGNED
    return total


@njit
def multiply_rows(
    matrix: Any, num_columns: Any, rows: Any, activations: Any, out: Any, step: Any
) -> None:
    """Rows of a matrix times records of activations, rounded already: float32 at `out`, `step` from
    one vector to the next.

    `matrix`: addresses of `product_functions` and of the weights, bytes of a row. `rows`: from here
    to there. `activations`: address, bytes from one to the next, how many, and an address with room
    for `ROWS_AT_ONCE` decoded rows."""
    functions, weights, row_bytes = matrix
    records, record_bytes, num_x, scratch = activations
    words = carray(words_at(functions), F_NUM_WORDS)
    width = WIDE if num_x >= WIDE else NARROW
    decoded_bytes = _decoded_bytes(num_columns, max(1, words[F_GROUP]))
    for first in range(rows[0], rows[1], ROWS_AT_ONCE):
        count = min(ROWS_AT_ONCE, rows[1] - first)
        place = weights + row_bytes * first
        if num_x == 1 or count == 1 or words[F_DECODE] == 0:
            for x in range(num_x):
                record, target = records + record_bytes * x, out + 4 * (step * x + first)
                call_rows(words[F_ROWS], place, row_bytes, count, num_columns, record, target)
            continue
        call_rows(words[F_DECODE], place, row_bytes, count, num_columns, decoded_bytes, scratch)
        kernel = words[F_WIDE] if width == WIDE else words[F_NARROW]
        # The last tile overlaps the one before where rows or vectors are left over.
        for next_x in range(0, num_x, width):
            x = min(next_x, num_x - width)
            for next_row in range(0, count, 2):
                row = min(next_row, count - 2)
                call_tile(
                    kernel,
                    scratch + decoded_bytes * row,
                    decoded_bytes,
                    num_columns,
                    records + record_bytes * x,
                    record_bytes,
                    out + 4 * (step * x + first + row),
                    step,
                )


# tasks of modules

# The words of a product's job.
(
    P_FUNCTIONS,
    P_WEIGHTS,
    P_ROW_BYTES,
    P_NUM_ROWS,
    P_NUM_COLUMNS,
    P_GROUP,
    P_X,
    P_NUM_X,
    P_OUT,
    P_RECORDS,
    P_RECORD_BYTES,
    P_SCRATCH,
    P_SCRATCH_BYTES,
    P_NUM_WORDS,
) = range(14)


def _product(job, thread, num_threads):  # type: ignore[no-untyped-def]
    """All rows of `x`, float32 [num_x, num_columns], times a matrix: float32 [num_x, num_rows].

    Every thread rounds the activations for itself: that is quicker than to wait for each other.
    `records`: for each thread, `num_x` records; `scratch`: for each what `multiply_rows` wants."""
    words = carray(words_at(job), P_NUM_WORDS)
    num_rows, num_columns, num_x = words[P_NUM_ROWS], words[P_NUM_COLUMNS], words[P_NUM_X]
    records = words[P_RECORDS] + words[P_RECORD_BYTES] * num_x * thread
    for number in range(num_x):
        record = records + words[P_RECORD_BYTES] * number
        carray(words_at(record), NUM_WORDS)[FLOATS] = words[P_X] + 4 * num_columns * number
        if words[P_GROUP]:
            round_activations(num_columns, words[P_GROUP], record)
    start, stop = share(num_rows, thread, num_threads)
    scratch = words[P_SCRATCH] + words[P_SCRATCH_BYTES] * thread
    multiply_rows(
        (words[P_FUNCTIONS], words[P_WEIGHTS], words[P_ROW_BYTES]),
        num_columns,
        (start, stop),
        (records, words[P_RECORD_BYTES], num_x, scratch),
        words[P_OUT],
        num_rows,
    )


# The words of an unpacking job.
(
    U_FUNCTION,
    U_WEIGHTS,
    U_ROW_BYTES,
    U_NUM_ROWS,
    U_NUM_COLUMNS,
    U_OUT,
    U_OUT_ROW_BYTES,
    U_NUM_WORDS,
) = range(8)


def _unpack(job, thread, num_threads):  # type: ignore[no-untyped-def]
    """A whole matrix, row by row."""
    words = carray(words_at(job), U_NUM_WORDS)
    start, stop = share(words[U_NUM_ROWS], thread, num_threads)
    call_rows(
        words[U_FUNCTION],
        words[U_WEIGHTS] + words[U_ROW_BYTES] * start,
        words[U_ROW_BYTES],
        stop - start,
        words[U_NUM_COLUMNS],
        words[U_OUT_ROW_BYTES],
        words[U_OUT] + words[U_OUT_ROW_BYTES] * start,
    )


@functools.cache
def product_task() -> int:
    return task(_product)


@functools.cache
def unpack_task() -> int:
    return task(_unpack)
