"""The live context of a loaded model, of the kind that its layers need."""

from __future__ import annotations

import time

from chatcache.backends.local.model.cut import CutPolicy
from chatcache.backends.local.model.loader import LoadedModel
from chatcache.backends.local.run.checkpoints import CheckpointContext
from chatcache.backends.local.run.forward import Forward
from chatcache.backends.local.run.live_context import LiveContext
from chatcache.backends.local.run.rope import LengthBoundContext
from chatcache.cache.book.policy import Precision
from chatcache.cache.book.rates import MIN_MEASURED_TOKENS, RateBook
from chatcache.cache.prefix import PrefixCache
from chatcache.cache.tensors.int8 import Int8KV
from chatcache.cache.tensors.live_kv import LiveKV


def build_live(loaded: LoadedModel, cut: CutPolicy, precision: Precision = "exact") -> LiveKV:
    """An empty live KV; with the states of the layers where the model has such.

    `precision`: how its blocks keep K and V."""
    config = loaded.model.config if cut.needs_states else None
    kind = Int8KV if precision == "int8" else LiveKV
    return kind(loaded.num_layers, loaded.dtype, loaded.device, config)


def build_context(
    cut: CutPolicy,
    forward: Forward,
    live: LiveKV,
    prefixes: PrefixCache,
    rates: RateBook,
    chunk: int,
) -> LiveContext:
    """`chunk` is the most tokens of a prompt that are given to the model at once."""
    parts = (forward, live, prefixes, rates, chunk)
    if cut.needs_states:
        return CheckpointContext(*parts, is_stepwise=cut.is_stepwise)
    if cut.max_tokens is not None:
        return LengthBoundContext(*parts, max_tokens=cut.max_tokens)
    return LiveContext(*parts)


def warm_up(cut: CutPolicy, forward: Forward, live: LiveKV, rates: RateBook) -> int:
    """Run the model once; returns the bytes of K and V per token (0: they are not ours).

    Where nothing was measured before, the run is long enough to tell the prefill rate."""
    if not cut.is_cuttable:
        return 0
    forward(live, [0], 0)
    num_bytes = live.num_bytes
    if not rates.is_measured:
        live.truncate(0)
        began = time.perf_counter()
        forward(live, [0] * MIN_MEASURED_TOKENS, 0)
        rates.note_prefill(MIN_MEASURED_TOKENS, time.perf_counter() - began)
    live.truncate(0)
    return num_bytes
