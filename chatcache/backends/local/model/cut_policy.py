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
# Recurrent or convolution layers: their states stand at one position, a checkpoint.
CHECKPOINT_FAMILIES = frozenset(
    {
        "bamba",
        "falcon_h1",
        "granitemoehybrid",
        "kimi_linear",
        "lfm2",
        "lfm2_moe",
        "mamba2",
        "nemotron_h",
        "olmo_hybrid",
        "qwen3_5_moe_text",
        "qwen3_5_text",
        "qwen3_next",
        "zamba2",
    }
)
# transformers drops the state when several tokens follow one: only single steps are right.
STEPWISE_FAMILIES = frozenset({"falcon_mamba", "jamba", "mamba"})
# Windows and chunks are kept whole: the mask of the model hides what is behind them.
_ATTENTION_KINDS = frozenset({"full_attention", "sliding_attention", "chunked_attention"})
_LENGTH_DEPENDENT_ROPE = frozenset({"dynamic", "longrope"})


@dataclass(frozen=True, slots=True)
class CutPolicy:
    """`kind` "none": nothing is reused, and `detail` says why.

    "turn_boundary": a prefix ends where a checkpoint was taken. `is_stepwise`: behind a checkpoint
    the model reads one token at a time. `max_tokens`: longer prompts are always computed.
    """

    kind: Literal["any_token", "turn_boundary", "none"]
    detail: str
    is_stepwise: bool = False
    max_tokens: int | None = None

    @property
    def is_cuttable(self) -> bool:
        return self.kind != "none"

    @property
    def needs_states(self) -> bool:
        return self.kind == "turn_boundary"


def cut_policy(config: Any) -> CutPolicy:
    """The policy for a transformers config (the text part of it)."""
    family = str(getattr(config, "model_type", "unknown"))
    if family in CHECKPOINT_FAMILIES:
        what = "its recurrent or convolution layers keep a state of the whole past"
        return CutPolicy("turn_boundary", f"{what}: a prefix may be cut where a message ends")
    if family in STEPWISE_FAMILIES:
        what = (
            "a prefix may be cut where a message ends, and what follows it is read token by token"
        )
        return CutPolicy("turn_boundary", f"state-space layers: {what}", is_stepwise=True)
    if family not in ANY_TOKEN_FAMILIES:
        return CutPolicy("none", f"no measured verdict says where {family} models may be cut")
    others = set(getattr(config, "layer_types", None) or ()) - _ATTENTION_KINDS
    if others:
        return CutPolicy("none", f"this {family} model has {', '.join(sorted(others))} layers")
    if getattr(config, "num_kv_shared_layers", 0):
        return CutPolicy("none", f"layers of this {family} model share their K and V")
    return _any_token(config)


def _any_token(config: Any) -> CutPolicy:
    detail = "attention in all layers: a prefix may be cut after any token"
    bounded = rotary_kinds(config) & _LENGTH_DEPENDENT_ROPE
    if not bounded:
        return CutPolicy("any_token", detail)
    lengths = [_original_length(each, config) for each in _parameter_sets(config)]
    known = [length for length in lengths if length is not None]
    if len(known) < len(lengths):
        return CutPolicy("none", "its rotary embedding depends on the prompt's length")
    max_tokens = min(known)
    kind = sorted(bounded)[0]
    if kind == "dynamic":
        max_tokens -= 1  # transformers goes back to the short embedding strictly below it
    detail += f"; its rotary embedding ({kind}) changes behind {max_tokens:,} tokens"
    return CutPolicy("any_token", detail, max_tokens=max_tokens)


def rotary_kinds(config: Any) -> set[str]:
    """The kinds of rotary embeddings of a model, as transformers names them."""
    sets = _parameter_sets(config)
    return {str(each.get("rope_type") or each.get("type") or "default") for each in sets}


def _parameter_sets(config: Any) -> list[Any]:
    """The parameters of a rotary embedding; some models have a set of them per kind of layer."""
    rope = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    sets = [parameters for parameters in rope.values() if isinstance(parameters, dict)]
    return sets if sets and "rope_type" not in rope else [rope]


def _original_length(rope: Any, config: Any) -> int | None:
    length = getattr(config, "max_position_embeddings", None)
    if rope.get("rope_type") == "longrope":
        length = rope.get("original_max_position_embeddings") or length
    return int(length) if length else None
