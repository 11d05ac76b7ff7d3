"""Choosing the next token, with transformers' own logits processors.

Nothing here touches the cache: K and V of a token do not depend on how it was chosen.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import fields, replace

import torch
from transformers.generation.logits_process import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from chatcache.backends.base import SamplingParams


def with_defaults(params: SamplingParams, defaults: SamplingParams) -> SamplingParams:
    """What the user asked for; for the rest, what the model's generation config says."""
    values = {
        field.name: getattr(defaults, field.name)
        for field in fields(params)
        if getattr(params, field.name) is None
    }
    return replace(params, **values)


# Divided by less than this the scores overflow, and the choice would be the greedy one anyway.
_MIN_TEMPERATURE = 1e-5


class Sampler:
    """Chooses tokens for one turn. Keeps the ids read so far for the repetition penalty.

    `likeliest` tells the largest of some logits where that is known already."""

    def __init__(
        self,
        params: SamplingParams,
        prompt_ids: Sequence[int],
        device: torch.device,
        likeliest: Callable[[torch.Tensor], int | None] = lambda logits: None,
    ):
        if params.temperature is not None and params.temperature < _MIN_TEMPERATURE:
            params = replace(params, temperature=0.0)
        self._is_greedy = not params.temperature
        self._processors = _processors(params)
        self._likeliest = likeliest
        self._generator = torch.Generator(device=device)
        if params.seed is not None:
            self._generator.manual_seed(params.seed)
        else:
            self._generator.seed()
        self._history: torch.Tensor | None = None
        if _has_penalty(params):
            self._history = torch.tensor([list(prompt_ids)], device=device)

    @torch.inference_mode()
    def choose(self, logits: torch.Tensor) -> int:
        """The next id, from logits `[1, vocab]`."""
        if self._is_greedy and not self._processors:
            known = self._likeliest(logits)
            if known is not None:
                return known
        if self._is_greedy:
            chosen = self._scores(logits).argmax(dim=-1)
        else:
            probabilities = self.probabilities(logits)
            chosen = torch.multinomial(probabilities, 1, generator=self._generator)[0]
        if self._history is not None:
            self._history = torch.cat([self._history, chosen.view(1, 1)], dim=1)
        return int(chosen.item())

    @torch.inference_mode()
    def probabilities(self, logits: torch.Tensor) -> torch.Tensor:
        """With which probability each id is the next one, `[1, vocab]`, from logits `[1, vocab]`.
        Changes nothing."""
        scores = self._scores(logits)
        if self._is_greedy:
            return torch.zeros_like(scores).scatter_(1, scores.argmax(dim=-1, keepdim=True), 1.0)
        return torch.softmax(scores, dim=-1)

    def _scores(self, logits: torch.Tensor) -> torch.Tensor:
        """After penalty, temperature and cuts; float32 whatever the model's dtype."""
        scores = logits.float()
        if not self._processors:
            return scores
        ids = self._history if self._history is not None else logits.new_empty((1, 0)).long()
        processed: torch.Tensor = self._processors(ids, scores)  # type: ignore[arg-type]
        return processed


def _has_penalty(params: SamplingParams) -> bool:
    return params.repetition_penalty not in (None, 1.0)


def _processors(params: SamplingParams) -> LogitsProcessorList:
    """In the order of `generate`: the penalty first, then the warpers, temperature before cuts."""
    processors = LogitsProcessorList()
    if params.repetition_penalty is not None and _has_penalty(params):
        processors.append(RepetitionPenaltyLogitsProcessor(params.repetition_penalty))
    if not params.temperature:
        return processors
    if params.temperature != 1.0:
        processors.append(TemperatureLogitsWarper(params.temperature))
    if params.top_k:
        processors.append(TopKLogitsWarper(top_k=params.top_k))
    if params.top_p is not None and params.top_p < 1.0:
        processors.append(TopPLogitsWarper(top_p=params.top_p))
    if params.min_p:
        processors.append(MinPLogitsWarper(min_p=params.min_p))
    return processors
