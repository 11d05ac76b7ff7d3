"""How many bytes a model takes in memory, from its files alone: the weights, and K and V.

Owns the counting for a directory of safetensors. Reads headers and the config, no weights, and
imports no torch: an engine asks before it loads, a front end for what it lists.
"""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from chatcache.backends.local.model.families import TUNED_FAMILIES, text_family
from chatcache.backends.local.model.files import count_bytes, read_header, read_object, weight_files
from chatcache.backends.local.model.fit import Needs, WayOut
from chatcache.backends.local.model.quantization import quantization_of
from chatcache.machine import has_fast_bfloat16

SMALL_MODEL_PARAMETERS = 100_000_000  # below this float32 costs little and greedy text is stable
_SIZES = {"float64": 8, "float32": 4, "bfloat16": 2, "float16": 2}
_STORED = {"F64": "float64", "F32": "float32", "BF16": "bfloat16", "F16": "float16"}
# Bytes per weight: scale and minimum per block are in it.
_QUANTIZED = {"8bit": 34 / 32, "4bit": 144 / 256}
_ATTENTION = ("full_attention", "sliding_attention", "chunked_attention", "attention")
_OF_SENSES = re.compile(r"vision|visual|image|video|multi_modal|projector|connector|audio|sound")
# Families whose heads all have K and V of their own.
_ALL_HEADS = frozenset({"bloom", "codegen", "gpt2", "gpt_neo", "gpt_neox", "gptj", "opt"})


def directory_needs(path: Path, dtype: str, device: str = "cpu") -> Needs:
    """What the model in `path` needs of the machine when it is loaded in `dtype` for `device`.

    Weights that were saved in the dtype stay mapped, unless something is made of them. "auto": they
    stay in the few bits that they were saved in. Raises ModelLoadError."""
    config = read_object(path / "config.json")
    text = text_config(config)
    if dtype == "auto":
        per_token = kv_bytes_per_token(text, _SIZES["bfloat16"])
        return Needs(count_bytes(path), 0, per_token, context_tokens(text))
    is_packed = device == "cpu" and dtype == "bfloat16" and text.get("model_type") in TUNED_FAMILIES
    is_copied = is_packed or device == "mps" or _has_experts(text)
    held = mapped = 0
    for stored, num_weights in stored_weights(path, config):
        if stored == dtype and not is_copied:
            mapped += num_weights * _SIZES[dtype]
        else:
            held += num_weights * _SIZES[dtype]
    per_token = kv_bytes_per_token(text, _SIZES[dtype])
    return Needs(held, mapped, per_token, context_tokens(text))


def device_needs(path: Path, dtype: str) -> Needs:
    """What it needs in the memory of a GPU. Raises ModelLoadError."""
    found = directory_needs(path, dtype, "cuda")
    return replace(found, held=found.weights, mapped=0)


def quantized_needs(path: Path, quantize: str, *, is_made: bool = True) -> Needs:
    """What it needs with the weights in 8 or 4 bits, about; until they are made, what making them
    takes as well. Raises ModelLoadError."""
    config = read_object(path / "config.json")
    text = text_config(config)
    count = sum(number for _, number in stored_weights(path, config))
    # Those that are fine as they are stay mapped while they are read.
    is_copied = quantization_of(config) is not None or _has_experts(text)
    held = 0 if is_made or not is_copied else count * _SIZES["bfloat16"]
    per_token = kv_bytes_per_token(text, _SIZES["float32"])
    return Needs(held, int(count * _QUANTIZED[quantize]), per_token, context_tokens(text))


def ways_out(path: Path, dtype: str, *, can_quantize: bool = True) -> list[WayOut]:
    """Smaller ways to load the model in `path`, the most exact first. Raises ModelLoadError."""
    ways = []
    if dtype == "auto":
        return []
    if _SIZES[dtype] > 2:
        ways.append(WayOut("--dtype bfloat16", directory_needs(path, "bfloat16")))
    if can_quantize:
        for name in _QUANTIZED:
            needed = quantized_needs(path, name, is_made=False)
            ways.append(WayOut(f"--quantize {name}", needed))
    return ways


