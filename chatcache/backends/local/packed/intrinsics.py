"""Functions that numba has no words for: products with blocks, unpacking, and plain memory.

Everything takes addresses. Weights of few bits are multiplied as 16-bit integers with activations
that were rounded to 15 bits of the largest in their group (`activations`): the sums within a block
are exact, and the rounding is finer than that of bfloat16.
"""

from __future__ import annotations

import platform
from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from chatcache.backends.local.packed.blocks import KINDS, KINDS_BY_TYPE
from chatcache.backends.local.packed.decoders import DECODERS, GROUP, RUN
from chatcache.backends.local.packed.vectors import (
    FLOAT,
    HALF,
    I8,
    I16,
    I32,
    I64,
    Emitter,
    lanes,
)

_LANES = 16
_COLUMNS = 64  # of float weights, at a time
_WIDTHS = {
    KINDS["F32"].ggml_type: FLOAT,
    KINDS["F16"].ggml_type: HALF,
    KINDS["BF16"].ggml_type: I16,
}
FLOAT_KINDS = frozenset(_WIDTHS)


def _emitting(
    result: Any, arguments: list[Any], emit: Callable[..., Any], *constants: Any
) -> tuple[Any, Any]:
    """The signature and code of an intrinsic whose leading arguments are constants of the code."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        value = emit(Emitter(builder), *constants, *args[len(constants) :])
        return context.get_dummy_value() if value is None else value

    return result(*map(types.literal, constants), *arguments), codegen


def _at(emit: Emitter, pointer: Any, index: Any, step: int) -> Any:
    return emit.b.gep(pointer, [emit.b.mul(index, ir.Constant(I64, step))])


def _zeros(count: int) -> Any:
    return ir.Constant(lanes(FLOAT, count), [0.0] * count)


# products


@intrinsic(prefer_literal=True)
def integer_dot(
    typing: Any, kind: Any, row: Any, integers: Any, scales: Any, sums: Any, num_blocks: Any
) -> Any:
    """The product of a row of blocks of the constant `kind` with activations in groups of a
    block's size: `integers` int16, a float of `scales` per group, one of `sums` per 16."""
    addresses = [types.intp] * 4
    return _emitting(types.float32, [*addresses, types.intp], _integer_dot, kind.literal_value)


def _integer_dot(
    emit: Emitter, number: int, row: Any, integers: Any, scales: Any, sums: Any, num_blocks: Any
) -> Any:
    kind, b = KINDS_BY_TYPE[number], emit.b
    row, integers = emit.pointer(row, I8), emit.pointer(integers, I16)
    scales, sums = emit.pointer(scales, FLOAT), emit.pointer(sums, FLOAT)
    num_groups = kind.num_weights // GROUP
    products = cgutils.alloca_once_value(b, _zeros(_LANES))
    minima = cgutils.alloca_once_value(b, _zeros(num_groups))
    with cgutils.for_range(b, num_blocks) as loop:
        decoded = DECODERS[number](emit, _at(emit, row, loop.index, kind.num_bytes))
        values = _at(emit, integers, loop.index, kind.num_weights)
        total = None
        for run, weights in enumerate(decoded.runs):
            pairs = emit.pair_products(weights, emit.load(values, RUN * run, lanes(I16, RUN)))
            total = pairs if total is None else b.add(total, pairs)
        unit = b.fmul(decoded.scale, emit.load(scales, loop.index, FLOAT))
        added = emit.fma(emit.floats(total), emit.splat(unit, _LANES), b.load(products))
        b.store(added, products)
        if decoded.minima is not None:
            own = emit.load(_at(emit, sums, loop.index, num_groups), 0, lanes(FLOAT, num_groups))
            b.store(emit.fma(decoded.minima, own, b.load(minima)), minima)
    return b.fadd(emit.total(b.load(products)), emit.total(b.load(minima)))


