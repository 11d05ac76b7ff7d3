"""Prefill and decode on a live KV: explicit positions, last logits only, batch of one.

It deals in token ids and tensors; sessions, text and the prefix cache are not known here. A hand
loop instead of `generate()`, because that is silently wrong when the cache covers the whole prompt
and has neither progress nor a stop between chunks.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from transformers.cache_utils import Cache

from chatcache.errors import UnavailableError


class Forward:
    """Calls the model on new ids at the end of a cache."""

    def __init__(self, model: Any, device: torch.device):
        self._model = model
        self._device = device
        accepted = inspect.signature(model.forward).parameters
        self._options: dict[str, Any] = {"use_cache": True}
        if "logits_to_keep" in accepted:
            self._options["logits_to_keep"] = 1
        self._has_positions = "position_ids" in accepted
        self._cache_name = "cache_params" if "cache_params" in accepted else "past_key_values"

    @torch.inference_mode()
    def __call__(self, cache: Cache, token_ids: Sequence[int], start: int) -> torch.Tensor:
        """Append the ids at positions from `start`; returns the logits `[1, vocab]` of the last.

        Raises UnavailableError when the device is out of memory; the cache then holds an unknown
        number of the new tokens and must be truncated to `start`.
        """
        options = dict(self._options)
        if self._has_positions:
            stop = start + len(token_ids)
            options["position_ids"] = torch.arange(start, stop, device=self._device)[None]
        ids = torch.tensor([list(token_ids)], device=self._device)
        with memory_for(start + len(token_ids)):
            output = self._model(input_ids=ids, **{self._cache_name: cache}, **options)
        logits: torch.Tensor = output.logits[:, -1]
        return logits


def chunks(start: int, stop: int, size: int) -> Iterator[tuple[int, int]]:
    """The prefill plan from `start` to `stop`: it depends on nothing but its arguments."""
    for begin in range(start, stop, size):
        yield begin, min(begin + size, stop)


@contextlib.contextmanager
def memory_for(num_tokens: int) -> Iterator[None]:
    """Where memory may run out. Raises UnavailableError then, with what helps."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        is_memory = isinstance(error, (MemoryError, torch.OutOfMemoryError))
        words = str(error)
        if not (is_memory or "not enough memory" in words or "out of memory" in words):
            raise
        raise UnavailableError(
            f"There is not enough memory for a context of {num_tokens:,} tokens.",
            "Shorten the conversation, use a smaller model, or choose --dtype bfloat16.",
        ) from error
