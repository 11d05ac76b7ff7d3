"""Puts packed matrices into a model of transformers, in the place of its layers.

Owns which layers those are: what is exactly a linear layer, embeddings, and the experts of a
mixture. Whatever else a model has stays as it is.
"""

from __future__ import annotations

from typing import Any

import torch

from chatcache.backends.local.packed.blocks import BlockMatrix
from chatcache.backends.local.packed.mixture import Gating, Mixture, Stack
from chatcache.backends.local.packed.modules import BlockEmbedding, BlockExperts, BlockLinear


def is_matrix(module: torch.nn.Module) -> bool:
    """Whether `replace_with_blocks` knows what it computes."""
    if type(module) is torch.nn.Linear or type(module) is torch.nn.Embedding:
        return True
    return isinstance(module, torch.nn.Embedding) and hasattr(module, "embed_scale")


def replace_with_blocks(
    model: Any, module_name: str, matrix: BlockMatrix, dtype: torch.dtype
) -> None:
    """Put a packed matrix in the place of a layer; what it gives is in `dtype`."""
    module = model.get_submodule(module_name)
    if isinstance(module, torch.nn.Embedding):
        scale = getattr(module, "embed_scale", None)
        factor = 1.0 if scale is None else float(torch.as_tensor(scale).to(dtype))
        model.set_submodule(module_name, BlockEmbedding(matrix, dtype, factor))
    else:
        bias = None if module.bias is None else module.bias.detach().to(dtype)
        model.set_submodule(module_name, BlockLinear(matrix, bias))


def is_experts(module: torch.nn.Module) -> bool:
    """Whether a module holds the matrices of all experts of a layer."""
    weights = [getattr(module, name, None) for name in ("gate_up_proj", "down_proj")]
    return all(isinstance(weight, torch.Tensor) and weight.dim() == 3 for weight in weights)


def gating_of(experts: Any) -> Gating | None:
    """How these experts put their two halves together; None: in a way that is not known here."""
    from transformers.integrations.moe import _default_apply_gate

    if {"alpha", "limit"} <= vars(experts).keys():
        return Gating(float(experts.alpha), float(experts.limit))
    is_plain = type(experts)._apply_gate is _default_apply_gate
    is_silu = type(getattr(experts, "act_fn", None)).__name__ in ("SiLU", "SiLUActivation")
    return Gating() if is_plain and is_silu else None


def replace_with_experts(model: Any, module_name: str, gate: Stack, up: Stack, down: Stack) -> None:
    """Put packed experts in the place of a layer's. Raises ValueError for a kind of experts that
    compute something else."""
    module = model.get_submodule(module_name)
    gating = gating_of(module)
    if gating is None:
        raise ValueError(f"{type(module).__name__} computes in a way that is not known")
    mixture = Mixture(int(module.num_experts), gate, up, down, gating)
    model.set_submodule(module_name, BlockExperts(mixture))


def stacked_rows(experts: Any) -> tuple[int, int] | None:
    """The rows of `gate`, behind which those of `up` lie, and of `down`; None: they lie in another
    way, or compute what is not known here."""
    if experts.is_transposed or not experts.is_concatenated or gating_of(experts) is None:
        return None
    return int(experts.gate_up_proj.shape[1]) // 2, int(experts.down_proj.shape[1])


def replace_with_stacked_experts(
    model: Any, module_name: str, gate_up: BlockMatrix, down: BlockMatrix
) -> None:
    """The same with the two matrices that transformers has."""
    rows = stacked_rows(model.get_submodule(module_name))
    if rows is None:
        raise ValueError(f"{module_name} has its experts in an order that is not known")
    inner, width = rows
    gate, up = (Stack(gate_up, inner, 2 * inner, first) for first in (0, inner))
    replace_with_experts(model, module_name, gate, up, Stack(down, width, width))
