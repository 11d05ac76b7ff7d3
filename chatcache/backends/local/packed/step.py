"""The arithmetic of a few tokens, as one task: all layers, in all threads of a team.

One token is a decode step; some more are a short message. A token gets the same bits alone and
among others.

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

from chatcache.backends.local.packed.attending import attend, exponential
from chatcache.backends.local.packed.intrinsics import (
    bits_of_float,
    call_task,
    floats_at,
    memory_at,
    words_at,
)
from chatcache.backends.local.packed.kernels import (
    multiply_rows,
    round_activations,
    share,
    task,
)
from chatcache.backends.local.packed.pairs import multiply_pairs
from chatcache.backends.local.packed.products import (
    FLOATS,
    LANES,
    NUM_WORDS,
    OWN_FLOATS,
    ROUNDED_FOR,
)
from chatcache.backends.local.packed.team import barrier

# Addresses are int64; 0 means that there is none.
MATRIX = np.dtype(
    [
        ("functions", "i8"),  # of `kernels.product_functions`, or of `pairs.pair_functions`
        ("weights", "i8"),
        ("row_bytes", "i8"),
        ("group", "i8"),  # of `kernels.group_of`
        ("is_paired", "i8"),  # they lie as `pairs` has it
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
        ("routed", "i8"),  # of `routing.ROUTED`, in the place of the last three matrices
    ]
)
JOB = np.dtype(
    [
        *((name, "i8") for name in ("num_layers", "hidden", "inner", "vocab")),
        *((name, "i8") for name in ("num_heads", "num_kv_heads", "head_dim")),
        ("num_tokens", "i8"),  # new ones, one behind the other
        ("num_keys", "i8"),  # the new tokens' among them
        ("is_bfloat16", "i8"),  # keys and values; float32 otherwise
        ("scores_of", "i8"),  # of `attending`, for these
        ("sums_of", "i8"),
        ("epsilon", "f4"),
        ("scale", "f4"),  # of scores
        ("layers", "i8"),  # LAYER [num_layers]
        ("final_norm", "i8"),
        ("mix_task", "i8"),  # of `routing`
        ("normed", "i8"),  # float32 [num_tokens, hidden], for experts
        ("head", MATRIX),
        ("rotary", "i8"),  # float32 [num_tokens, 2, head_dim / 2]: cosines, sines
        ("states", "i8"),  # float32 [num_tokens, hidden]: the embeddings at first
        ("logits", "i8"),  # float32 [vocab], behind the last token
        # What threads share between two barriers, float32, for each token.
        *((name, "i8") for name in ("queries", "new_keys", "new_values", "seen", "gated")),
        # What each thread has for itself, `own_bytes` apart.
        ("own_bytes", "i8"),
        ("records", "i8"),  # of activations, one for each token, `record_bytes` apart
        ("record_bytes", "i8"),
        ("sums", "i8"),  # float32 [num_tokens, max(hidden, inner)]: products before they are added
        ("scores", "i8"),  # float32 [TOKENS_AT_ONCE, heads that share keys, score_room]
        ("heads", "i8"),  # float32 [2, TOKENS_AT_ONCE, heads that share keys, head_dim]
        ("score_room", "i8"),
        ("scratch", "i8"),  # of `kernels.scratch_bytes`
        ("barrier", "i8"),
    ]
)
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


@njit
def _share_of_rows(num_rows: Any, thread: Any, threads: Any) -> Any:
    """Whole vectors of 16 for each thread, but for the last rows."""
    start, stop = share((num_rows + LANES - 1) // LANES, thread, threads)
    return LANES * start, min(LANES * stop, num_rows)


@njit
def _multiply(
    job: Any,
    matrix: Any,
    shape: Any,
    records: Any,
    num_records: Any,
    share_of: Any,
    out: Any,
) -> Any:
    """The thread's rows of a matrix of this shape times the activations of its records, to `out`
    (an address of float32 [num_records, num_rows]); returns which rows. `share_of`: the thread, and
    how many there are. The records are rounded as the matrix wants it."""
    num_rows, num_columns = shape
    for number in range(num_records):
        record = records + job.record_bytes * number
        words = carray(words_at(record), NUM_WORDS)
        if matrix.group != 0 and matrix.group != words[ROUNDED_FOR]:
            round_activations(num_columns, matrix.group, record)
            words[ROUNDED_FOR] = matrix.group
    start, stop = _share_of_rows(num_rows, share_of[0], share_of[1])
    activations = (
        records,
        job.record_bytes,
        num_records,
        job.scratch + job.own_bytes * share_of[0],
    )
    if matrix.is_paired:
        weights = (matrix.functions, matrix.weights)
        multiply_pairs(weights, num_columns, (start, stop), activations, out, num_rows)
    else:
        rows = (matrix.functions, matrix.weights, matrix.row_bytes)
        multiply_rows(rows, num_columns, (start, stop), activations, out, num_rows)
    if matrix.bias != 0:
        bias = carray(floats_at(matrix.bias), num_rows)
        for number in range(num_records):
            target = carray(floats_at(out + 4 * num_rows * number), num_rows)
            for row in range(start, stop):
                target[row] += bias[row]
    return start, stop


@njit
def _read(job: Any, records: Any, address: Any, width: Any) -> None:
    """The records are of other activations from now on, `width` for each token, not rounded."""
    for number in range(job.num_tokens):
        words = carray(words_at(records + job.record_bytes * number), NUM_WORDS)
        words[FLOATS], words[ROUNDED_FOR] = address + 4 * width * number, 0


@njit
def _read_normalised(job: Any, record: Any, token: Any, weight: Any) -> None:
    """The record is of the normalised states of a token from now on."""
    hidden = job.hidden
    words = carray(words_at(record), NUM_WORDS)
    states = carray(floats_at(job.states + 4 * hidden * token), hidden)
    values = carray(floats_at(words[OWN_FLOATS]), hidden)
    _normalise(states, carray(floats_at(weight), hidden), job.epsilon, values)
    words[FLOATS], words[ROUNDED_FOR] = words[OWN_FLOATS], 0


@njit
def _read_all_normalised(job: Any, records: Any, weight: Any) -> None:
    """Each thread makes them for itself."""
    for token in range(job.num_tokens):
        _read_normalised(job, records + job.record_bytes * token, token, weight)


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


@njit
def _keep_keys(job: Any, layer: Any, thread: Any, threads: Any) -> None:
    """Write the new keys and values of the thread's heads where the cache keeps them."""
    dim = job.head_dim
    width = 2 if job.is_bfloat16 else 4
    start, stop = share(job.num_kv_heads, thread, threads)
    for token in range(job.num_tokens):
        rotary = carray(floats_at(job.rotary + 4 * dim * token), dim)
        for head in range(start, stop):
            offset = 4 * dim * (job.num_kv_heads * token + head)
            key = carray(floats_at(job.new_keys + offset), dim)
            value = carray(floats_at(job.new_values + offset), dim)
            _rotate(key, layer.k_norm, job.epsilon, rotary, layer.is_rotated)
            place = (head * layer.room + job.num_keys - job.num_tokens + token) * dim * width
            _keep(key, layer.keys + place, job.is_bfloat16)
            _keep(value, layer.values + place, job.is_bfloat16)


