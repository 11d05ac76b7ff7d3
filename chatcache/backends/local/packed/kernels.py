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
import hashlib
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numba
import numpy as np
from numba import carray, cfunc, njit, types

from chatcache.backends.local.packed.blocks import KINDS
from chatcache.backends.local.packed.decoders import DECODERS, GROUP
from chatcache.backends.local.packed.intrinsics import (
    FLOAT_KINDS,
    call_rows,
    call_several,
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
    integer_dots,
)

log = logging.getLogger(__name__)

PRODUCT_KINDS = frozenset(DECODERS) | FLOAT_KINDS
_LARGEST = np.float32(16383.0)
_ROWS = types.void(*[types.intp] * 6)
_SEVERAL_ROWS = types.void(*[types.intp] * 8)
_NUM_TOGETHER = 4  # kernels: for 1, 2, 4, and 8 vectors
_TASK = types.void(*[types.intp] * 3)
_SUMS = {"reassoc", "contract", "nsz"}  # sums in any order; NaN and infinity stay what they are
_ALIGNED = 64
_ROWS_AT_ONCE = 8  # of weights, while they are in the cache, with every row of activations


@functools.cache
def _version() -> str:
    """Of all that compiled code depends on, beside the processor."""
    digest = hashlib.blake2b(numba.__version__.encode(), digest_size=8)
    for source in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(source.read_bytes())
    return digest.hexdigest()


def compiled(function: Callable[..., None], signature: Any) -> int:
    """The address of a C function; it lives as long as the process."""
    made: Any = None
    place = STORE.open(_version())
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
                integer_dots(kind, 1, place, activations, 0, num_blocks, out + 4 * row, 0)

    return compiled(rows, _ROWS)


def _product_of_several(kind: int, num_x: int) -> int:
    """`(weights, row_bytes, num_rows, num_columns, records, record_bytes, out, step)`: the same
    with so many vectors, each `step` floats behind the other in `out`."""
    num_weights = _group(kind)

    def rows(weights, row_bytes, num_rows, num_columns, records, record_bytes, out, step):  # type: ignore[no-untyped-def]
        num_blocks = num_columns // num_weights
        for row in range(num_rows):
            place, target = weights + row * row_bytes, out + 4 * row
            integer_dots(kind, num_x, place, records, record_bytes, num_blocks, target, step)

    return compiled(rows, _SEVERAL_ROWS)


@functools.cache
def product_functions(kind: int, num_x: int) -> np.ndarray:
    """Addresses of kernels for 1, 2, 4, 8 vectors at a time, as far as `num_x` of them need them;
    0 where it is not needed, or where all are taken one by one."""
    functions = np.zeros(_NUM_TOGETHER, dtype=np.int64)
    functions[0] = product_rows(kind)
    for power in range(1, _NUM_TOGETHER):
        is_needed = num_x & (1 << power) or (power == _NUM_TOGETHER - 1 and num_x >> power)
        if is_needed and kind not in FLOAT_KINDS:
            functions[power] = _product_of_several(kind, 1 << power)
    return functions


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
def multiply_rows(
    functions: Any,
    weights: Any,
    row_bytes: Any,
    start: Any,
    stop: Any,
    num_columns: Any,
    records: Any,
    record_bytes: Any,
    num_x: Any,
    out: Any,
    step: Any,
) -> None:
    """Rows `start` to `stop` of a matrix times `num_x` records of activations, rounded already:
    float32 at `out`, `step` from one vector to the next. `functions`: of `product_functions`."""
    addresses = carray(words_at(functions), _NUM_TOGETHER)
    at_once = _ROWS_AT_ONCE if num_x > 1 else max(1, stop - start)
    for first in range(start, stop, at_once):
        count = min(at_once, stop - first)
        place = weights + row_bytes * first
        number = 0
        while number < num_x:
            power = _NUM_TOGETHER - 1
            while addresses[power] == 0 or 1 << power > num_x - number:
                power -= 1
            record = records + record_bytes * number
            target = out + 4 * (step * number + first)
            if power == 0:
                call_rows(addresses[0], place, row_bytes, count, num_columns, record, target)
            else:
                call_several(
                    addresses[power],
                    place,
                    row_bytes,
                    count,
                    num_columns,
                    record,
                    record_bytes,
                    target,
                    step,
                )
            number += 1 << power


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
    P_NUM_WORDS,
) = range(12)


def _product(job, thread, num_threads):  # type: ignore[no-untyped-def]
    """All rows of `x`, float32 [num_x, num_columns], times a matrix: float32 [num_x, num_rows].

    Every thread rounds the activations for itself: that is quicker than to wait for each other.
    `functions`: those of `product_functions`; `records`: for each thread, `num_x` records."""
    words = carray(words_at(job), P_NUM_WORDS)
    num_rows, num_columns, num_x = words[P_NUM_ROWS], words[P_NUM_COLUMNS], words[P_NUM_X]
    records = words[P_RECORDS] + words[P_RECORD_BYTES] * num_x * thread
    for number in range(num_x):
        record = records + words[P_RECORD_BYTES] * number
        carray(words_at(record), NUM_WORDS)[FLOATS] = words[P_X] + 4 * num_columns * number
        if words[P_GROUP]:
            round_activations(num_columns, words[P_GROUP], record)
    start, stop = share(num_rows, thread, num_threads)
    multiply_rows(
        words[P_FUNCTIONS],
        words[P_WEIGHTS],
        words[P_ROW_BYTES],
        start,
        stop,
        num_columns,
        records,
        words[P_RECORD_BYTES],
        num_x,
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
