"""What the bytes of a block mean, kind by kind, as vectors of 16-bit integers.

A weight is `scale x integer + minimum`: the integer has the scale of its run in it already, where a
block has such; a minimum belongs to 16 weights. One form for every kind, so that products and
unpacking are written once (`intrinsics.py`). The layouts are those of ggml's `block_*` structures.

Products add up 16 terms of `integer x 16383` in 32 bits, so an integer may be at most 8,191 either
way. The largest here are those of Q6_K, 32 x 128.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from chatcache.backends.local.packed.blocks import KINDS
from chatcache.backends.local.packed.vectors import I8, I32, I64, Emitter, lanes

RUN = 32
GROUP = 16  # weights that share a minimum


@dataclass(frozen=True, slots=True)
class Decoded:
    """One block: `runs` are int16 [32] each, in the order of the columns; `scale` is a float;
    `minima`, where a kind has such, float [number of weights / 16]."""

    runs: list[Any]
    scale: Any
    minima: Any | None = None


Decoder = Callable[[Emitter, Any], Decoded]


def _nibbles(emit: Emitter, block: Any, offset: int) -> Any:
    """32 unsigned 4-bit weights: the low halves of 16 bytes, then the high ones."""
    packed = emit.load(block, offset, lanes(I8, 16))
    return emit.joined(emit.low(packed, 4), emit.right(packed, 4))


def _less(emit: Emitter, weights: Any, middle: int) -> Any:
    """Unsigned bytes less the middle of their range, as 16-bit integers."""
    return emit.signed(emit.b.sub(weights, emit.constant(middle, weights)))


def _q4_0(emit: Emitter, block: Any) -> Decoded:
    return Decoded([_less(emit, _nibbles(emit, block, 2), 8)], emit.half(block, 0))


def _q4_1(emit: Emitter, block: Any) -> Decoded:
    minima = emit.splat(emit.half(block, 2), 2)
    return Decoded([emit.unsigned(_nibbles(emit, block, 4))], emit.half(block, 0), minima)


def _q8_0(emit: Emitter, block: Any) -> Decoded:
    return Decoded([emit.signed(emit.load(block, 2, lanes(I8, RUN)))], emit.half(block, 0))


def _scaled(emit: Emitter, weights: list[Any], scales: Any, per_scale: int) -> list[Any]:
    """Runs of 16-bit weights times their scales (a 16-bit vector), one per `per_scale` weights."""
    runs = []
    for run, values in enumerate(weights):
        first, second = RUN * run // per_scale, (RUN * run + GROUP) // per_scale
        runs.append(emit.b.mul(values, emit.pick(scales, [first] * GROUP + [second] * GROUP)))
    return runs


def _six_bit_scales(emit: Emitter, block: Any) -> tuple[Any, Any]:
    """The scales (int16 [8]) and minima (float [16], each twice) of Q4_K and Q5_K: 8 times 6 bits
    of both in 12 bytes."""
    words = [emit.load(block, 4 + 4 * word, I32) for word in range(3)]

    def upper(word: Any) -> Any:
        return emit.left(emit.masked(emit.right(word, 6), 0x03030303), 4)

    def eight(first: Any, second: Any) -> Any:
        wide = emit.left(emit.b.zext(second, I64), 32)
        return emit.b.bitcast(emit.b.or_(wide, emit.b.zext(first, I64)), lanes(I8, 8))

    scales = eight(
        emit.masked(words[0], 0x3F3F3F3F),
        emit.b.or_(emit.masked(words[2], 0x0F0F0F0F), upper(words[0])),
    )
    minima = eight(
        emit.masked(words[1], 0x3F3F3F3F),
        emit.b.or_(emit.masked(emit.right(words[2], 4), 0x0F0F0F0F), upper(words[1])),
    )
    spread = emit.floats(emit.unsigned(emit.pick(minima, [run // 2 for run in range(16)]), I32))
    unit = emit.splat(emit.b.fneg(emit.half(block, 2)), 16)
    return emit.unsigned(scales), emit.b.fmul(spread, unit)


def _q4_k(emit: Emitter, block: Any) -> Decoded:
    scales, minima = _six_bit_scales(emit, block)
    weights = []
    for run in range(4):
        packed = emit.load(block, 16 + RUN * run, lanes(I8, RUN))
        weights += [emit.unsigned(emit.low(packed, 4)), emit.unsigned(emit.right(packed, 4))]
    return Decoded(_scaled(emit, weights, scales, 32), emit.half(block, 0), minima)


def _q5_k(emit: Emitter, block: Any) -> Decoded:
    scales, minima = _six_bit_scales(emit, block)
    fifth = emit.load(block, 16, lanes(I8, RUN))
    weights = []
    for run in range(4):
        packed = emit.load(block, 48 + RUN * run, lanes(I8, RUN))
        for half, low in enumerate((emit.low(packed, 4), emit.right(packed, 4))):
            bit = emit.left(emit.low(emit.right(fifth, 2 * run + half), 1), 4)
            weights.append(emit.unsigned(emit.b.or_(low, bit)))
    return Decoded(_scaled(emit, weights, scales, 32), emit.half(block, 0), minima)


def _q6_k(emit: Emitter, block: Any) -> Decoded:
    weights = []
    for half in range(2):
        upper = emit.load(block, 128 + RUN * half, lanes(I8, RUN))
        parts = [emit.load(block, 64 * half + RUN * part, lanes(I8, RUN)) for part in range(2)]
        lower = [emit.low(part, 4) for part in parts] + [emit.right(part, 4) for part in parts]
        for run, low in enumerate(lower):
            bits = emit.left(emit.low(emit.right(upper, 2 * run), 2), 4)
            weights.append(_less(emit, emit.b.or_(low, bits), 32))
    scales = emit.signed(emit.load(block, 192, lanes(I8, 16)))
    return Decoded(_scaled(emit, weights, scales, 16), emit.half(block, 208))


DECODERS: dict[int, Decoder] = {
    KINDS[name].ggml_type: decoder
    for name, decoder in {
        "Q4_0": _q4_0,
        "Q4_1": _q4_1,
        "Q8_0": _q8_0,
        "Q4_K": _q4_k,
        "Q5_K": _q5_k,
        "Q6_K": _q6_k,
    }.items()
}
