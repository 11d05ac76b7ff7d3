"""Checkpoints in other forms than the one that transformers loads by itself.

Owns what is done to their config and their tensors before the weights are loaded, and the words for
it. Whether a form is known at all is decided in `loadable`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from chatcache.backends.local.model.few_bits import unpacked_weights
from chatcache.backends.local.model.files import read_object
from chatcache.backends.local.model.loadable import lacking_packages
from chatcache.backends.local.model.quantization import Quantization, quantization_of
from chatcache.formatting import model_name


@dataclass(frozen=True, slots=True)
class Form:
    """How the weights of a checkpoint become ordinary ones. `is_unpacked`: here, not by
    transformers."""

    quantization: Quantization | None = None
    is_unpacked: bool = False

    def weights(self, path: Path, dtype: torch.dtype | str) -> dict[str, torch.Tensor] | None:
        """The weights to load in place of those in the files; None: these are fine."""
        if not self.is_unpacked or self.quantization is None or isinstance(dtype, str):
            return None
        return unpacked_weights(path, self.quantization, dtype)

    def notes(self, name: str, dtype: torch.dtype) -> tuple[str, ...]:
        """What somebody should know of it."""
        if self.quantization is None:
            return ()
        word = str(dtype).removeprefix("torch.")
        return (
            f"The weights of {model_name(name)} were saved in few bits "
            f"({self.quantization.words}) and run in {word}, which takes more memory than their "
            "files. --quantize 4bit keeps them small.",
        )


def form_of(path: Path, config: Any, device: torch.device) -> Form:
    """The form of the checkpoint in `path`; `config`, that of transformers, is made to fit it.

    On a GPU the packages that a method was made for compute with few bits, if they are there."""
    quantization = quantization_of(read_object(path / "config.json"))
    if quantization is None:
        return Form()
    if quantization.is_by_transformers:
        for part in _with_settings(config):
            part.quantization_config = {**quantization.settings, "dequantize": True}
        return Form(quantization)
    is_computed_with = device.type == "cuda" and not lacking_packages(quantization.method)
    if not quantization.is_unpacked_here or is_computed_with:
        return Form()
    for part in _with_settings(config):
        del part.quantization_config
    return Form(quantization, is_unpacked=True)


def _with_settings(config: Any) -> list[Any]:
    parts = {id(part): part for part in (config, config.get_text_config())}
    return [part for part in parts.values() if getattr(part, "quantization_config", None)]
