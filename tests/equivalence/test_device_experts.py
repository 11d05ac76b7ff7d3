"""Experts in a form that a graph can hold, against transformers' own loop over them."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from chatcache.backends.local.model import device_experts
from chatcache.backends.local.model.device_experts import all_experts
from tests.equivalence.families import family_model


def _experts(family: str) -> Any:
    model = family_model(family)
    return next(m for m in model.modules() if type(m).__name__.endswith("Experts"))


@pytest.mark.parametrize("family", ["gpt_oss", "granitemoe", "mixtral", "qwen3_moe"])
@pytest.mark.parametrize(("num_tokens", "part_numbers"), [(1, 1 << 25), (2, 1), (40, 9000)])
def test_they_say_what_the_loop_says(
    family: str, num_tokens: int, part_numbers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device_experts, "_PART_NUMBERS", part_numbers)
    module = _experts(family)
    generator = torch.Generator().manual_seed(num_tokens)
    hidden = torch.randn((num_tokens, 64), generator=generator)
    scores = torch.rand((num_tokens, module.num_experts), generator=generator)
    shares, chosen = scores.topk(2)
    with torch.inference_mode():
        module.config._experts_implementation = "eager"
        expected = module(hidden, chosen, shares)
        module.config._experts_implementation = device_experts.NAME
        found = module(hidden, chosen, shares)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def test_what_an_expert_makes_of_others_tokens_does_not_matter() -> None:
    module = _experts("mixtral")
    hidden, chosen = torch.randn((40, 64)), torch.tensor([[0, 1]] * 40)
    shares = torch.full((40, 2), 0.5)
    with torch.inference_mode():
        expected = all_experts(module, hidden, chosen, shares)
        module.down_proj[2:] = float("inf")
        assert torch.equal(all_experts(module, hidden, chosen, shares), expected)
