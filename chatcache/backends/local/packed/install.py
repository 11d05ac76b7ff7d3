"""Puts packed matrices into a model of transformers, in the place of its layers.

Owns which layers those are: what is exactly a linear layer, and embeddings. Whatever else a model
has stays as it is.
"""

from __future__ import annotations

from typing import Any

import torch

from chatcache.backends.local.packed.blocks import BlockMatrix
from chatcache.backends.local.packed.modules import BlockEmbedding, BlockLinear


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
