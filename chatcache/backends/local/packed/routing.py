"""What a layer's experts give for some tokens, in compiled code: one task for all of them.

The tokens of an expert are multiplied together with its blocks as they lie, expert by expert, each
thread with its rows of every matrix. What experts give is added up in float32, by their numbers, so
that the bits of a token do not depend on which others there are. For a step (`step.py`) the router
is part of it; else transformers' module has chosen already (`mixing.py`).
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
from numba import carray, njit

from chatcache.backends.local.packed.attending import exponential
from chatcache.backends.local.packed.intrinsics import floats_at, memory_at, words_at
from chatcache.backends.local.packed.kernels import (
    multiply_rows,
    round_activations,
    share,
    task,
)
from chatcache.backends.local.packed.products import FLOATS, NUM_WORDS
from chatcache.backends.local.packed.team import barrier

AT_ONCE = 512  # choices of tokens whose states between the matrices are held together
HEAD_BYTES = 8 * (NUM_WORDS + 1)

# Addresses are int64; 0 means that there is none.
STACK = np.dtype(
    [
        ("functions", "i8"),  # of `kernels.product_functions`
        ("weights", "i8"),  # of the first expert
        ("row_bytes", "i8"),
        ("expert_bytes", "i8"),  # from one expert to the next
        ("group", "i8"),  # of `kernels.group_of`
        ("bias", "i8"),  # float32 [num_experts, num_rows]
    ]
)
EXPERTS = np.dtype(
    [
        *((name, STACK) for name in ("gate", "up", "down")),
        *((name, "i8") for name in ("num_experts", "hidden", "inner")),
        ("alpha", "f4"),
        ("limit", "f4"),  # 0: plain SiLU
    ]
)
ROUTED = np.dtype(
    [
        ("experts", "i8"),  # EXPERTS
        ("num_tokens", "i8"),
        ("num_chosen", "i8"),  # experts for each
        ("states", "i8"),  # float32 [num_tokens, hidden]
        ("choices", "i8"),  # int64 [num_tokens, num_chosen]; what is no expert is passed over
        ("shares", "i8"),  # float32 [num_tokens, num_chosen]
        ("out", "i8"),  # float32 [num_tokens, hidden]
        # Of a router, if it is part of the task: its matrix float32 or bfloat16 `[num_experts,
        # hidden]`, and what it gives.
        ("router_functions", "i8"),
        ("router", "i8"),
        ("router_row_bytes", "i8"),
        ("scores", "i8"),  # float32 [num_tokens, num_experts]
        ("is_normalised", "i8"),  # the shares of a token's experts are one together
        # What threads share between two barriers.
        ("order", "i8"),  # int64 [num_tokens * num_chosen]: choices, by expert
        ("starts", "i8"),  # int64 [num_experts + 1]: where those of each expert begin
        ("gate_records", "i8"),  # of activations, one for each token, `record_bytes` apart
        ("up_records", "i8"),  # the same, unless `up` wants them rounded otherwise
        ("down_records", "i8"),  # one for each choice that is held
        ("record_bytes", "i8"),
        ("gated", "i8"),  # float32 [choices held, inner]
        ("ups", "i8"),
        ("given", "i8"),  # float32 [tokens of an expert, hidden]
        ("barrier", "i8"),
        # What each thread has for itself, `own_bytes` apart.
        ("heads", "i8"),  # of the records of an expert's tokens, side by side
        ("scratch", "i8"),  # of `kernels.scratch_bytes`
        ("own_bytes", "i8"),
    ]
)


# the task


@njit
def _order(job: Any, num_experts: Any) -> None:
    """Sort the choices by expert; those of an expert stay in the order of the tokens."""
    count = job.num_tokens * job.num_chosen
    choices = carray(words_at(job.choices), count)
    order = carray(words_at(job.order), count)
    starts = carray(words_at(job.starts), num_experts + 1)
    starts[:] = 0
    for place in range(count):
        if 0 <= choices[place] < num_experts:
            starts[choices[place] + 1] += 1
    for expert in range(num_experts):
        starts[expert + 1] += starts[expert]
    for place in range(count):
        if 0 <= choices[place] < num_experts:
            order[starts[choices[place]]] = place
            starts[choices[place]] += 1
    for expert in range(num_experts, 0, -1):
        starts[expert] = starts[expert - 1]
    starts[0] = 0


@njit
def _round(records: Any, record_bytes: Any, values: Any, width: Any, group: Any, own: Any) -> None:
    """Make records of activations, float32 `width` each; `own`: from here to there."""
    for number in range(own[0], own[1]):
        record = records + record_bytes * number
        carray(words_at(record), NUM_WORDS)[FLOATS] = values + 4 * width * number
        if group != 0:
            round_activations(width, group, record)


@njit
def _gather(job: Any, records: Any, heads: Any, first: Any, last: Any) -> None:
    """The heads of the records of these choices' tokens, side by side."""
    order = carray(words_at(job.order), last)
    for number in range(first, last):
        token = order[number] // job.num_chosen
        source = carray(words_at(records + job.record_bytes * token), NUM_WORDS)
        target = carray(words_at(heads + HEAD_BYTES * (number - first)), NUM_WORDS)
        for word in range(NUM_WORDS):
            target[word] = source[word]


