"""The contenders, each reduced to what the rows ask of it: a first token, and steps.

`Chatcache` runs on the same `LiveContext` as a turn does, and on a model tuned like a turn's.
`Transformers` is what a program gets that calls the library as documented: one forward over the
whole prompt, a `DynamicCache`, sdpa.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import DynamicCache

from chatcache.backends.local.context import LiveContext, Reuse
from chatcache.backends.local.generate import Forward
from chatcache.bench.limits import drop_page_cache
from chatcache.bench.setup import BenchModel
from chatcache.cache.kv import LiveKV
from chatcache.cache.prefix import PrefixCache
from chatcache.cache.rates import RateBook
from chatcache.cache.tokens import pack

_BUDGET = 1 << 40
_CHUNK_TOKENS = 512


class Transformers:
    """Plain transformers: nothing survives between two calls."""

    def __init__(self, loaded: BenchModel):
        self._loaded = loaded
        self._cache = DynamicCache(config=loaded.model.config)
        self._position = 0

    @torch.inference_mode()
    def first_token(self, ids: Sequence[int]) -> float:
        """Seconds from the prompt to its first token, everything computed."""
        began = time.perf_counter()
        self._cache = DynamicCache(config=self._loaded.model.config)
        self._append(ids)
        self._position = len(ids)
        return time.perf_counter() - began

    @torch.inference_mode()
    def decode(self, num_tokens: int) -> float:
        """Seconds per token of greedy decoding behind the last prompt."""
        token = 1
        began = time.perf_counter()
        for _ in range(num_tokens):
            token = self._append([token])
        return (time.perf_counter() - began) / num_tokens

    def _append(self, ids: Sequence[int]) -> int:
        output = self._loaded.model(
            input_ids=torch.tensor([list(ids)], device=self._loaded.device),
            past_key_values=self._cache,
            use_cache=True,
            logits_to_keep=1,
        )
        return int(output.logits[0, -1].argmax())


class Chatcache:
    """A cache directory and the live context of one engine on it."""

    def __init__(self, loaded: BenchModel, directory: Path):
        self._loaded = loaded
        self._directory = directory
        self._forward = Forward(loaded.model, loaded.device)
        self.reopen()

    def reopen(self) -> None:
        """As a new process would find it: nothing live, nothing in RAM, segments on disk."""
        self._prefixes = PrefixCache(
            self._directory, "bench", ram_budget=_BUDGET, disk_budget=_BUDGET
        )
        self._prefixes.open({})
        live = LiveKV(self._loaded.num_layers, self._loaded.dtype, self._loaded.device)
        self._context = LiveContext(self._forward, live, self._prefixes, RateBook(), _CHUNK_TOKENS)
        self._ids: list[int] = []

    def close(self) -> None:
        self._prefixes.close()

    def files(self) -> list[Path]:
        return sorted((self._directory / "segments" / "bench").glob("*.safetensors"))

    def drop_page_cache(self) -> None:
        for path in self.files():
            drop_page_cache(path)

    def forget_live(self) -> None:
        """As after switching to another conversation: the segments are in RAM, nothing is live."""
        self._context.forget()

    def first_token(self, ids: Sequence[int], *, is_cold: bool = False) -> tuple[float, Reuse]:
        """Seconds from the prompt to its first token, and what was reused."""
        began = time.perf_counter()
        packed = pack(ids)
        reuse = Reuse(0)
        if is_cold:
            self._context.start_cold()
        else:
            reuse = self._context.reuse(packed, len(ids) - 1)
        for step in self._context.prefill(packed, ids, reuse.num_tokens):
            logits = step.logits
        int(logits.argmax())
        self._ids = list(ids)
        return time.perf_counter() - began, reuse

    def decode(self, num_tokens: int) -> float:
        """Seconds per token of greedy decoding behind the last prompt."""
        token = 1
        began = time.perf_counter()
        for position in range(len(self._ids), len(self._ids) + num_tokens):
            token = int(self._context.step(token, position).argmax())
        return (time.perf_counter() - began) / num_tokens

    def commit(self) -> tuple[float, float, int]:
        """Keep the last prompt as two turns: seconds until in RAM, until on disk, and bytes."""
        began = time.perf_counter()
        ends = [len(self._ids) // 2, len(self._ids)]
        num_bytes = self._context.commit(pack(self._ids), ends)
        in_ram = time.perf_counter() - began
        self._prefixes.drain()
        return in_ram, time.perf_counter() - began, num_bytes
