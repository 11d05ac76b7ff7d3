"""Vector instructions for kernels: a thin layer over LLVM's, in terms of lanes.

Vectors have a fixed number of lanes whatever the processor; LLVM splits them into registers as wide
as this one has. Nothing is written for one processor, and nothing here knows what is computed.
"""

from __future__ import annotations

import functools
import platform
from collections.abc import Sequence
from typing import Any

from llvmlite import ir
from numba.core.registry import cpu_target

I1 = ir.IntType(1)
I8, I16, I32, I64 = (ir.IntType(width) for width in (8, 16, 32, 64))
FLOAT, HALF = ir.FloatType(), ir.HalfType()


@functools.cache
def _converts_halves() -> bool:
    """Whether the processor that code is compiled for has an instruction for 16-bit floats."""
    if platform.machine() not in ("x86_64", "AMD64"):
        return True
    features = cpu_target.target_context.codegen().magic_tuple()[2]
    return "+f16c" in features.split(",")


@functools.cache
def has_wide_registers() -> bool:
    """Whether the processor that code is compiled for has 32 vector registers of 512 bits."""
    features = cpu_target.target_context.codegen().magic_tuple()[2]
    return "+avx512f" in features.split(",")


def lanes(kind: Any, count: int) -> Any:
    """The type of a vector."""
    return ir.VectorType(kind, count)