def stored_weights(path: Path, config: Mapping[str, Any]) -> Iterator[tuple[str, int]]:
    """For each tensor the dtype that it was saved in, and how many weights it holds."""
    per_element = _weights_per_element(config)
    is_text_part = text_family(config) is not None
    for file in weight_files(path):
        for name, tensor in read_header(file).items():
            if is_text_part and _OF_SENSES.search(name):
                continue  # it is not loaded
            stored = str(tensor.get("dtype"))
            count = math.prod(tensor["shape"]) * per_element.get(stored, 1)
            yield _STORED.get(stored, stored), count


def count_weights(path: Path) -> int:
    """How many weights the model in `path` has, unpacked. Raises ModelLoadError."""
    return sum(count for _, count in stored_weights(path, read_object(path / "config.json")))


def likely_dtype(path: Path, wanted: str) -> str:
    """The dtype that an engine will choose, as far as files and the machine tell without torch."""
    if wanted != "auto":
        return wanted
    config = read_object(path / "config.json")
    counts: dict[str, int] = {}
    for stored, number in stored_weights(path, config):
        counts[stored] = counts.get(stored, 0) + number
    stored = max(counts, key=lambda name: counts[name], default="float32")
    if stored in ("float32", "float64") or sum(counts.values()) < SMALL_MODEL_PARAMETERS:
        return "float32"
    is_quick = sys.platform == "darwin" or Path("/dev/nvidiactl").exists() or has_fast_bfloat16()
    return "bfloat16" if is_quick else "float32"


def text_config(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The part of a config that is about text."""
    found = config.get("text_config")
    return found if isinstance(found, dict) else config


def context_tokens(text: Mapping[str, Any]) -> int:
    """The longest context that a config names; 0 where it names none."""
    return _number(text, "max_position_embeddings", "n_positions", "max_sequence_length", "n_ctx")


def kv_bytes_per_token(text: Mapping[str, Any], itemsize: int) -> int:
    """Bytes of K and V of one token in all layers with attention; 0 where a config is of another
    kind."""
    heads = _number(text, "num_attention_heads", "n_head", "num_heads")
    hidden = _number(text, "hidden_size", "n_embd", "d_model")
    layers = _number(text, "num_hidden_layers", "n_layer", "num_layers", "n_layers")
    kinds = text.get("layer_types")
    if isinstance(kinds, list):
        layers = sum(kind in _ATTENTION for kind in kinds)
    if not (heads and hidden and layers):
        return 0
    if latent := _number(text, "kv_lora_rank"):
        return itemsize * layers * (latent + _number(text, "qk_rope_head_dim"))
    kv_heads, width = heads, hidden // heads
    if text.get("model_type") not in _ALL_HEADS:  # which ignore these, though they may be there
        kv_heads = _number(text, "num_key_value_heads", "num_kv_heads") or heads
        width = _number(text, "head_dim") or width
    if text.get("multi_query"):
        kv_heads = 1
    return itemsize * 2 * layers * kv_heads * width


def _has_experts(text: Mapping[str, Any]) -> bool:
    """Experts are put together when they are loaded: nothing of them can stay mapped."""
    names = ("num_experts", "num_local_experts", "n_routed_experts")
    return any(_number(text, name) for name in names)


def _weights_per_element(config: Mapping[str, Any]) -> Mapping[str, int]:
    """How many weights an element of each dtype holds in a model that was saved in few bits."""
    found = quantization_of(config)
    if found is None:
        return {}
    if found.method in ("bitsandbytes", "modelopt", "mxfp4"):
        return {"U8": 2}
    return {"I32": 32 // (found.bits or 4), "U32": 32 // (found.bits or 4), "U8": 2}


def _number(config: Mapping[str, Any], *names: str) -> int:
    found = (config.get(name) for name in names)
    return next((n for n in found if isinstance(n, int) and not isinstance(n, bool) and n > 0), 0)
