"""Transformers as its documentation makes it quick on a GPU: a static cache, and a compiled step.

The prompt goes through the model as it is, a token of the answer through `torch.compile` with CUDA
graphs (`mode="reduce-overhead"`). The cache is as long as the longest prompt of the run: another
length would be compiled anew.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from transformers import StaticCache

from chatcache.bench.clock import settled_at
from chatcache.bench.setup import BenchModel

_ROOM_STEP = 256


def compiled(model: Any) -> Callable[..., Any]:
    """What runs one step of the model."""
    step: Callable[..., Any] = torch.compile(model, mode="reduce-overhead", dynamic=False)
    return step


class CompiledTransformers:
    """Nothing survives between two calls. `num_tokens`: of the longest prompt and its answer."""

    def __init__(self, loaded: BenchModel, num_tokens: int):
        self._loaded = loaded
        self._room = -(-num_tokens // _ROOM_STEP) * _ROOM_STEP
        self._cache = StaticCache(config=loaded.model.config, max_cache_len=self._room)
        self._step = compiled(loaded.model)
        self._num_tokens = 0

    @torch.no_grad()
    def cold(self, ids: Sequence[int]) -> float:
        """Seconds from the prompt to its first token, everything computed."""
        began = settled_at(self._loaded.device)
        self._cache.reset()  # type: ignore[no-untyped-call]
        self._num_tokens = 0
        self._append(self._loaded.model, ids)
        return settled_at(self._loaded.device) - began

    @torch.no_grad()
    def decode(self, num_tokens: int) -> float:
        """Seconds per token of greedy decoding behind the last prompt."""
        token = 1
        began = settled_at(self._loaded.device)
        for _ in range(num_tokens):
            torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]
            token = self._append(self._step, [token])
        return (settled_at(self._loaded.device) - began) / num_tokens

    def _append(self, run: Callable[..., Any], ids: Sequence[int]) -> int:
        device, start = self._loaded.device, self._num_tokens
        self._num_tokens += len(ids)
        output = run(
            input_ids=torch.tensor([list(ids)], device=device),
            position_ids=torch.arange(start, self._num_tokens, device=device)[None],
            past_key_values=self._cache,
            use_cache=True,
            logits_to_keep=1,
        )
        return int(output.logits[0, -1].argmax())