class Emitter:
    """Emits vector instructions into one function under construction."""

    def __init__(self, builder: Any):
        self.b = builder

    # values

    def pointer(self, address: Any, kind: Any) -> Any:
        return self.b.inttoptr(address, kind.as_pointer())

    def load(self, pointer: Any, offset: int | Any, kind: Any) -> Any:
        """`kind` from `offset` elements behind `pointer`; no alignment is assumed."""
        if isinstance(offset, int):
            offset = ir.Constant(I64, offset)
        place = self.b.gep(pointer, [offset])
        loaded = self.b.load(self.b.bitcast(place, kind.as_pointer()))
        loaded.align = 1
        return loaded

    def store(self, value: Any, pointer: Any, offset: int) -> None:
        """Write a vector `offset` elements behind `pointer`."""
        place = self.b.gep(pointer, [ir.Constant(I64, offset)])
        self.b.store(value, self.b.bitcast(place, value.type.as_pointer())).align = 1

    def constant(self, value: float, like: Any) -> Any:
        """A constant of the type of `like`, the same in all lanes."""
        kind = getattr(like, "type", like)
        is_vector = isinstance(kind, ir.VectorType)
        return ir.Constant(kind, [value] * kind.count if is_vector else value)

    def splat(self, scalar: Any, count: int) -> Any:
        empty = ir.Constant(lanes(scalar.type, count), ir.Undefined)
        first = self.b.insert_element(empty, scalar, ir.Constant(I32, 0))
        return self.pick(first, [0] * count)

    def pick(self, vector: Any, indices: Sequence[int]) -> Any:
        """The lanes at `indices`, in this order."""
        return self.both(vector, ir.Constant(vector.type, ir.Undefined), indices)

    def both(self, first: Any, second: Any, indices: Sequence[int]) -> Any:
        """Lanes of two vectors, those of the second counted behind those of the first."""
        mask = ir.Constant(lanes(I32, len(indices)), list(indices))
        return self.b.shuffle_vector(first, second, mask)

    def joined(self, first: Any, second: Any) -> Any:
        return self.both(first, second, range(2 * first.type.count))

    # integers

    def low(self, vector: Any, num_bits: int) -> Any:
        """The lowest bits of each lane."""
        return self.b.and_(vector, self.constant((1 << num_bits) - 1, vector))

    def right(self, vector: Any, num_bits: int) -> Any:
        return self.b.lshr(vector, self.constant(num_bits, vector)) if num_bits else vector

    def left(self, vector: Any, num_bits: int) -> Any:
        return self.b.shl(vector, self.constant(num_bits, vector)) if num_bits else vector

    def masked(self, scalar: Any, mask: int) -> Any:
        return self.b.and_(scalar, ir.Constant(scalar.type, mask))

    def unsigned(self, vector: Any, kind: Any = I16) -> Any:
        return self.b.zext(vector, lanes(kind, vector.type.count))

    def signed(self, vector: Any, kind: Any = I16) -> Any:
        return self.b.sext(vector, lanes(kind, vector.type.count))

    def bits(self, word: Any) -> Any:
        """The bits of an integer as bytes, 0 or 1, the lowest first."""
        width = word.type.width
        return self.b.zext(self.b.bitcast(word, lanes(I1, width)), lanes(I8, width))

    def looked_up(self, table: Sequence[int], codes: Any) -> Any:
        """For each byte of 32, 0 to 15, the entry of a table of 16, as 16-bit integers. Lane by
        lane and by 16: LLVM makes that into the one instruction that many processors have."""
        entries = ir.Constant(lanes(I8, 16), list(table))
        halves = []
        for start in (0, 16):
            half = self.pick(codes, range(start, start + 16))
            found = ir.Constant(half.type, ir.Undefined)
            for lane in (ir.Constant(I32, number) for number in range(16)):
                entry = self.b.extract_element(entries, self.b.extract_element(half, lane))
                found = self.b.insert_element(found, entry, lane)
            halves.append(self._apart(found))
        return self.signed(self.joined(*halves))

    def _apart(self, vector: Any) -> Any:
        """16 bytes that LLVM does not take for a part of something larger: no instruction."""
        floats = lanes(FLOAT, 4)
        fence = self._declared("llvm.arithmetic.fence.v4f32", floats, [floats])
        return self.b.bitcast(self.b.call(fence, [self.b.bitcast(vector, floats)]), vector.type)

    def _declared(self, name: str, result: Any, arguments: list[Any]) -> Any:
        function = self.b.module.globals.get(name)
        if function is None:
            function = ir.Function(self.b.module, ir.FunctionType(result, arguments), name)
        return function

    def pair_products(self, first: Any, second: Any) -> Any:
        """16-bit integers, multiplied lane by lane and added up by pairs, as 32-bit integers of
        half as many lanes: one instruction on most processors, in this form."""
        count = first.type.count
        products = self.b.mul(self.signed(first, I32), self.signed(second, I32))
        even = self.pick(products, range(0, count, 2))
        return self.b.add(even, self.pick(products, range(1, count, 2)))

    # floating point

    def half(self, pointer: Any, offset: int) -> Any:
        """A 16-bit float at `offset` bytes."""
        return self.load(pointer, offset, HALF)

    def widened(self, scalars: Sequence[Any]) -> Any:
        """Floats of 16 or 32 bits as a vector of 32-bit ones: they are widened together."""
        kind = lanes(scalars[0].type, len(scalars))
        vector = ir.Constant(kind, ir.Undefined)
        for lane, scalar in enumerate(scalars):
            vector = self.b.insert_element(vector, scalar, ir.Constant(I32, lane))
        return vector if kind.element == FLOAT else self.halves(vector)

    def halves(self, vector: Any) -> Any:
        """16-bit floats as 32-bit ones. Without an instruction for it LLVM calls a function that
        may not be there; so the bits are moved, and the exponent put right, denormal ones too."""
        floats = lanes(FLOAT, vector.type.count)
        if _converts_halves():
            return self.b.fpext(vector, floats)
        bits = self.unsigned(self.b.bitcast(vector, lanes(I16, vector.type.count)), I32)
        sign = self.left(self.right(bits, 15), 31)
        size = self.b.bitcast(self.left(self.low(bits, 15), 13), floats)
        size = self.b.bitcast(self.b.fmul(size, self.constant(2.0**112, size)), bits.type)
        is_odd = self.b.icmp_unsigned(">=", self.low(bits, 15), self.constant(0x7C00, bits))
        odd = self.b.or_(self.left(self.low(bits, 10), 13), self.constant(0x7F800000, bits))
        return self.b.bitcast(self.b.or_(sign, self.b.select(is_odd, odd, size)), floats)

    def floats(self, integers: Any) -> Any:
        """Signed integers of any width, as floats."""
        return self.b.sitofp(integers, lanes(FLOAT, integers.type.count))

    def fma(self, first: Any, second: Any, added: Any) -> Any:
        """`first * second + added`, rounded once where the processor can."""
        kind = first.type
        function = self._declared(f"llvm.fmuladd.v{kind.count}f32", kind, [kind] * 3)
        return self.b.call(function, [first, second, added])

    def total(self, vector: Any) -> Any:
        """The sum of all lanes (a power of two), halves first: the order is always the same."""
        count = vector.type.count
        while count > 2:
            count //= 2
            ahead = self.pick(vector, range(count))
            vector = self.b.fadd(ahead, self.pick(vector, range(count, 2 * count)))
        first, second = (self.b.extract_element(vector, ir.Constant(I32, lane)) for lane in (0, 1))
        return self.b.fadd(first, second)

    def totals(self, vectors: Sequence[Any]) -> list[Any]:
        """`total` of each of a power of two of vectors, at most as many as each has lanes: added up
        together, in the same order."""
        held, size = list(vectors), vectors[0].type.count
        num_lanes = size
        while size > 1:
            size //= 2
            lower = [lane for lane in range(num_lanes * 2) if lane % (2 * size) < size]
            pairs = list(zip(held[::2], held[1::2], strict=True)) if len(held) > 1 else []
            if not pairs:  # all are in one vector, which is half as wide from now on
                lower = lower[: num_lanes // 2]
                pairs, num_lanes = [(held[0], held[0])], num_lanes // 2
            upper = [lane + size for lane in lower]
            held = [
                self.b.fadd(self.both(first, second, lower), self.both(first, second, upper))
                for first, second in pairs
            ]
        indices = (ir.Constant(I32, lane) for lane in range(len(vectors)))
        return [self.b.extract_element(held[0], index) for index in indices]
