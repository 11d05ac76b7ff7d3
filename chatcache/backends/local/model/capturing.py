"""Which models take steps that a graph can hold: the same operations on the same memory each time.

Owns the verdict, from the config and from where the weights are. What computes such a step is
`run/static_step.py`; `tests/equivalence` compares it with the ordinary one in every family here.
"""

from __future__ import annotations

from typing import Any

import torch

from chatcache.backends.local.model import attention, device_attention

CAPTURED_FAMILIES = frozenset({"llama", "mistral", "olmo2", "qwen2", "qwen3", "smollm3"})
_STATIC_ROTARY = frozenset({"default", "linear", "llama3", "yarn"})  # the same at any length


def why_eager(config: Any) -> str | None:
    """Why a GPU cannot replay the steps of a model with this config; None: it can."""
    if config.model_type not in CAPTURED_FAMILIES:
        return f"steps of {config.model_type} models are not known to be the same each time"
    if attention.has_window(config):
        return "its attention has windows"
    rotary = getattr(config, "rope_parameters", None) or {}
    kind = rotary.get("rope_type", "default")
    if kind not in _STATIC_ROTARY:
        return f"its rotary embedding ({kind}) depends on the length"
    return None


def takes_static_step(model: Any, device: torch.device) -> bool:
    """Whether the steps of a loaded model can be captured."""
    config = model.config.get_text_config()
    is_ours = config._attn_implementation == device_attention.NAME
    is_whole = all(weight.device == device for weight in model.parameters())
    is_moved = any(hasattr(module, "_hf_hook") for module in model.modules())
    return is_ours and is_whole and not is_moved and why_eager(config) is None