@njit
def _attention(job: Any, layer: Any, records: Any, thread: Any, threads: Any) -> None:
    """From the normalised states of the records to what the heads have seen."""
    dim, hidden = job.head_dim, job.hidden
    num_tokens, own = job.num_tokens, (thread, threads)
    shape = (job.num_kv_heads * dim, hidden)
    _multiply(job, layer.q, (job.num_heads * dim, hidden), records, num_tokens, own, job.queries)
    _multiply(job, layer.k, shape, records, num_tokens, own, job.new_keys)
    _multiply(job, layer.v, shape, records, num_tokens, own, job.new_values)
    barrier(job.barrier, threads)
    _keep_keys(job, layer, thread, threads)
    barrier(job.barrier, threads)
    start, stop = share(job.num_heads, thread, threads)
    for token in range(job.num_tokens):
        rotary = carray(floats_at(job.rotary + 4 * dim * token), dim)
        for head in range(start, stop):
            place = job.queries + 4 * dim * (job.num_heads * token + head)
            query = carray(floats_at(place), dim)
            _rotate(query, layer.q_norm, job.epsilon, rotary, layer.is_rotated)
    offset = job.own_bytes * thread
    attend(job, layer, start, stop, job.scores + offset, job.heads + offset)
    barrier(job.barrier, threads)


