"""Choosing a token from given logits."""

from __future__ import annotations

import pytest
import torch

from chatcache.backends.base import SamplingParams
from chatcache.backends.local.run.sampling import Sampler

CPU = torch.device("cpu")


def logits() -> torch.Tensor:
    return torch.randn((1, 50), generator=torch.Generator().manual_seed(3)) * 8


@pytest.mark.parametrize("temperature", [0.0, 1e-45, 1e-38, 1e-9])
def test_almost_no_temperature_is_the_most_likely_token(temperature: float) -> None:
    sampler = Sampler(SamplingParams(temperature=temperature), [1, 2], CPU)
    assert sampler.choose(logits()) == int(logits().argmax())


def test_the_same_seed_chooses_the_same_tokens() -> None:
    params = SamplingParams(temperature=5.0, top_k=30, top_p=0.95, min_p=0.01, seed=4)
    one, other = (Sampler(params, [1, 2], CPU) for _ in range(2))
    chosen = [one.choose(logits()) for _ in range(20)]
    assert chosen == [other.choose(logits()) for _ in range(20)]
    assert len(set(chosen)) > 1


def test_a_penalty_makes_what_was_there_less_likely() -> None:
    best = int(logits().argmax())
    params = SamplingParams(temperature=0.0, repetition_penalty=100.0)
    sampler = Sampler(params, [best], CPU)
    second = sampler.choose(logits())
    assert second != best
    assert sampler.choose(logits()) not in (best, second)