@njit
def _multiply(stack: Any, expert: Any, shape: Any, rows: Any, activations: Any, out: Any) -> None:
    """The thread's rows of an expert's matrix times records; with the bias, if there is one."""
    num_rows, num_columns = shape
    weights = stack.weights + stack.expert_bytes * expert
    matrix = (stack.functions, weights, stack.row_bytes)
    multiply_rows(matrix, num_columns, rows, activations, out, num_rows)
    if stack.bias == 0:
        return
    bias = carray(floats_at(stack.bias + 4 * num_rows * expert), num_rows)
    for number in range(activations[2]):
        target = carray(floats_at(out + 4 * num_rows * number), num_rows)
        for row in range(rows[0], rows[1]):
            target[row] += bias[row]


@njit(fastmath={"contract"}, error_model="numpy")
def _gate(gated: Any, ups: Any, rows: Any, alpha: Any, limit: Any) -> None:
    """As `mixture.Gating` has it, in place."""
    one = np.float32(1.0)
    if limit == np.float32(0.0):
        for row in range(rows[0], rows[1]):
            value = gated[row]
            gated[row] = value / (one + exponential(-value)) * ups[row]
        return
    for row in range(rows[0], rows[1]):
        # A value that is no number stays one.
        value = limit if gated[row] > limit else gated[row]
        up = limit if ups[row] > limit else (-limit if ups[row] < -limit else ups[row])
        gated[row] = value / (one + exponential(-alpha * value)) * (up + one)


@njit
def _up(job: Any, experts: Any, expert: Any, held_from: Any, thread: Any, threads: Any) -> None:
    """From the states of an expert's tokens to what is between its matrices."""
    hidden, inner = experts.hidden, experts.inner
    starts = carray(words_at(job.starts), experts.num_experts + 1)
    first, last = starts[expert], starts[expert + 1]
    heads = job.heads + job.own_bytes * thread
    scratch = job.scratch + job.own_bytes * thread
    activations = (heads, HEAD_BYTES, last - first, scratch)
    rows, shape = share(inner, thread, threads), (inner, hidden)
    offset = 4 * inner * (first - held_from)
    gated, ups = job.gated + offset, job.ups + offset
    _gather(job, job.gate_records, heads, first, last)
    _multiply(experts.gate, expert, shape, rows, activations, gated)
    if job.up_records != job.gate_records:
        _gather(job, job.up_records, heads, first, last)
    _multiply(experts.up, expert, shape, rows, activations, ups)
    for number in range(last - first):
        _gate(
            carray(floats_at(gated + 4 * inner * number), inner),
            carray(floats_at(ups + 4 * inner * number), inner),
            rows,
            experts.alpha,
            experts.limit,
        )


