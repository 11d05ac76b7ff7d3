"""Where a restored prefix may be cut, per architecture.

The verdicts are measured: `tests/equivalence` runs a tiny float32 model of each family listed here,
cold against restored. What is not listed is refused: it runs, but every prompt is computed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

ANY_TOKEN_FAMILIES = frozenset(
    {
        "gpt2",
        "gpt_neox",
        "granite",
        "llama",
        "mistral",
        "mixtral",
        "olmo",
        "olmo2",
        "phi",
        "phi3",
        "qwen2",
        "qwen2_moe",
        "qwen3",
        "qwen3_moe",
        "smollm3",
        "stablelm",
        "starcoder2",
    }
)
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
    kinds = set(getattr(config, "layer_types", None) or ())
    if kinds - {"full_attention"}:
        return CutPolicy("none", f"this {family} model has {', '.join(sorted(kinds))} layers")
    if getattr(config, "sliding_window", None) and not kinds:
        return CutPolicy("none", f"this {family} model attends through a sliding window")
    rope = _rope_type(config)
    if rope in _LENGTH_DEPENDENT_ROPE:
        return CutPolicy("none", f"its rotary embedding ({rope}) depends on the prompt's length")
    return CutPolicy("any_token", "full attention: a prefix may be cut after any token")


def _rope_type(config: Any) -> str:
    rope = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    return str(rope.get("rope_type") or rope.get("type") or "default")
