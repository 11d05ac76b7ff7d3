"""Experts in operations that are the same for every token, so that a graph can hold them.

The stock ways ask the device which experts were chosen, or (`grouped_mm`, on most cards) how many
tokens each of them got. Here few tokens copy the weights of their experts together, and where more
than a few experts are wanted, all of them compute all tokens: the weights are read once then, which
is what takes the time. Modules are those that transformers' own implementations take.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS, batched_mm_experts_forward

NAME = "chatcache_all_experts"

_COPY_PASSES = 3  # weights that are copied together are read, written, and read again
_PART_NUMBERS = 1 << 25  # made at a time, of the states between the two products


def all_experts(
    module: Any, hidden: torch.Tensor, chosen: torch.Tensor, shares: torch.Tensor
) -> torch.Tensor:
    """hidden `[num_tokens, hidden_size]`; of each token the experts `chosen` and their `shares`,
    `[num_tokens, top_k]`. Which way is taken depends on nothing but the shapes."""
    num_experts = int(module.num_experts)
    if _COPY_PASSES * chosen.numel() <= num_experts or len(hidden) == 1:
        output: torch.Tensor = batched_mm_experts_forward(module, hidden, chosen, shares)
        return output
    by_expert = torch.zeros((len(hidden), num_experts), dtype=shares.dtype, device=hidden.device)
    by_expert = by_expert.scatter(1, chosen, shares).t()[..., None]
    first = module.gate_up_proj if module.has_gate else module.up_proj
    size = max(1, _PART_NUMBERS // (len(hidden) * max(first.shape[1:])))
    total = torch.zeros_like(hidden, dtype=torch.float32)
    for start in range(0, num_experts, size):
        part = slice(start, start + size)
        states = _computed(module, hidden, part)
        # What an expert makes of a token that is not its own may be no number.
        share = by_expert[part]
        total += (states * share).masked_fill(share == 0, 0.0).sum(0, dtype=torch.float32)
    return total.to(hidden.dtype)


def _computed(module: Any, hidden: torch.Tensor, part: slice) -> torch.Tensor:
    """What some experts make of all tokens, `[num_experts, num_tokens, hidden_size]`."""
    states = hidden.expand(len(module.down_proj[part]), *hidden.shape)
    if module.has_gate:
        states = module._apply_gate(_linear(module, "gate_up_proj", states, part))
    else:
        states = module.act_fn(_linear(module, "up_proj", states, part))
    states = _linear(module, "down_proj", states, part)
    if module.has_post_expert_norm:
        states = module.post_expert_norm(states)
    return states


def _linear(module: Any, name: str, states: torch.Tensor, part: slice) -> torch.Tensor:
    weights = getattr(module, name)[part]
    states = torch.bmm(states, weights if module.is_transposed else weights.transpose(1, 2))
    if module.has_bias:
        states += getattr(module, f"{name}_bias")[part][:, None]
    return states


ALL_EXPERTS_FUNCTIONS.register(NAME, all_experts)
