"""What the bytes of a block mean, kind by kind, as vectors of 16-bit integers.

A weight is `scale x integer + minimum`: the integer has the scale of its run in it already, where a
block has such; a minimum belongs to 16 weights. One form for every kind, so that products and
unpacking are written once (`intrinsics.py`). The layouts are those of ggml's `block_*` structures.

Products add up 16 terms of `integer x 16383` in 32 bits, so an integer may be at most 8,191 either
way. The largest here are those of Q6_K, 32 x 128, and of IQ4_XS, 127 x 32.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from llvmlite import ir

from chatcache.backends.local.packed.blocks import KINDS
from chatcache.backends.local.packed.vectors import FLOAT, I8, I16, I32, I64, Emitter, lanes

RUN = 32
GROUP = 16  # weights that share a minimum


@dataclass(frozen=True, slots=True)
class Decoded:
    """One block: `runs` are int16 [32] each, in the order of the columns; `scale` is a float of 16
    or 32 bits. `minima`, where a kind has such: one like the scale, or float32 [weights / 16]."""

    runs: list[Any]
    scale: Any
    minima: Any | None = None

    def all_minima(self, emit: Emitter) -> Any | None:
        """One for every 16 weights."""
        if self.minima is None or isinstance(self.minima.type, ir.VectorType):
            return self.minima
        return emit.pick(emit.widened([self.minima]), [0] * (RUN * len(self.runs) // GROUP))


Decoder = Callable[[Emitter, Any], Decoded]


def _nibbles(emit: Emitter, block: Any, offset: int) -> Any:
    """32 unsigned 4-bit weights: the low halves of 16 bytes, then the high ones."""
    packed = emit.load(block, offset, lanes(I8, 16))
    return emit.joined(emit.low(packed, 4), emit.right(packed, 4))


def _wide_nibbles(emit: Emitter, block: Any, offset: int) -> Any:
    """The same as 16-bit integers."""
    packed = emit.unsigned(emit.load(block, offset, lanes(I8, 16)))
    return emit.joined(emit.low(packed, 4), emit.right(packed, 4))


def _less(emit: Emitter, weights: Any, middle: int) -> Any:
    """Unsigned bytes less the middle of their range, as 16-bit integers."""
    return emit.signed(emit.b.sub(weights, emit.constant(middle, weights)))


def _q4_0(emit: Emitter, block: Any) -> Decoded:
    weights = _wide_nibbles(emit, block, 2)
    return Decoded([emit.b.sub(weights, emit.constant(8, weights))], emit.half(block, 0))


def _q4_1(emit: Emitter, block: Any) -> Decoded:
    return Decoded([_wide_nibbles(emit, block, 4)], emit.half(block, 0), emit.half(block, 2))


def _q8_0(emit: Emitter, block: Any) -> Decoded:
    return Decoded([emit.signed(emit.load(block, 2, lanes(I8, RUN)))], emit.half(block, 0))


def _with_fifth_bits(emit: Emitter, block: Any, offset: int) -> Any:
    """32 unsigned weights of 5 bits: the highest ones, a bit for each weight, then the nibbles."""
    bits = emit.bits(emit.load(block, offset, I32))
    return emit.b.or_(_nibbles(emit, block, offset + 4), emit.left(bits, 4))


def _q5_0(emit: Emitter, block: Any) -> Decoded:
    return Decoded([_less(emit, _with_fifth_bits(emit, block, 2), 16)], emit.half(block, 0))


def _q5_1(emit: Emitter, block: Any) -> Decoded:
    weights = emit.unsigned(_with_fifth_bits(emit, block, 4))
    return Decoded([weights], emit.half(block, 0), emit.half(block, 2))


def _iq4_nl(emit: Emitter, block: Any) -> Decoded:
    codes = _nibbles(emit, block, 2)
    return Decoded([emit.looked_up(_UNEVEN, codes)], emit.half(block, 0))


def _mxfp4(emit: Emitter, block: Any) -> Decoded:
    """The codebook is twice the numbers, and the scale, a power of two, half of what is written."""
    codes = emit.looked_up(_FLOATS_OF_4_BITS, _nibbles(emit, block, 1))
    exponent = emit.b.zext(emit.load(block, 0, I8), I32)
    normal = emit.b.shl(emit.b.sub(exponent, ir.Constant(I32, 1)), ir.Constant(I32, 23))
    below = emit.b.shl(ir.Constant(I32, 0x00200000), exponent)
    is_below = emit.b.icmp_unsigned("<", exponent, ir.Constant(I32, 2))
    bits = emit.b.select(is_below, below, normal)
    return Decoded([codes], emit.b.bitcast(bits, FLOAT))


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
    unit = emit.b.fneg(emit.pick(emit.widened([emit.half(block, 2)]), [0] * 16))
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


def _quarters(emit: Emitter, block: Any, offset: int) -> list[Any]:
    """256 unsigned 2-bit weights as 8 runs of bytes: each 32 bytes hold 4 runs."""
    packed = [emit.load(block, offset + RUN * half, lanes(I8, RUN)) for half in range(2)]
    return [emit.low(emit.right(half, 2 * part), 2) for half in packed for part in range(4)]


def _q2_k(emit: Emitter, block: Any) -> Decoded:
    both = emit.load(block, 0, lanes(I8, 16))
    weights = [emit.unsigned(values) for values in _quarters(emit, block, 16)]
    unit = emit.b.fneg(emit.pick(emit.widened([emit.half(block, 82)]), [0] * 16))
    minima = emit.b.fmul(emit.floats(emit.unsigned(emit.right(both, 4), I32)), unit)
    scales = emit.unsigned(emit.low(both, 4))
    return Decoded(_scaled(emit, weights, scales, 16), emit.half(block, 80), minima)


def _q3_k(emit: Emitter, block: Any) -> Decoded:
    third = emit.load(block, 0, lanes(I8, RUN))
    weights = []
    for run, values in enumerate(_quarters(emit, block, 32)):
        bit = emit.left(emit.low(emit.right(third, run), 1), 2)
        weights.append(_less(emit, emit.b.or_(values, bit), 4))
    eights = emit.load(block, 96, lanes(I8, 8))
    lower = emit.joined(emit.low(eights, 4), emit.right(eights, 4))
    upper = emit.load(block, 104, lanes(I8, 4))
    parts = [emit.low(emit.right(upper, 2 * part), 2) for part in range(4)]
    pairs = emit.joined(emit.joined(*parts[:2]), emit.joined(*parts[2:]))
    scales = _less(emit, emit.b.or_(lower, emit.left(pairs, 4)), 32)
    return Decoded(_scaled(emit, weights, scales, 16), emit.half(block, 108))


def _iq4_xs(emit: Emitter, block: Any) -> Decoded:
    low = emit.load(block, 4, lanes(I8, 4))
    order = [part for pair in range(4) for part in (pair, pair + 4)]
    lower = emit.pick(emit.joined(emit.low(low, 4), emit.right(low, 4)), order)
    spread = emit.splat(emit.load(block, 2, I16), 8)
    shifts = ir.Constant(spread.type, [2 * part for part in range(8)])
    upper = emit.low(emit.b.trunc(emit.b.lshr(spread, shifts), lanes(I8, 8)), 2)
    scales = _less(emit, emit.b.or_(lower, emit.left(upper, 4)), 32)
    weights = []
    for run in range(8):
        codes = _nibbles(emit, block, 8 + GROUP * run)
        weights.append(emit.looked_up(_UNEVEN, codes))
    return Decoded(_scaled(emit, weights, scales, 32), emit.half(block, 0))


def _tq2_0(emit: Emitter, block: Any) -> Decoded:
    weights = [_less(emit, values, 1) for values in _quarters(emit, block, 0)]
    return Decoded(weights, emit.half(block, 64))


def _tq1_0(emit: Emitter, block: Any) -> Decoded:
    """Five digits of base 3 in a byte, as a fraction of 256: times 3, the carry is a digit."""

    def digits(offset: int, count: int, num_digits: int) -> list[Any]:
        packed = emit.load(block, offset, lanes(I8, count))
        places = [
            emit.b.mul(packed, emit.constant(3**place, packed)) for place in range(num_digits)
        ]
        tripled = [emit.unsigned(place) for place in places]
        tripled = [emit.b.mul(wide, emit.constant(3, wide)) for wide in tripled]
        return [emit.b.trunc(emit.right(wide, 8), packed.type) for wide in tripled]

    last = digits(48, 4, 4)
    sixteens = digits(32, 16, 5)
    sixteens.append(emit.joined(emit.joined(*last[:2]), emit.joined(*last[2:])))
    runs = digits(0, 32, 5)
    runs += [emit.joined(*sixteens[start : start + 2]) for start in (0, 2, 4)]
    return Decoded([_less(emit, run, 1) for run in runs], emit.half(block, 52))


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


# What the codes of 4 bits mean: of IQ4_NL and IQ4_XS, and twice the floats of 4 bits.
_UNEVEN = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)
_FLOATS_OF_4_BITS = (0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12)

DECODERS: dict[int, Decoder] = {
    KINDS[name].ggml_type: decoder
    for name, decoder in {
        "Q4_0": _q4_0,
        "Q4_1": _q4_1,
        "Q5_0": _q5_0,
        "Q5_1": _q5_1,
        "Q8_0": _q8_0,
        "Q2_K": _q2_k,
        "Q3_K": _q3_k,
        "Q4_K": _q4_k,
        "Q5_K": _q5_k,
        "Q6_K": _q6_k,
        "IQ4_NL": _iq4_nl,
        "IQ4_XS": _iq4_xs,
        "MXFP4": _mxfp4,
        "TQ1_0": _tq1_0,
        "TQ2_0": _tq2_0,
    }.items()
}
WITH_MINIMA = frozenset(KINDS[name].ggml_type for name in ("Q4_1", "Q5_1", "Q2_K", "Q4_K", "Q5_K"))
