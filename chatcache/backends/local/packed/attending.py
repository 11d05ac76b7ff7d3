"""Attention of a few new tokens over all that is kept, for the step (`step.py`).

Query heads that share keys and values, of a few tokens, are computed together, so that what is read
of these is used by all of them. A token sees those before it and itself.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
from numba import carray, njit, types

from chatcache.backends.local.packed.blocks import KINDS
from chatcache.backends.local.packed.intrinsics import (
    call_scores,
    call_sums,
    float_of_bits,
    floats_at,
)
from chatcache.backends.local.packed.kernels import compiled
from chatcache.backends.local.packed.scores import float_dots, weighted_rows
from chatcache.backends.local.packed.vectors import has_wide_registers

TOKENS_AT_ONCE = 4
WIDTH_BYTES = {KINDS["F32"].ggml_type: 4, KINDS["BF16"].ggml_type: 2}
_KEYS_AT_ONCE = 256  # that every query reads while they are in the cache
# Queries, and keys with them, whose products are under way in registers; and keys with one query.
_QUERIES, _KEYS = (4, 2) if has_wide_registers() else (2, 2)
_KEYS_OF_ONE = 8


@njit(fastmath={"contract"}, error_model="numpy")
def exponential(x: Any) -> Any:
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


@njit(fastmath={"reassoc", "contract", "nsz"}, error_model="numpy")
def softmax(scores: Any) -> None:
    """In place. Any NaN among the scores makes all of them NaN."""
    largest, check = scores[0], np.float32(0.0)
    for index in range(len(scores)):
        largest = max(largest, scores[index])
        check += scores[index] * np.float32(0.0)
    total = np.float32(0.0)
    for index in range(len(scores)):
        weight = exponential(scores[index] - largest)
        scores[index] = weight
        total += weight
    scale = np.float32(1.0) / total + check
    for index in range(len(scores)):
        scores[index] *= scale


@functools.cache
def scores_of(kind: int) -> int:
    """The address of `(keys, start, stop, queries, num_queries, out, dim, room)`: queries, one
    behind the other, with keys `start` to `stop` (not counted) of those at `keys`, which are floats
    of this kind; at `out`, `room` floats from one query's to the next."""
    width = WIDTH_BYTES[kind]

    def score(keys, start, stop, queries, num_queries, out, dim, room):  # type: ignore[no-untyped-def]
        is_wide = num_queries >= _QUERIES and stop - start >= _KEYS
        queries_at_once = _QUERIES if is_wide else 1
        keys_at_once = _KEYS if is_wide else _KEYS_OF_ONE
        if stop - start < keys_at_once:
            keys_at_once = 1
        # The last ones overlap those before where some are left over.
        for next_query in range(0, num_queries, queries_at_once):
            query = min(next_query, num_queries - queries_at_once)
            own = queries + 4 * dim * query
            for next_key in range(start, stop, keys_at_once):
                key = min(next_key, stop - keys_at_once)
                place, target = keys + key * dim * width, out + 4 * (room * query + key)
                if is_wide:
                    float_dots(kind, _KEYS, _QUERIES, place, own, dim, target, room)
                elif keys_at_once > 1:
                    float_dots(kind, _KEYS_OF_ONE, 1, place, own, dim, target, room)
                else:
                    float_dots(kind, 1, 1, place, own, dim, target, room)

    return compiled(score, types.void(*[types.intp] * 8))


@functools.cache
def sums_of(kind: int) -> int:
    """The address of `(values, num_values, weights, num_queries, out, dim, room)`: values, which
    are floats of this kind, times the weights that each query gives them, `room` floats apart; at
    `out`, one query's behind the other."""

    def add_up(values, num_values, weights, num_queries, out, dim, room):  # type: ignore[no-untyped-def]
        at_once = _QUERIES if num_queries >= _QUERIES else 1
        for next_query in range(0, num_queries, at_once):
            query = min(next_query, num_queries - at_once)
            own, target = weights + 4 * room * query, out + 4 * dim * query
            if at_once > 1:
                weighted_rows(kind, _QUERIES, own, room, values, num_values, dim, target)
            else:
                weighted_rows(kind, 1, own, room, values, num_values, dim, target)

    return compiled(add_up, types.void(*[types.intp] * 7))


@njit
def _copy(source: Any, target: Any, count: Any, scale: Any) -> None:
    read, write = carray(floats_at(source), count), carray(floats_at(target), count)
    for index in range(count):
        write[index] = read[index] * scale


@njit
def _attend(job: Any, layer: Any, heads: Any, tokens: Any, scores: Any, own: Any) -> None:
    """The query heads `heads[0]` to `heads[1]` (not counted), which share keys and values, of the
    tokens `tokens[0]` to `tokens[1]` (not counted)."""
    dim, count = job.head_dim, heads[1] - heads[0]
    num_queries = count * (tokens[1] - tokens[0])
    width = 2 if job.is_bfloat16 else 4
    offset = heads[0] // (job.num_heads // job.num_kv_heads) * layer.room * dim * width
    num_before = job.num_keys - job.num_tokens + 1  # that the first token of all sees
    num_keys = num_before + tokens[1] - 1
    for query in range(num_queries):
        token, head = tokens[0] + query // count, heads[0] + query % count
        place = job.queries + 4 * dim * (job.num_heads * token + head)
        _copy(place, own + 4 * dim * query, dim, job.scale)
    for start in range(0, num_keys, _KEYS_AT_ONCE):
        stop = min(start + _KEYS_AT_ONCE, num_keys)
        keys = layer.keys + offset
        call_scores(job.scores_of, keys, start, stop, own, num_queries, scores, dim, job.score_room)
    for query in range(num_queries):
        weights = carray(floats_at(scores + 4 * job.score_room * query), num_keys)
        num_seen = num_before + tokens[0] + query // count
        softmax(weights[:num_seen])
        for key in range(num_seen, num_keys):
            weights[key] = np.float32(0.0)
    seen = own + 4 * dim * num_queries
    values = layer.values + offset
    call_sums(job.sums_of, values, num_keys, scores, num_queries, seen, dim, job.score_room)
    for query in range(num_queries):
        token, head = tokens[0] + query // count, heads[0] + query % count
        place = job.seen + 4 * dim * (job.num_heads * token + head)
        _copy(seen + 4 * dim * query, place, dim, np.float32(1.0))


@njit
def attend(job: Any, layer: Any, start: Any, stop: Any, scores: Any, own: Any) -> None:
    """What the query heads `start` to `stop` (not counted) of all new tokens have seen. `scores`
    and `own` are the thread's."""
    group = job.num_heads // job.num_kv_heads
    while start < stop:
        last = min(stop, (start // group + 1) * group)
        for token in range(0, job.num_tokens, TOKENS_AT_ONCE):
            end = min(token + TOKENS_AT_ONCE, job.num_tokens)
            _attend(job, layer, (start, last), (token, end), scores, own)
        start = last