@njit
def _down(job: Any, experts: Any, expert: Any, held_from: Any, thread: Any, threads: Any) -> None:
    """From there to the output: times the share of each token, added to it."""
    hidden, inner = experts.hidden, experts.inner
    starts = carray(words_at(job.starts), experts.num_experts + 1)
    first, last = starts[expert], starts[expert + 1]
    records = job.down_records + job.record_bytes * (first - held_from)
    scratch = job.scratch + job.own_bytes * thread
    activations = (records, job.record_bytes, last - first, scratch)
    rows = share(hidden, thread, threads)
    _multiply(experts.down, expert, (hidden, inner), rows, activations, job.given)
    order = carray(words_at(job.order), last)
    shares = carray(floats_at(job.shares), job.num_tokens * job.num_chosen)
    for number in range(first, last):
        place = order[number]
        part = shares[place]
        out = carray(floats_at(job.out + 4 * hidden * (place // job.num_chosen)), hidden)
        given = carray(floats_at(job.given + 4 * hidden * (number - first)), hidden)
        for row in range(rows[0], rows[1]):
            out[row] += part * given[row]


@njit
def mix(job: Any, thread: Any, threads: Any) -> None:
    """Add to the output what the chosen experts give for each token."""
    experts = carray(memory_at(job.experts), 1, EXPERTS)[0]
    hidden, inner, num_experts = experts.hidden, experts.inner, experts.num_experts
    if thread == 0:
        _order(job, num_experts)
    own = share(job.num_tokens, thread, threads)
    _round(job.gate_records, job.record_bytes, job.states, hidden, experts.gate.group, own)
    if job.up_records != job.gate_records:
        _round(job.up_records, job.record_bytes, job.states, hidden, experts.up.group, own)
    barrier(job.barrier, threads)
    starts = carray(words_at(job.starts), num_experts + 1)
    expert = 0
    while expert < num_experts:
        begin, held_from = expert, starts[expert]
        while expert < num_experts and starts[expert + 1] - held_from <= AT_ONCE:
            if starts[expert + 1] > starts[expert]:
                _up(job, experts, expert, held_from, thread, threads)
            expert += 1
        barrier(job.barrier, threads)
        own = share(starts[expert] - held_from, thread, threads)
        _round(job.down_records, job.record_bytes, job.gated, inner, experts.down.group, own)
        barrier(job.barrier, threads)
        for number in range(begin, expert):
            if starts[number + 1] > starts[number]:
                _down(job, experts, number, held_from, thread, threads)
        barrier(job.barrier, threads)


@njit(error_model="numpy")
def _choose(scores: Any, choices: Any, shares: Any, is_normalised: Any) -> None:
    """The experts with the largest scores, the first of equal ones; their shares by softmax. Where
    scores are no numbers there are none, and the states are none either."""
    largest, total = scores[0], np.float32(0.0)
    for expert in range(len(scores)):
        largest = max(largest, scores[expert])
    for expert in range(len(scores)):
        total += exponential(scores[expert] - largest)
    of_chosen = np.float32(0.0)
    for place in range(len(choices)):
        best = -1
        for expert in range(len(scores)):
            is_taken = False
            for earlier in range(place):
                is_taken = is_taken or choices[earlier] == expert
            if not is_taken and (best < 0 or scores[expert] > scores[best]):
                best = expert
        choices[place] = best
        shares[place] = exponential(scores[best] - largest) / total
        of_chosen += shares[place]
    if is_normalised != 0:
        for place in range(len(choices)):
            shares[place] /= of_chosen


@njit
def _route(job: Any, thread: Any, threads: Any) -> None:
    """Fill the choices and shares of all tokens."""
    experts = carray(memory_at(job.experts), 1, EXPERTS)[0]
    hidden, num_experts, num_chosen = experts.hidden, experts.num_experts, job.num_chosen
    heads = job.heads + job.own_bytes * thread
    for token in range(job.num_tokens):
        words = carray(words_at(heads + HEAD_BYTES * token), NUM_WORDS)
        words[FLOATS] = job.states + 4 * hidden * token
    multiply_rows(
        (job.router_functions, job.router, job.router_row_bytes),
        hidden,
        share(num_experts, thread, threads),
        (heads, HEAD_BYTES, job.num_tokens, job.scratch + job.own_bytes * thread),
        job.scores,
        num_experts,
    )
    barrier(job.barrier, threads)
    start, stop = share(job.num_tokens, thread, threads)
    for token in range(start, stop):
        _choose(
            carray(floats_at(job.scores + 4 * num_experts * token), num_experts),
            carray(words_at(job.choices + 8 * num_chosen * token), num_chosen),
            carray(floats_at(job.shares + 4 * num_chosen * token), num_chosen),
            job.is_normalised,
        )
    barrier(job.barrier, threads)


def _mix(address, thread, threads):  # type: ignore[no-untyped-def]
    """The job `ROUTED` at `address`."""
    job = carray(memory_at(address), 1, ROUTED)[0]
    if job.router != 0:
        _route(job, thread, threads)
    mix(job, thread, threads)


@functools.cache
def mix_task() -> int:
    return task(_mix)