@intrinsic(prefer_literal=True)
def float_dot(typing: Any, kind: Any, row: Any, x: Any, num_columns: Any) -> Any:
    """The product of a row of float weights of the constant `kind` with float32 activations."""
    arguments = [types.intp, types.intp, types.intp]
    return _emitting(types.float32, arguments, _float_dot, kind.literal_value)


def _float_dot(emit: Emitter, number: int, row: Any, x: Any, num_columns: Any) -> Any:
    b, width = emit.b, _WIDTHS[number]
    row, x = emit.pointer(row, width), emit.pointer(x, FLOAT)
    places = [cgutils.alloca_once_value(b, _zeros(_LANES)) for _ in range(_COLUMNS // _LANES)]
    rest = cgutils.alloca_once_value(b, ir.Constant(FLOAT, 0.0))
    num_whole = b.sdiv(num_columns, ir.Constant(I64, _COLUMNS))
    with cgutils.for_range(b, num_whole) as loop:
        weights, values = (_at(emit, pointer, loop.index, _COLUMNS) for pointer in (row, x))
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


def _widened(emit: Emitter, loaded: Any) -> Any:
    """Weights as float32."""
    kind, count = loaded.type.element, loaded.type.count
    if kind == FLOAT:
        return loaded
    if kind == HALF:
        return emit.b.fpext(loaded, lanes(FLOAT, count))
    return emit.b.bitcast(emit.left(emit.unsigned(loaded, I32), 16), lanes(FLOAT, count))


# unpacking


@intrinsic(prefer_literal=True)
def unpack_blocks(typing: Any, kind: Any, to: Any, row: Any, out: Any, num_blocks: Any) -> Any:
    """Write the weights of a row of blocks; `to` is the constant type of what is written: F32 or
    BF16, by its number."""
    arguments = [types.intp, types.intp, types.intp]
    constants = kind.literal_value, to.literal_value
    return _emitting(types.void, arguments, _unpack_blocks, *constants)


def _unpack_blocks(
    emit: Emitter, number: int, to: int, row: Any, out: Any, num_blocks: Any
) -> None:
    kind, b = KINDS_BY_TYPE[number], emit.b
    row, out = emit.pointer(row, I8), emit.pointer(out, _WIDTHS[to])
    with cgutils.for_range(b, num_blocks) as loop:
        decoded = DECODERS[number](emit, _at(emit, row, loop.index, kind.num_bytes))
        place = _at(emit, out, loop.index, kind.num_weights)
        unit = emit.splat(decoded.scale, RUN)
        for run, integers in enumerate(decoded.runs):
            values = b.fmul(emit.floats(integers), unit)
            if decoded.minima is not None:
                pairs = [2 * run] * GROUP + [2 * run + 1] * GROUP
                values = b.fadd(values, emit.pick(decoded.minima, pairs))
            emit.store(_narrowed(emit, values) if to in _NARROW else values, place, RUN * run)


_NARROW = frozenset({KINDS["BF16"].ggml_type})


def _narrowed(emit: Emitter, values: Any) -> Any:
    """float32 as the bits of bfloat16, rounded to nearest, ties to even; NaN is not expected."""
    bits = emit.b.bitcast(values, lanes(I32, values.type.count))
    odd = emit.low(emit.right(bits, 16), 1)
    rounded = emit.b.add(bits, emit.b.add(odd, emit.constant(0x7FFF, bits)))
    return emit.b.trunc(emit.right(rounded, 16), lanes(I16, values.type.count))


# memory


@intrinsic
def floats_at(typing: Any, address: Any) -> Any:
    """A pointer to float32, for `carray`."""
    return _pointer_to(types.float32)


@intrinsic
def words_at(typing: Any, address: Any) -> Any:
    """A pointer to int64, for `carray`."""
    return _pointer_to(types.int64)


@intrinsic
def shorts_at(typing: Any, address: Any) -> Any:
    """A pointer to int16, for `carray`."""
    return _pointer_to(types.int16)


def _pointer_to(kind: Any) -> tuple[Any, Any]:
    pointer = types.CPointer(kind)

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.inttoptr(args[0], context.get_value_type(pointer))

    return pointer(types.intp), codegen


@intrinsic
def float_of_bits(typing: Any, bits: Any) -> Any:
    """The float32 of 32 bits."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.bitcast(args[0], FLOAT)

    return types.float32(types.uint32), codegen


@intrinsic
def bits_of_float(typing: Any, value: Any) -> Any:
    """The 32 bits of a float32."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.bitcast(args[0], I32)

    return types.uint32(types.float32), codegen


# threads


@intrinsic
def atomic_add(typing: Any, address: Any, amount: Any) -> Any:
    """Add to an int64 in memory; returns what it was."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        pointer = builder.inttoptr(args[0], I64.as_pointer())
        return builder.atomic_rmw("add", pointer, args[1], "seq_cst")

    return types.int64(types.intp, types.int64), codegen


@intrinsic
def atomic_load(typing: Any, address: Any) -> Any:
    """An int64 in memory that other threads write."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        pointer = builder.inttoptr(args[0], I64.as_pointer())
        return builder.load_atomic(pointer, "seq_cst", 8)

    return types.int64(types.intp), codegen


@intrinsic
def atomic_store(typing: Any, address: Any, value: Any) -> Any:
    """Write an int64 that other threads read."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        pointer = builder.inttoptr(args[0], I64.as_pointer())
        builder.store_atomic(args[1], pointer, "seq_cst", 8)
        return context.get_dummy_value()

    return types.void(types.intp, types.int64), codegen


# calls


@intrinsic
def call_task(typing: Any, function: Any, job: Any, thread: Any, num_threads: Any) -> Any:
    """Call a compiled task by its address."""
    return _calling(3)


@intrinsic
def call_rows(
    typing: Any,
    function: Any,
    weights: Any,
    row_bytes: Any,
    num_rows: Any,
    num_columns: Any,
    x: Any,
    out: Any,
) -> Any:
    """Call a kernel of rows by its address."""
    return _calling(6)


def _calling(num_arguments: int) -> tuple[Any, Any]:
    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        kind = ir.FunctionType(ir.VoidType(), [I64] * num_arguments)
        builder.call(builder.inttoptr(args[0], kind.as_pointer()), list(args[1:]))
        return context.get_dummy_value()

    return types.void(*[types.int64] * (num_arguments + 1)), codegen


@intrinsic
def pause(typing: Any) -> Any:
    """Let the other thread of this core run for a moment, where the processor knows how."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        if platform.machine() in ("x86_64", "AMD64"):
            name, module = "llvm.x86.sse2.pause", builder.module
            function = module.globals.get(name)
            if function is None:
                function = ir.Function(module, ir.FunctionType(ir.VoidType(), []), name)
            builder.call(function, [])
        return context.get_dummy_value()

    return types.void(), codegen


# attention


@intrinsic(prefer_literal=True)
def weighted_rows(
    typing: Any, kind: Any, weights: Any, rows: Any, num_rows: Any, width: Any, out: Any
) -> Any:
    """`out`, float32 [width], is the sum of rows (float type `kind`, contiguous) times a float32
    weight each, first to last; `width` is a multiple of 16."""
    arguments = [types.intp] * 5
    return _emitting(types.void, arguments, _weighted_rows, kind.literal_value)


def _weighted_rows(
    emit: Emitter, number: int, weights: Any, rows: Any, num_rows: Any, width: Any, out: Any
) -> None:
    b, kind = emit.b, _WIDTHS[number]
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


@intrinsic
def memory_at(typing: Any, address: Any) -> Any:
    """A pointer to anything, for `carray` with a dtype."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.inttoptr(args[0], context.get_value_type(types.voidptr))

    return types.voidptr(types.intp), codegen
