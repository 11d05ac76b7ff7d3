"""The arithmetic of one decode step, as one task: all layers, in all threads of a team.

Each thread takes its rows of every matrix, and its heads; they meet at a barrier between the
products. Weights are read where the modules have them, packed or not; K and V are written and read
where the cache keeps them. Activations are float32 throughout. The bits depend neither on the
number of threads nor on the room that buffers have: a row, and a head, is always computed by one.

What a model must be like is the business of `decode.py`.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
from numba import carray, njit

from chatcache.backends.local.packed.blocks import KINDS
from chatcache.backends.local.packed.intrinsics import (
    bits_of_float,
    call_rows,
    float_of_bits,
    floats_at,
    memory_at,
    words_at,
)
from chatcache.backends.local.packed.kernels import round_activations, share, task
from chatcache.backends.local.packed.products import (
    FLOATS,
    NUM_WORDS,
    OWN_FLOATS,
    ROUNDED_FOR,
    float_dot,
    weighted_rows,
)
from chatcache.backends.local.packed.team import barrier

# Addresses are int64; 0 means that there is none.
MATRIX = np.dtype(
    [
        ("function", "i8"),  # of `kernels.product_rows`
        ("weights", "i8"),
        ("row_bytes", "i8"),
        ("group", "i8"),  # of `kernels.group_of`
        ("bias", "i8"),  # float32 [num_rows]
    ]
)
LAYER = np.dtype(
    [
        *((name, MATRIX) for name in ("q", "k", "v", "o", "gate", "up", "down")),
        *((name, "i8") for name in ("input_norm", "output_norm", "q_norm", "k_norm")),
        ("keys", "i8"),  # [num_kv_heads, room, head_dim]
        ("values", "i8"),
        ("room", "i8"),
        ("is_rotated", "i8"),
    ]
)
JOB = np.dtype(
    [
        *((name, "i8") for name in ("num_layers", "hidden", "inner", "vocab")),
        *((name, "i8") for name in ("num_heads", "num_kv_heads", "head_dim")),
        ("num_keys", "i8"),  # the new token's among them
        ("is_bfloat16", "i8"),  # keys and values; float32 otherwise
        ("epsilon", "f4"),
        ("scale", "f4"),  # of scores
        ("layers", "i8"),  # LAYER [num_layers]
        ("final_norm", "i8"),
        ("head", MATRIX),
        ("rotary", "i8"),  # float32 [2, head_dim / 2]: cosines, sines
        ("states", "i8"),  # float32 [hidden]: the embedding at first
        ("logits", "i8"),  # float32 [vocab]
        # What threads share between two barriers, float32.
        *((name, "i8") for name in ("queries", "new_keys", "new_values", "seen", "gated")),
        # What each thread has for itself, `own_bytes` apart.
        ("own_bytes", "i8"),
        ("record", "i8"),  # of activations, which begins with the address of its floats
        ("sums", "i8"),  # float32 [max(hidden, vocab)]: products before they are added
        ("scores", "i8"),  # float32 [num_heads, score_room]
        ("score_room", "i8"),
        ("barrier", "i8"),
    ]
)
_F32, _BF16 = KINDS["F32"].ggml_type, KINDS["BF16"].ggml_type
_KEYS_AT_ONCE = 256  # that every head which shares them reads while they are in the cache
_ANY_ORDER = {"reassoc", "contract", "nsz"}


@njit(fastmath=_ANY_ORDER, error_model="numpy")
def _normalise(states: Any, weight: Any, epsilon: Any, out: Any) -> None:
    """RMS norm (Zhang and Sennrich, 2019); all float32."""
    total = np.float32(0.0)
    for index in range(len(states)):
        total += states[index] * states[index]
    scale = np.float32(1.0) / np.sqrt(total / np.float32(len(states)) + epsilon)
    for index in range(len(states)):
        out[index] = states[index] * scale * weight[index]


@njit(fastmath={"contract"}, error_model="numpy")
def _exp(x: Any) -> Any:
    """e to the power of x up to 88, within 2e-7: 2**n times a polynomial of the rest, which needs
    no call and so runs in vectors. Coefficients: Taylor's."""
    x = max(np.float32(-87.0), min(np.float32(88.0), x)) if x == x else x
    whole = np.rint(x * np.float32(1.4426950408889634))
    rest = x - whole * np.float32(0.693359375)
    rest = rest - whole * np.float32(-2.12194440e-4)
    series = np.float32(1.0 / 5040.0)
    series = series * rest + np.float32(1.0 / 720.0)
    series = series * rest + np.float32(1.0 / 120.0)
    series = series * rest + np.float32(1.0 / 24.0)
    series = series * rest + np.float32(1.0 / 6.0)
    series = series * rest + np.float32(0.5)
    series = series * rest * rest + rest + np.float32(1.0)
    power = np.uint32(np.int32(whole) + np.int32(127)) << np.uint32(23)
    return series * float_of_bits(np.uint32(power))


