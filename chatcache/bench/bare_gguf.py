"""A GGUF file below its tokenizer, which files that are made for measuring lack: the bench deals in
token ids. As a chat would run its weights, and unpacked, as transformers does.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from chatcache.backends.local.model.gguf.config import config_of
from chatcache.backends.local.model.gguf.derived import GgufModel
from chatcache.backends.local.model.gguf.header import read_gguf
from chatcache.backends.local.model.gguf.known import check_known
from chatcache.backends.local.model.gguf.loading import load_gguf
from chatcache.backends.local.model.gguf.parts import whole_parts
from chatcache.backends.local.model.loader import choose_dtype
from chatcache.backends.local.model.resolve import resolve_model
from chatcache.backends.local.model.tuning import tune
from chatcache.formatting import size
from chatcache.machine import memory_left

_CPU = torch.device("cpu")
_FREE_SHARE = 0.8  # of the memory, that weights which nobody needs may take


def gguf_of(name: str) -> GgufModel | None:
    """The file, or the files, that a model's name means; None for another kind of model.

    Raises NotFoundError, ModelLoadError."""
    path = resolve_model(name, is_offline=True)
    if not isinstance(path, Path) or not path.is_file():
        return None
    model = GgufModel(tuple(read_gguf(part) for part in whole_parts(path)))
    check_known(model.header)
    return model


def load_bare(gguf: GgufModel, dtype: str) -> tuple[Any, str]:
    """The model as a chat would run it, and the name of its attention."""
    config = config_of(gguf.header, gguf.tensors)
    chosen = choose_dtype(dtype, config, _CPU, gguf.num_parameters)
    assert isinstance(chosen, torch.dtype)  # only safetensors bring one of their own
    model, _ = load_gguf(gguf, config, chosen, _CPU)
    return model, tune(model, _CPU).kernels


def why_not_unpacked(gguf: GgufModel, dtype: torch.dtype) -> str:
    """Why the weights should not be unpacked here; "" if they can be."""
    needed = gguf.num_parameters * dtype.itemsize
    free = min((available for _, available in memory_left()), default=needed)
    if needed <= _FREE_SHARE * free:
        return ""
    return f"unpacked, the weights take {size(needed)}, and {size(free)} are free"


def load_unpacked(gguf: GgufModel, dtype: torch.dtype) -> Any:
    """The same weights as transformers runs them: its own modules, nothing packed."""
    config = config_of(gguf.header, gguf.tensors)
    model, _ = load_gguf(gguf, config, dtype, _CPU, is_unpacked=True)
    return model
