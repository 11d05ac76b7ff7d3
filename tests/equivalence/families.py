"""A tiny model of each family that may be cut at any token.

Windows and chunks are 8 tokens, shorter than the prompts, so that they hide something.
"""

from __future__ import annotations

from typing import Any

import torch

from chatcache.backends.local.model.attention import install
from chatcache.backends.local.model.capturing import takes_static_step
from tests import machines
from tests.models import build_model

VOCAB = 97
WINDOW: dict[str, Any] = {"sliding_window": 8, "num_hidden_layers": 4}
LATENT: dict[str, Any] = {
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 16,
    "v_head_dim": 16,
    "head_dim": 8,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "n_group": 1,
    "topk_group": 1,
    "moe_intermediate_size": 32,
    "first_k_dense_replace": 1,
    "num_key_value_heads": 4,
}
OVERRIDES: dict[str, dict[str, Any]] = {
    "cohere2": WINDOW,
    "deepseek_v2": LATENT,
    "deepseek_v3": LATENT,
    "exaone4": WINDOW,
    "gemma2": WINDOW,
    "gemma3_text": {**WINDOW, "num_hidden_layers": 6},
    "glm": {"pad_token_id": 0},
    "glm4": {"pad_token_id": 0},
    "gpt_oss": {**WINDOW, "num_local_experts": 4, "num_experts_per_tok": 2},
    "llama4_text": {
        "attention_chunk_size": 8,
        "num_hidden_layers": 4,
        "num_local_experts": 2,
        "intermediate_size_mlp": 128,
        "interleave_moe_layer_step": 2,
    },
    "ministral": WINDOW,
    "ministral3": {"sliding_window": None},
    "mistral": WINDOW,
    "mixtral": WINDOW,
    "olmo3": WINDOW,
    "phi3": WINDOW,
    "qwen2": {**WINDOW, "use_sliding_window": True, "max_window_layers": 1},
    "starcoder2": WINDOW,
}
CPU = torch.device("cpu")
CAPTURED = "captured "  # in front of a family: with the steps of a GPU on any machine
THOROUGHLY = ["deepseek_v3", "gemma3_text", "gpt2", "gpt_oss", "llama", "llama4_text", "qwen3"]


def family_model(family: str, **overrides: Any) -> Any:
    """Random, seeded, float32, as the machine of the test runs it; `overrides` go on top of the
    family's own."""
    name = family.removeprefix(CAPTURED)
    fields = {**OVERRIDES.get(name, {}), **overrides}
    model = build_model(name, vocab_size=VOCAB, eos_token_id=0, seed=1, **fields)
    machine, is_captured = machines.current(), name != family
    if is_captured or machine.new_link is not None:
        install(model, torch.device("cuda"))
        can_be_captured = takes_static_step(model, CPU)
        assert can_be_captured or not is_captured
        is_captured = can_be_captured
    model.is_captured_in_tests = is_captured and machine.device == CPU
    return model.to(machine.device)


def without_windows(family: str) -> Any:
    """The model of a family all of whose layers see the whole past."""
    fields = {"sliding_window": None, "use_sliding_window": False, "layer_types": None}
    return family_model(family, **fields)


def is_captured(model: Any) -> bool:
    """By the stand-in: a card has graphs of its own."""
    return bool(getattr(model, "is_captured_in_tests", False))
