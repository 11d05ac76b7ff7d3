"""Where a restored prefix may be cut, per architecture.

The verdicts are measured: `tests/equivalence` runs a tiny float32 model of each family listed here,
cold against restored. What is not listed is refused: it runs, but every prompt is computed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

ANY_TOKEN_FAMILIES = frozenset(
    {
        "apertus",
        "arcee",
        "bloom",
        "cohere",
        "cohere2",
        "deepseek_v2",
        "deepseek_v3",
        "ernie4_5",
        "exaone4",
        "gemma",
        "gemma2",
        "gemma3_text",
        "glm",
        "glm4",
        "glm4_moe",
        "gpt2",
        "gpt_neox",
        "gpt_oss",
        "granite",
        "granitemoe",
        "helium",
        "hunyuan_v1_dense",
        "llama",
        "llama4_text",
        "minimax_m2",
        "ministral",
        "ministral3",
        "mistral",
        "mixtral",
        "nemotron",
        "olmo",
        "olmo2",
        "olmo3",
        "olmoe",
        "opt",
        "phi",
        "phi3",
        "qwen2",
        "qwen2_moe",
        "qwen3",
        "qwen3_moe",
        "seed_oss",
        "smollm3",
        "stablelm",
        "starcoder2",
    }
)
# Windows and chunks are kept whole: the mask of the model hides what is behind them.
_ATTENTION_KINDS = frozenset({"full_attention", "sliding_attention", "chunked_attention"})
_LENGTH_DEPENDENT_ROPE = frozenset({"dynamic", "longrope"})


@dataclass(frozen=True, slots=True)
class CutPolicy:
    """`kind` "none": nothing is reused, and `detail` says why."""

    kind: Literal["any_token", "none"]
    detail: str

    @property
    def is_cuttable(self) -> bool:
        return self.kind == "any_token"


def cut_policy(config: Any) -> CutPolicy:
    """The policy for a transformers config (the text part of it)."""
    family = str(getattr(config, "model_type", "unknown"))
    if family not in ANY_TOKEN_FAMILIES:
        return CutPolicy("none", f"no measured verdict says where {family} models may be cut")
    others = set(getattr(config, "layer_types", None) or ()) - _ATTENTION_KINDS
    if others:
        return CutPolicy("none", f"this {family} model has {', '.join(sorted(others))} layers")
    if getattr(config, "num_kv_shared_layers", 0):
        return CutPolicy("none", f"layers of this {family} model share their K and V")
    rope = _rope_type(config)
    if rope in _LENGTH_DEPENDENT_ROPE:
        return CutPolicy("none", f"its rotary embedding ({rope}) depends on the prompt's length")
    return CutPolicy("any_token", "attention in all layers: a prefix may be cut after any token")


def _rope_type(config: Any) -> str:
    rope = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    return str(rope.get("rope_type") or rope.get("type") or "default")
