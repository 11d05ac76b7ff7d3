"""Loads the weights of a safetensors model with transformers, and an adapter into them.

Owns the translation of whatever goes wrong there into an error that names the cause. Never runs
code that came with a model.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from chatcache.backends.local.model.failures import is_out_of_memory, load_error, without_gpu
from chatcache.backends.local.model.forms import Form
from chatcache.backends.local.model.generation import generation_config
from chatcache.backends.local.model.libraries import import_rest
from chatcache.backends.local.model.progress import first_line
from chatcache.errors import ModelLoadError, UnavailableError

log = logging.getLogger(__name__)


# Loads a model with the attention kernel of that name; gives what transformers says of it, too.
Load = Callable[[str], tuple[Any, dict[str, Any]]]


def load_weights(path: Path, dtype: torch.dtype | str, device: torch.device, form: Form) -> Any:
    """The model in a directory, on its device. Raises ModelLoadError or UnavailableError."""
    config = form.config
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_CAUSAL_LM_MAPPING,
        AutoModelForCausalLM,
    )

    def load(kernel: str) -> tuple[Any, dict[str, Any]]:
        weights = form.weights(path, dtype)
        source: Any = AutoModelForCausalLM
        if weights is not None:
            source = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
        loaded: Any = source.from_pretrained(
            path if weights is None else None,
            config=config,
            dtype=dtype,
            attn_implementation=kernel,
            use_safetensors=True,
            local_files_only=True,
            trust_remote_code=False,
            output_loading_info=True,
            state_dict=weights,
            key_mapping=form.key_mapping,
        )
        model, info = loaded
        if weights is not None:
            model.generation_config = generation_config(path, config)
        return model, info

    return load_on_device(path, config, device, load)


def load_on_device(path: Path, config: Any, device: torch.device, load: Load) -> Any:
    """The model on its device; what it lacks of the libraries is imported."""
    try:
        return _try_to_load(path, config, device, load)
    except ModelLoadError:
        if not import_rest():
            raise
    return _try_to_load(path, config, device, load)


def _try_to_load(path: Path, config: Any, device: torch.device, load: Load) -> Any:
    """The model on its device, with torch's own attention kernel where it has one."""
    try:
        try:
            model, info = load("sdpa")
        except ValueError as error:
            if "scaled_dot_product_attention" not in str(error):
                raise
            model, info = load("eager")
        check_complete(path, info)
        model = model.eval().requires_grad_(False).to(device)
    except ModelLoadError:
        raise
    except Exception as error:
        if is_out_of_memory(error):
            raise UnavailableError(
                f"The model in {path} does not fit into the memory of {device}.",
                f"Choose a smaller model, or --dtype bfloat16.{without_gpu(error)}",
            ) from error
        log.exception("loading %s failed", path)
        raise load_error(path, config, error) from error
    return model


def check_complete(path: Path, info: dict[str, Any]) -> None:
    """Refuse a model of which transformers made up a part."""
    missing = sorted(info.get("missing_keys") or ())
    if missing:
        raise ModelLoadError(
            f"The weights in {path} lack {len(missing)} tensors, the first is {missing[0]}.",
            "The files belong to another model or are incomplete; download it again.",
        )


def with_adapter(model: Any, directory: Path | None) -> Any:
    """The model with an adapter, if there is one, merged in: as fast as without."""
    if directory is None:
        return model
    try:
        from peft import PeftModel  # type: ignore[import-not-found,unused-ignore]
    except ImportError as error:
        raise UnavailableError(
            "An adapter needs the package peft, which is not installed.",
            "Run 'pip install peft' in chatcache's environment, or leave out --adapter.",
        ) from error
    try:
        merged = PeftModel.from_pretrained(model, str(directory)).merge_and_unload()
    except Exception as error:
        raise ModelLoadError(
            f"The adapter in {directory} does not fit the model: {first_line(error)}.",
            "Check that it was trained on this model.",
        ) from error
    return merged.eval().requires_grad_(False)
