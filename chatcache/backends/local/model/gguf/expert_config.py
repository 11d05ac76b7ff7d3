"""What the config of a mixture of experts says of them, from a GGUF file.

Owns the fields: how many there are and are chosen, and their sizes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from chatcache.backends.local.model.gguf.header import GgufHeader, GgufTensor
from chatcache.errors import ModelLoadError

_SOFTMAX, _SOFTMAX_OF_CHOSEN = 1, 3  # of `expert_gating_func`
_ANOTHER = "Choose another model, or a copy of this one as safetensors."


def expert_fields(
    header: GgufHeader, tensors: Mapping[str, GgufTensor], known: Any
) -> dict[str, Any]:
    """What a config says of experts; `known` is one of the family. The sizes are those of the
    tensors, which older files do not repeat. Raises ModelLoadError."""
    gate = tensors.get("blk.0.ffn_gate_exps.weight")
    used = header.integer(header.of_model("expert_used_count"))
    if gate is None or len(gate.shape) != 3 or not used:
        raise ModelLoadError(
            f"{header.path} says that it has experts, and lacks "
            f"{'their number for a token' if gate else 'blk.0.ffn_gate_exps.weight'}.",
            "Download the file again, or choose a newer copy: old ones keep them in other tensors.",
        )
    if not 0 < used <= gate.shape[0]:
        raise ModelLoadError(
            f"{header.path} has {gate.shape[0]} experts in a layer, and wants {used} for a token.",
            "The file is damaged: download it again, or choose another model.",
        )
    _check_routing(header)
    fields = {
        "num_experts_per_tok": used,
        _name(known, "num_local_experts", "num_experts"): gate.shape[0],
        _name(known, "moe_intermediate_size", "intermediate_size"): gate.shape[1],
    }
    shared = tensors.get("blk.0.ffn_gate_shexp.weight")
    if shared is not None and hasattr(known, "shared_expert_intermediate_size"):
        fields["shared_expert_intermediate_size"] = shared.shape[0]
    if header.architecture == "qwen3moe":
        fields["norm_topk_prob"] = True
    return fields


def _name(known: Any, *names: str) -> str:
    """The first of these fields that configs of the family have."""
    return next(name for name in names if hasattr(known, name))


def _check_routing(header: GgufHeader) -> None:
    """Raises ModelLoadError for what transformers' router would not do."""
    kind = header.integer(header.of_model("expert_gating_func"))
    scale = header.number(header.of_model("expert_weights_scale"))
    groups = header.integer(header.of_model("expert_group_count"))
    if (
        kind not in (None, 0, _SOFTMAX, _SOFTMAX_OF_CHOSEN)
        or scale not in (None, 0.0, 1.0)
        or groups not in (None, 0, 1)
    ):
        raise ModelLoadError(
            f"{header.path} chooses experts in a way that is not read for {header.architecture}.",
            _ANOTHER,
        )
