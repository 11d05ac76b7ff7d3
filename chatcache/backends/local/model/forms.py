"""Checkpoints in other forms than the one that transformers loads by itself.

Owns what is done to their config and their tensors before the weights are loaded, and the words for
it. Whether a form is known at all is decided in `loadable`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from chatcache.backends.local.model.bases import tokenizer_home
from chatcache.backends.local.model.families import text_family
from chatcache.backends.local.model.few_bits import unpacked_weights
from chatcache.backends.local.model.files import (
    has_no_index,
    read_header,
    read_object,
    weight_files,
)
from chatcache.backends.local.model.loadable import lacking_packages
from chatcache.backends.local.model.quantization import Quantization, quantization_of
from chatcache.errors import ModelLoadError
from chatcache.formatting import model_name

# Where the part for text lies in a model that also sees, as any version of transformers wrote it.
_TEXT_NAMES = {
    r"^(model\.)?(language_model|text_model)\.lm_head\.": "lm_head.",
    r"^(model\.)?(language_model|text_model)\.(model\.)?": "model.",
}
# What other programs leave in front of the names when they save the model that they had wrapped.
_WRAPPERS = r"^(base_model\.model\.|module\.|_orig_mod\.|_forward_module\.)+"


@dataclass(frozen=True, slots=True)
class Form:
    """What a checkpoint is, and how its weights become ordinary ones.

    `config` describes what is loaded. `is_unpacked`: the weights are unpacked here. `key_mapping`:
    other names for the tensors in the files, by regular expressions."""

    config: Any
    quantization: Quantization | None = None
    is_unpacked: bool = False
    key_mapping: Mapping[str, str] | None = None
    is_text_part: bool = False
    tokenizer_home: Path | None = None  # None: the tokenizer is the model's own

    def weights(self, path: Path, dtype: torch.dtype | str) -> dict[str, torch.Tensor] | None:
        """The weights to load in place of those in the files; None: these are fine."""
        if isinstance(dtype, str):
            return None
        if not self.is_unpacked or self.quantization is None:
            return _plain_weights(path, dtype) if has_no_index(path) else None
        return unpacked_weights(path, self.quantization, dtype)

    def notes(self, name: str, dtype: torch.dtype | None) -> tuple[str, ...]:
        """What somebody should know of it. `dtype` None: it runs in few bits again."""
        notes = []
        if self.is_text_part:
            notes.append(
                f"{model_name(name)} reads more than text; here its part for text is loaded, and "
                "it sees no images and hears nothing."
            )
        if self.tokenizer_home is not None:
            notes.append(
                f"{model_name(name)} was saved without its tokenizer; it gets that of the model "
                f"that it was trained from, in {self.tokenizer_home}."
            )
        if self.quantization is not None and dtype is not None:
            word = str(dtype).removeprefix("torch.")
            notes.append(
                f"The weights of {model_name(name)} were saved in few bits, "
                f"as {self.quantization.words}, and run in {word}, which takes more memory than "
                "their files. --quantize 4bit keeps them small."
            )
        return tuple(notes)


def form_of(path: Path, config: Any, device: torch.device) -> Form:
    """The form of the checkpoint in `path`; `config` is that of transformers, and may be changed.

    On a GPU the packages that a method was made for compute with few bits, if they are there."""
    written = read_object(path / "config.json")
    quantization = quantization_of(written)
    home = tokenizer_home(path)
    form = Form(config, tokenizer_home=None if home == path else home)
    names = _tensor_names(path)
    if any(re.match(_WRAPPERS, name) for name in names):
        form = replace(form, key_mapping={_WRAPPERS: ""})
    if quantization is not None:
        form = _unpacked(form, quantization, device)
    family = text_family(written)
    return form if family is None else _text_part(form, names, family)


def _tensor_names(path: Path) -> list[str]:
    """Nothing where the weights are not here, or broken: whoever loads them says so."""
    try:
        return [name for file in weight_files(path) for name in read_header(file)]
    except ModelLoadError:
        return []


def _unpacked(form: Form, quantization: Quantization, device: torch.device) -> Form:
    parts = {id(part): part for part in (form.config, form.config.get_text_config())}
    packed = [part for part in parts.values() if getattr(part, "quantization_config", None)]
    if quantization.is_by_transformers:
        for part in packed:
            part.quantization_config = {**quantization.settings, "dequantize": True}
        return replace(form, quantization=quantization)
    is_computed_with = device.type == "cuda" and not lacking_packages(quantization.method)
    if not quantization.is_unpacked_here or is_computed_with:
        return form
    for part in packed:
        del part.quantization_config
    return replace(form, quantization=quantization, is_unpacked=True)


def _text_part(form: Form, names: Sequence[str], family: str) -> Form:
    """The part for text of a model that also sees, as a model of its own."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    whole, text = form.config, form.config.get_text_config()
    if text.model_type != family:
        fields = text.to_dict()
        del fields["model_type"]
        if family == "qwen3_moe":  # what its model that sees does in any case
            fields["norm_topk_prob"] = True
        fields["rope_parameters"] = _plain_rope(fields.get("rope_parameters"))
        text = CONFIG_MAPPING[family](**fields)
    text.architectures = [MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[family]]
    if getattr(text, "dtype", None) is None:
        text.dtype = getattr(whole, "dtype", None)
    if settings := getattr(whole, "quantization_config", None):
        text.quantization_config = settings
    text.tie_word_embeddings = not any(".lm_head." in f".{name}" for name in names)
    return replace(form, config=text, key_mapping=_TEXT_NAMES, is_text_part=True)


def _plain_rope(rope: Any) -> Any:
    """Rotary parameters without what is for images."""
    if not isinstance(rope, dict):
        return rope
    plain = {name: value for name, value in rope.items() if not name.startswith("mrope")}
    return plain | ({"rope_type": "default"} if plain.get("rope_type") == "mrope" else {})


def _plain_weights(path: Path, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """The weights of the model in `path` in `dtype`, as they are named in its files."""
    weights: dict[str, torch.Tensor] = {}
    for file in weight_files(path):
        with safe_open(file, framework="pt") as opened:
            for name in opened.keys():  # noqa: SIM118
                weight = opened.get_tensor(name)
                weights[name] = weight.to(dtype) if weight.is_floating_point() else weight
    return weights
