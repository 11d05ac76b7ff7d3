"""A path beside the live one: what a question is computed on, and dropped with it.

Owns where the K and V of the path come from: the live KV where they lie, segments, or computing.
Nothing live is moved, nothing is committed, and no segment counts as used.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass

import torch
from transformers.cache_utils import Cache

from chatcache.backends.local.run.live_context import LiveContext, LivePath, chunks
from chatcache.cache.tensors.behind import BehindKV
from chatcache.token_ids import TokenIds


@dataclass(frozen=True, slots=True)
class Footing:
    """A cache of its own that holds the first tokens of a path, of which `num_reused` were held
    and the others computed."""

    cache: Cache
    num_tokens: int
    num_reused: int


@dataclass(frozen=True, slots=True)
class Beside:
    """`make` gives an empty context on a KV of its own, of the same kind as the `live` one;
    `chunk`: how many tokens are given to the model at once, which a turn may have to wait for."""

    live: LiveContext
    make: Callable[[], LiveContext]
    chunk: Callable[[], int]

    def up_to(self, ids: TokenIds, num_tokens: int) -> Generator[None, None, Footing]:
        """What the last of `ids` are computed behind: its first `num_tokens`."""
        ids = ids[:num_tokens]
        num_live = self.live.num_readable(ids)
        if num_live and num_live >= self.live.prefixes.lookup(ids).num_tokens:
            cache = BehindKV(self.live.path.kv, num_live)
            for start, stop in chunks(num_live, num_tokens, self.chunk()):
                yield
                self.live.path.forward.aside(cache, ids[start:stop], start)
            return Footing(cache, num_tokens, num_live)
        context = self._empty()
        start = self._restore(context.path, ids)
        if start < num_tokens:
            yield
            for _ in context.prefill(ids, start, self.chunk()):
                yield
        return Footing(context.path.kv, num_tokens, start)

    def cold(self, ids: TokenIds) -> Generator[None, None, torch.Tensor]:
        """The logits behind a path of which nothing that is held can be used."""
        logits = torch.empty(0)
        yield
        for step in self._empty().prefill(ids, 0, self.chunk()):
            logits = step.logits
            yield
        return logits

    def _empty(self) -> LiveContext:
        context = self.make()
        context.start_cold()
        return context

    def _restore(self, path: LivePath, ids: TokenIds) -> int:
        """Bring what segments hold of a path; returns how many tokens these are."""
        prefixes = self.live.prefixes
        path.reserve(len(ids))
        with prefixes.acquire(ids, len(ids), is_use=False) as lease:
            tokens = prefixes.restore(lease, path.kv, 0)
            states = prefixes.restore_states(lease, path.kv) if tokens.problem is None else tokens
        if path.kv.has_states and states.problem is not None:
            path.forget()
            return 0
        path.hold(ids, tokens.num_tokens)
        return tokens.num_tokens