@njit
def _add(job: Any, sums: Any, start: Any, stop: Any) -> None:
    """What was multiplied, `start` to `stop` of each token, to the states."""
    for number in range(job.num_tokens):
        states = carray(floats_at(job.states + 4 * job.hidden * number), job.hidden)
        added = carray(floats_at(sums + 4 * job.hidden * number), job.hidden)
        for row in range(start, stop):
            states[row] += added[row]


@njit(fastmath={"contract"}, error_model="numpy")
def _gate(gated: Any, sums: Any, start: Any, stop: Any) -> None:
    """SiLU of the one, times the other."""
    for row in range(start, stop):
        value = gated[row]
        gated[row] = value / (np.float32(1.0) + exponential(-value)) * sums[row]


@njit
def _feed_forward(job: Any, layer: Any, records: Any, sums: Any, thread: Any, threads: Any) -> None:
    hidden, inner, num_tokens = job.hidden, job.inner, job.num_tokens
    own, shape = (thread, threads), (inner, hidden)
    _multiply(job, layer.gate, shape, records, num_tokens, own, job.gated)
    start, stop = _multiply(job, layer.up, shape, records, num_tokens, own, sums)
    for number in range(num_tokens):
        gated = carray(floats_at(job.gated + 4 * inner * number), inner)
        _gate(gated, carray(floats_at(sums + 4 * inner * number), inner), start, stop)
    barrier(job.barrier, threads)
    _read(job, records, job.gated, inner)
    start, stop = _multiply(job, layer.down, (hidden, inner), records, num_tokens, own, sums)
    _add(job, sums, start, stop)
    barrier(job.barrier, threads)


@njit
def _mixture(job: Any, layer: Any, thread: Any, threads: Any) -> None:
    """The experts that the router of the layer chooses, added to the states."""
    hidden = job.hidden
    weight = carray(floats_at(layer.output_norm), hidden)
    start, stop = share(job.num_tokens, thread, threads)
    for token in range(start, stop):
        states = carray(floats_at(job.states + 4 * hidden * token), hidden)
        normed = carray(floats_at(job.normed + 4 * hidden * token), hidden)
        _normalise(states, weight, job.epsilon, normed)
    barrier(job.barrier, threads)
    call_task(job.mix_task, layer.routed, thread, threads)


def _step(address, thread, threads):  # type: ignore[no-untyped-def]
    """The job `JOB` at `address`."""
    job = carray(memory_at(address), 1, JOB)[0]
    layers = carray(memory_at(job.layers), job.num_layers, LAYER)
    hidden, offset = job.hidden, job.own_bytes * thread
    records, sums = job.records + offset, job.sums + offset
    own = (thread, threads)
    for number in range(job.num_layers):
        layer = layers[number]
        _read_all_normalised(job, records, layer.input_norm)
        _attention(job, layer, records, thread, threads)
        shape = (hidden, job.num_heads * job.head_dim)
        _read(job, records, job.seen, shape[1])
        start, stop = _multiply(job, layer.o, shape, records, job.num_tokens, own, sums)
        _add(job, sums, start, stop)
        barrier(job.barrier, threads)
        if layer.routed != 0:
            _mixture(job, layer, thread, threads)
            continue
        _read_all_normalised(job, records, layer.output_norm)
        _feed_forward(job, layer, records, sums, thread, threads)
    _read_normalised(job, records, job.num_tokens - 1, job.final_norm)
    _multiply(job, job.head, (job.vocab, hidden), records, 1, own, job.logits)


@functools.cache
def step_task() -> int:
    """The address of the task; its job is one `JOB`."""
    return task(_step)
