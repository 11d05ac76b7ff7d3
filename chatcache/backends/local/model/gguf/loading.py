"""Loads a GGUF model: its matrices as they are in the file, or unpacked.

Owns the making of the model of transformers, and what is said about its weights.
"""

from __future__ import annotations

from typing import Any

import torch

from chatcache.backends.local.model.gguf.derived import GgufModel
from chatcache.backends.local.model.gguf.weights import load_packed
from chatcache.backends.local.model.weights import check_complete, load_on_device


def load_gguf(
    gguf_model: GgufModel,
    config: Any,
    dtype: torch.dtype,
    device: torch.device,
    *,
    is_unpacked: bool = False,
) -> tuple[Any, tuple[str, ...]]:
    """The model on its device, and what somebody should know of its weights. `is_unpacked`: they
    take more memory, and are multiplied as any others.

    Raises ModelLoadError or UnavailableError."""
    header, word = gguf_model.header, str(dtype).removeprefix("torch.")
    remarks: list[str] = []

    def load(kernel: str) -> tuple[Any, dict[str, Any]]:
        model, said = _load_packed(gguf_model, config, dtype, kernel, is_unpacked=is_unpacked)
        remarks.extend(said)
        return model, {}

    model = load_on_device(header.path, config, device, load)
    if is_unpacked:
        remarks.append(
            f"Its weights ({header.quantization}) are unpacked to {word} on {device.type}, and "
            "take more memory than the file."
        )
    elif device.type != "cpu":
        remarks.append(
            f"Its weights ({header.quantization}) stay packed on the GPU, which has no room for "
            "them otherwise."
        )
    return model, tuple(remarks)


def _load_packed(
    gguf_model: GgufModel, config: Any, dtype: torch.dtype, kernel: str, *, is_unpacked: bool
) -> tuple[Any, list[str]]:
    skeleton = _skeleton(config, dtype, kernel)

    def build(state: dict[str, torch.Tensor]) -> Any:
        model, info = _built(skeleton, config, state, dtype, kernel)
        check_complete(gguf_model.header.path, info)
        return model

    return load_packed(gguf_model, build, skeleton, dtype, is_unpacked=is_unpacked)


def _skeleton(config: Any, dtype: torch.dtype, kernel: str) -> Any:
    """The model without weights."""
    from transformers.models.auto.modeling_auto import AutoModelForCausalLM

    auto: Any = AutoModelForCausalLM
    with torch.device("meta"):
        return auto.from_config(config, dtype=dtype, attn_implementation=kernel)


def _built(
    skeleton: Any, config: Any, state: dict[str, torch.Tensor], dtype: torch.dtype, kernel: str
) -> tuple[Any, dict[str, Any]]:
    """The model with these weights, and what transformers says of it."""
    loaded: tuple[Any, dict[str, Any]] = type(skeleton).from_pretrained(
        None,
        config=config,
        state_dict=state,
        dtype=dtype,
        attn_implementation=kernel,
        output_loading_info=True,
    )
    return loaded