@njit
def _multiply(
    matrix: Any, num_rows: Any, num_columns: Any, record: Any, thread: Any, threads: Any, out: Any
) -> Any:
    """The thread's rows of a matrix times the activations of its record, to `out` (an address of
    float32 [num_rows]); returns which rows. The record is rounded as the matrix wants it."""
    words = carray(words_at(record), NUM_WORDS)
    if matrix.group != 0 and matrix.group != words[ROUNDED_FOR]:
        round_activations(num_columns, matrix.group, record)
        words[ROUNDED_FOR] = matrix.group
    start, stop = share(num_rows, thread, threads)
    call_rows(
        matrix.function,
        matrix.weights + matrix.row_bytes * start,
        matrix.row_bytes,
        stop - start,
        num_columns,
        record,
        out + 4 * start,
    )
    if matrix.bias != 0:
        target = carray(floats_at(out), num_rows)
        bias = carray(floats_at(matrix.bias), num_rows)
        for row in range(start, stop):
            target[row] += bias[row]
    return start, stop


@njit
def _new_floats(record: Any, address: Any) -> None:
    """The record is of other activations from now on, and not rounded."""
    words = carray(words_at(record), NUM_WORDS)
    words[FLOATS], words[ROUNDED_FOR] = address, 0


@njit(fastmath={"contract"})
def _rotate(head: Any, weight: Any, epsilon: Any, rotary: Any, is_rotated: Any) -> None:
    """Norm (if there is a weight) and rotary embedding of one head, in place; the two halves of a
    head are the pairs."""
    if weight != 0:
        _normalise(head, carray(floats_at(weight), len(head)), epsilon, head)
    if is_rotated == 0:
        return
    half = len(head) // 2
    for index in range(half):
        first, second = head[index], head[half + index]
        cosine, sine = rotary[index], rotary[half + index]
        head[index] = first * cosine - second * sine
        head[half + index] = second * cosine + first * sine


@njit
def _keep(head: Any, address: Any, is_bfloat16: Any) -> None:
    """Write one head of a new key or value where the cache keeps it, rounded to nearest."""
    if is_bfloat16 == 0:
        target = carray(floats_at(address), len(head))
        for index in range(len(head)):
            target[index] = head[index]
        return
    short = carray(memory_at(address), len(head), np.uint16)
    for index in range(len(head)):
        bits = bits_of_float(head[index])
        odd = (bits >> np.uint32(16)) & np.uint32(1)
        rounded = np.uint32(bits + np.uint32(0x7FFF) + odd) >> np.uint32(16)
        short[index] = np.uint16(rounded) if head[index] == head[index] else np.uint16(0x7FC0)


@njit(fastmath={"reassoc", "contract", "nsz"}, error_model="numpy")
def _softmax(scores: Any) -> None:
    """In place. Any NaN among the scores makes all of them NaN."""
    largest, check = scores[0], np.float32(0.0)
    for index in range(len(scores)):
        largest = max(largest, scores[index])
        check += scores[index] * np.float32(0.0)
    total = np.float32(0.0)
    for index in range(len(scores)):
        weight = _exp(scores[index] - largest)
        scores[index] = weight
        total += weight
    scale = np.float32(1.0) / total + check
    for index in range(len(scores)):
        scores[index] *= scale


@njit
def _attend(job: Any, layer: Any, first: Any, last: Any, scores: Any) -> None:
    """The query heads `first` to `last` (not counted) that share one head of keys and values."""
    dim, num_keys = job.head_dim, job.num_keys
    width = 2 if job.is_bfloat16 else 4
    offset = first // (job.num_heads // job.num_kv_heads) * layer.room * dim * width
    for start in range(0, num_keys, _KEYS_AT_ONCE):
        stop = min(start + _KEYS_AT_ONCE, num_keys)
        for head in range(first, last):
            query = job.queries + 4 * dim * head
            own = carray(floats_at(scores + 4 * job.score_room * (head - first)), num_keys)
            for key in range(start, stop):
                place = layer.keys + offset + key * dim * width
                if job.is_bfloat16:
                    own[key] = float_dot(_BF16, place, query, dim) * job.scale
                else:
                    own[key] = float_dot(_F32, place, query, dim) * job.scale
    for head in range(first, last):
        address = scores + 4 * job.score_room * (head - first)
        _softmax(carray(floats_at(address), num_keys))
        out = job.seen + 4 * dim * head
        if job.is_bfloat16:
            weighted_rows(_BF16, address, layer.values + offset, num_keys, dim, out)
        else:
            weighted_rows(_F32, address, layer.values + offset, num_keys, dim, out)


