"""Products of queries with keys, and of weights with values, as vector code.

Keys and values are rows of floats that lie one behind the other. What is loaded of one is used with
several queries; a product gets the same bits alone and among others.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from chatcache.backends.local.packed.intrinsics import WIDTHS, emitting
from chatcache.backends.local.packed.products import LANES, widened, zeros
from chatcache.backends.local.packed.vectors import FLOAT, I64, Emitter, lanes


@intrinsic(prefer_literal=True)
def float_dots(
    typing: Any,
    kind: Any,
    num_keys: Any,
    num_queries: Any,
    keys: Any,
    queries: Any,
    dim: Any,
    out: Any,
    step: Any,
) -> Any:
    """A constant number of keys (float type `kind`) with a constant number of float32 queries, all
    of `dim` numbers, a multiple of 16: their products at `out`, one for each key,
    `step` from one query's to the next."""
    constants = kind.literal_value, num_keys.literal_value, num_queries.literal_value
    return emitting(types.void, [types.intp] * 5, _float_dots, *constants)


def _float_dots(
    emit: Emitter,
    number: int,
    num_keys: int,
    num_queries: int,
    keys: Any,
    queries: Any,
    dim: Any,
    out: Any,
    step: Any,
) -> None:
    b, kind = emit.b, WIDTHS[number]
    keys, queries, out = (
        emit.pointer(address, each)
        for address, each in ((keys, kind), (queries, FLOAT), (out, FLOAT))
    )
    sums = [_sums(emit, num_keys) for _ in range(num_queries)]
    with cgutils.for_range(b, b.sdiv(dim, ir.Constant(I64, LANES))) as loop:
        start = b.mul(loop.index, ir.Constant(I64, LANES))
        loaded = [_part(emit, keys, key, dim, start) for key in range(num_keys)]
        for query, places in enumerate(sums):
            other = _part(emit, queries, query, dim, start)
            for values, place in zip(loaded, places, strict=True):
                b.store(emit.fma(values, other, b.load(place)), place)
    totals = emit.totals([b.load(place) for places in sums for place in places])
    for query in range(num_queries):
        target = b.gep(out, [b.mul(step, ir.Constant(I64, query))])
        for key in range(num_keys):
            b.store(totals[query * num_keys + key], b.gep(target, [ir.Constant(I64, key)]))


def _sums(emit: Emitter, count: int) -> list[Any]:
    """Where so many sums are under way, from 0 on."""
    places = [cgutils.alloca_once(emit.b, lanes(FLOAT, LANES)) for _ in range(count)]
    for place in places:
        emit.b.store(zeros(LANES), place)
    return places


def _part(emit: Emitter, rows: Any, number: int, width: Any, start: Any) -> Any:
    """16 numbers of a row, from `start` on."""
    place = emit.b.add(emit.b.mul(width, ir.Constant(I64, number)), start)
    return widened(emit, emit.load(rows, place, lanes(rows.type.pointee, LANES)))


@intrinsic(prefer_literal=True)
def weighted_rows(
    typing: Any,
    kind: Any,
    num_sums: Any,
    weights: Any,
    step: Any,
    rows: Any,
    num_rows: Any,
    width: Any,
    out: Any,
) -> Any:
    """A constant number of sums, float32 [width] each: rows (float type `kind`, contiguous) times a
    float32 weight each, first to last; `width` is a multiple of 16. The weights of a sum are `step`
    floats behind those of the one before."""
    arguments = [types.intp] * 6
    constants = kind.literal_value, num_sums.literal_value
    return emitting(types.void, arguments, _weighted_rows, *constants)


def _weighted_rows(
    emit: Emitter,
    number: int,
    num_sums: int,
    weights: Any,
    step: Any,
    rows: Any,
    num_rows: Any,
    width: Any,
    out: Any,
) -> None:
    b, kind = emit.b, WIDTHS[number]
    weights, rows, out = (
        emit.pointer(address, each)
        for address, each in ((weights, FLOAT), (rows, kind), (out, FLOAT))
    )
    numbers = [ir.Constant(I64, each) for each in range(num_sums)]
    own_weights = [b.gep(weights, [b.mul(step, each)]) for each in numbers]
    own_out = [b.gep(out, [b.mul(width, each)]) for each in numbers]
    done: Any = ir.Constant(I64, 0)
    # Columns in registers, many at a time, then few: rows are read once for each such strip.
    for num_parts in (8, 4, 1) if num_sums == 1 else (4, 1):
        strip = LANES * num_parts
        num_strips = b.sdiv(b.sub(width, done), ir.Constant(I64, strip))
        with cgutils.for_range(b, num_strips) as strips:
            start = b.add(done, b.mul(strips.index, ir.Constant(I64, strip)))
            places = [_sums(emit, num_parts) for _ in numbers]
            with cgutils.for_range(b, num_rows) as loop:
                row = b.gep(rows, [b.add(b.mul(loop.index, width), start)])
                loaded = [emit.load(each, loop.index, FLOAT) for each in own_weights]
                shares = [emit.splat(weight, LANES) for weight in loaded]
                for part in range(num_parts):
                    values = widened(emit, emit.load(row, LANES * part, lanes(kind, LANES)))
                    for weight, own in zip(shares, places, strict=True):
                        b.store(emit.fma(values, weight, b.load(own[part])), own[part])
            for own, target in zip(places, own_out, strict=True):
                for part, place in enumerate(own):
                    emit.store(b.load(place), b.gep(target, [start]), LANES * part)
        done = b.add(done, b.mul(num_strips, ir.Constant(I64, strip)))
