"""What a model's config tells of its keys and values: layers and bytes per token, without weights.

Owns the arithmetic of attention shapes. `tests/equivalence` compares it with what tiny models of
each family really keep.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer, LinearAttentionLayer

# Families that keep a latent and the rotary part of the keys instead of K and V per head.
_LATENT_FAMILIES = frozenset({"deepseek_v2", "deepseek_v3", "kimi_linear"})


def layer_kinds(config: Any) -> dict[str, int]:
    """How many layers there are of each kind, for a text config."""
    kinds = getattr(config, "layer_types", None) or getattr(config, "layers_block_type", None)
    if not kinds:
        kinds = ["full_attention"] * int(config.num_hidden_layers)
        if all(_has_state_only(layer) for layer in _layers(config)):
            kinds = ["recurrent"] * len(kinds)
    return dict(Counter(str(kind) for kind in kinds))


def kv_values_per_token(config: Any) -> int:
    """How many numbers of K and V a token takes in all layers together, for a text config."""
    num_layers = sum(isinstance(layer, DynamicLayer) for layer in _layers(config))
    if str(getattr(config, "model_type", "")) in _LATENT_FAMILIES:
        return num_layers * (int(config.kv_lora_rank) + int(config.qk_rope_head_dim))
    num_heads = _declared(config, "num_key_value_heads") or int(config.num_attention_heads)
    head_dim = _declared(config, "head_dim")
    if not head_dim:
        head_dim = int(config.hidden_size) // int(config.num_attention_heads)
    return 2 * num_layers * num_heads * head_dim


def _declared(config: Any, name: str) -> int | None:
    """A field that the config of this family has; any config file may hold more than that."""
    fields = getattr(type(config), "__dataclass_fields__", {})
    aliases = getattr(type(config), "attribute_map", {})
    return getattr(config, name, None) if name in fields or name in aliases else None


def _layers(config: Any) -> list[Any]:
    """The layers that transformers' own cache has for this config."""
    return list(DynamicCache(config=config).layers)


def _has_state_only(layer: Any) -> bool:
    return isinstance(layer, LinearAttentionLayer) and not isinstance(layer, DynamicLayer)