@njit
def _attention(job: Any, layer: Any, record: Any, scores: Any, thread: Any, threads: Any) -> None:
    """From the normalised states of the record to what the heads have seen."""
    dim, hidden = job.head_dim, job.hidden
    num_queries, num_keys = job.num_heads * dim, job.num_kv_heads * dim
    _multiply(layer.q, num_queries, hidden, record, thread, threads, job.queries)
    _multiply(layer.k, num_keys, hidden, record, thread, threads, job.new_keys)
    _multiply(layer.v, num_keys, hidden, record, thread, threads, job.new_values)
    barrier(job.barrier, threads)
    rotary = carray(floats_at(job.rotary), dim)
    width = 2 if job.is_bfloat16 else 4
    start, stop = share(job.num_kv_heads, thread, threads)
    for head in range(start, stop):
        key = carray(floats_at(job.new_keys + 4 * dim * head), dim)
        value = carray(floats_at(job.new_values + 4 * dim * head), dim)
        _rotate(key, layer.k_norm, job.epsilon, rotary, layer.is_rotated)
        place = (head * layer.room + job.num_keys - 1) * dim * width
        _keep(key, layer.keys + place, job.is_bfloat16)
        _keep(value, layer.values + place, job.is_bfloat16)
    barrier(job.barrier, threads)
    start, stop = share(job.num_heads, thread, threads)
    for head in range(start, stop):
        query = carray(floats_at(job.queries + 4 * dim * head), dim)
        _rotate(query, layer.q_norm, job.epsilon, rotary, layer.is_rotated)
    group = job.num_heads // job.num_kv_heads
    while start < stop:
        last = min(stop, (start // group + 1) * group)
        _attend(job, layer, start, last, scores)
        start = last
    barrier(job.barrier, threads)


@njit
def _add(states: Any, sums: Any, start: Any, stop: Any) -> None:
    for row in range(start, stop):
        states[row] += sums[row]


@njit(fastmath={"contract"}, error_model="numpy")
def _gate(gated: Any, sums: Any, start: Any, stop: Any) -> None:
    """SiLU of the one, times the other."""
    for row in range(start, stop):
        value = gated[row]
        gated[row] = value / (np.float32(1.0) + _exp(-value)) * sums[row]


def _step(address, thread, threads):  # type: ignore[no-untyped-def]
    """The job `JOB` at `address`."""
    job = carray(memory_at(address), 1, JOB)[0]
    layers = carray(memory_at(job.layers), job.num_layers, LAYER)
    hidden, own = job.hidden, job.own_bytes * thread
    record, sums_address, scores = job.record + own, job.sums + own, job.scores + own
    states = carray(floats_at(job.states), hidden)
    sums = carray(floats_at(sums_address), max(hidden, job.inner))
    normal = carray(words_at(record), NUM_WORDS)[
        OWN_FLOATS
    ]  # where this thread keeps normalised states
    values = carray(floats_at(normal), hidden)
    for number in range(job.num_layers):
        layer = layers[number]
        _normalise(states, carray(floats_at(layer.input_norm), hidden), job.epsilon, values)
        _new_floats(record, normal)
        _attention(job, layer, record, scores, thread, threads)
        width = job.num_heads * job.head_dim
        _new_floats(record, job.seen)
        start, stop = _multiply(layer.o, hidden, width, record, thread, threads, sums_address)
        _add(states, sums, start, stop)
        barrier(job.barrier, threads)
        _normalise(states, carray(floats_at(layer.output_norm), hidden), job.epsilon, values)
        _new_floats(record, normal)
        inner = job.inner
        _multiply(layer.gate, inner, hidden, record, thread, threads, job.gated)
        start, stop = _multiply(layer.up, inner, hidden, record, thread, threads, sums_address)
        _gate(carray(floats_at(job.gated), inner), sums, start, stop)
        barrier(job.barrier, threads)
        _new_floats(record, job.gated)
        start, stop = _multiply(layer.down, hidden, inner, record, thread, threads, sums_address)
        _add(states, sums, start, stop)
        barrier(job.barrier, threads)
    _normalise(states, carray(floats_at(job.final_norm), hidden), job.epsilon, values)
    _new_floats(record, normal)
    _multiply(job.head, job.vocab, hidden, record, thread, threads, job.logits)


@functools.cache
def step_task() -> int:
    """The address of the task; its job is one `JOB`."""
    return task(_step)
