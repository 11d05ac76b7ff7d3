"""Functions that numba has no words for: unpacking, plain memory, threads, and calls.

Everything takes addresses. Products are in `products.py`.
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

WIDTHS = {
    KINDS["F32"].ggml_type: FLOAT,
    KINDS["F16"].ggml_type: HALF,
    KINDS["BF16"].ggml_type: I16,
}
FLOAT_KINDS = frozenset(WIDTHS)


def emitting(
    result: Any, arguments: list[Any], emit: Callable[..., Any], *constants: Any
) -> tuple[Any, Any]:
    """The signature and code of an intrinsic whose leading arguments are constants of the code."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        value = emit(Emitter(builder), *constants, *args[len(constants) :])
        return context.get_dummy_value() if value is None else value

    return result(*map(types.literal, constants), *arguments), codegen


def at(emit: Emitter, pointer: Any, index: Any, step: int) -> Any:
    return emit.b.gep(pointer, [emit.b.mul(index, ir.Constant(I64, step))])


# unpacking


@intrinsic(prefer_literal=True)
def unpack_blocks(typing: Any, kind: Any, to: Any, row: Any, out: Any, num_blocks: Any) -> Any:
    """Write the weights of a row of blocks; `to` is the constant type of what is written: F32 or
    BF16, by its number."""
    arguments = [types.intp, types.intp, types.intp]
    constants = kind.literal_value, to.literal_value
    return emitting(types.void, arguments, _unpack_blocks, *constants)


def _unpack_blocks(
    emit: Emitter, number: int, to: int, row: Any, out: Any, num_blocks: Any
) -> None:
    kind, b = KINDS_BY_TYPE[number], emit.b
    row, out = emit.pointer(row, I8), emit.pointer(out, WIDTHS[to])
    with cgutils.for_range(b, num_blocks) as loop:
        decoded = DECODERS[number](emit, at(emit, row, loop.index, kind.num_bytes))
        place = at(emit, out, loop.index, kind.num_weights)
        unit = emit.pick(emit.widened([decoded.scale]), [0] * RUN)
        minima = decoded.all_minima(emit)
        for run, integers in enumerate(decoded.runs):
            values = b.fmul(emit.floats(integers), unit)
            if minima is not None:
                pairs = [2 * run] * GROUP + [2 * run + 1] * GROUP
                values = b.fadd(values, emit.pick(minima, pairs))
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


@intrinsic
def call_tile(
    typing: Any,
    function: Any,
    decoded: Any,
    decoded_bytes: Any,
    num_columns: Any,
    records: Any,
    record_bytes: Any,
    out: Any,
    step: Any,
) -> Any:
    """Call a kernel of a tile by its address."""
    return _calling(7)


@intrinsic
def call_scores(
    typing: Any,
    function: Any,
    keys: Any,
    start: Any,
    stop: Any,
    queries: Any,
    num_queries: Any,
    out: Any,
    dim: Any,
    room: Any,
) -> Any:
    """Call a kernel of queries and keys by its address."""
    return _calling(8)


@intrinsic
def call_sums(
    typing: Any,
    function: Any,
    values: Any,
    num_values: Any,
    weights: Any,
    num_queries: Any,
    out: Any,
    dim: Any,
    room: Any,
) -> Any:
    """Call a kernel of weights and values by its address."""
    return _calling(7)


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


@intrinsic
def memory_at(typing: Any, address: Any) -> Any:
    """A pointer to anything, for `carray` with a dtype."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.inttoptr(args[0], context.get_value_type(types.voidptr))

    return types.voidptr(types.intp), codegen
