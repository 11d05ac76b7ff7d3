"""The transformers config of a GGUF model, from its metadata.

Owns what the mapping of transformers leaves out: rope scaling, head sizes, biases, and decimals
that the file rounds. What it says of experts is in `expert_config.py`.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any

from chatcache.backends.local.model.gguf.expert_config import expert_fields
from chatcache.backends.local.model.gguf.header import GgufHeader, GgufTensor
from chatcache.backends.local.model.gguf.known import family_of, has_experts
from chatcache.errors import ModelLoadError

# Layers at which a Gemma divides the scores by another number than its head size.
_WIDE_GEMMAS = {"gemma2": 46, "gemma3": 62}
# By what transformers calls the mapping of fields that an architecture has, where that is not its
# own name.
_MAPPINGS = {"qwen2moe": "qwen2", "qwen3moe": "qwen3", "gpt-oss": "qwen2"}
_MAPPINGS |= {"olmoe": "qwen2", "granitemoe": "qwen2"}
_GRANITE = {
    "embedding_scale": "embedding_multiplier",
    "residual_scale": "residual_multiplier",
    "logit_scale": "logits_scaling",
    "attention.scale": "attention_multiplier",
}
_NO_IDS = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
_DTYPES = {"F32": "float32", "F16": "float16"}
_ANOTHER = "Choose another model, or a copy of this one as safetensors."


def config_of(header: GgufHeader, tensors: Sequence[GgufTensor]) -> Any:
    """The config of a model that is known; `tensors` are those of all its files.

    Raises ModelLoadError for what transformers would compute otherwise."""
    from transformers import AutoConfig
    from transformers.integrations.ggml import GGUF_CONFIG_MAPPING

    family, mapping = family_of(header), _MAPPINGS.get(header.architecture, header.architecture)
    by_name = {tensor.name: tensor for tensor in tensors}
    fields: dict[str, Any] = dict(_NO_IDS)
    for group, prefix in ((mapping, header.architecture), ("tokenizer", "tokenizer")):
        for key, name in GGUF_CONFIG_MAPPING[group].items():
            value = _plain(header, f"{prefix}.{key}")
            if name is not None and value is not None:
                fields[name] = value
    _check_heads(header)
    known = AutoConfig.for_model(family)

    def has(name: str) -> bool:
        return hasattr(known, name)

    head_dim = header.integer(header.of_model("attention.key_length"))
    usual = int(fields["hidden_size"]) // int(fields["num_attention_heads"])
    if head_dim is not None and (has("head_dim") or head_dim != usual):
        fields["head_dim"] = head_dim
    fields["vocab_size"] = by_name["token_embd.weight"].shape[0]
    fields["tie_word_embeddings"] = "output.weight" not in by_name
    if has("attention_bias"):
        fields["attention_bias"] = "blk.0.attn_q.bias" in by_name
    if has("use_bias"):
        fields["use_bias"] = "blk.0.attn_q.bias" in by_name
    if has("mlp_bias"):
        fields["mlp_bias"] = "blk.0.ffn_up.bias" in by_name
    if header.architecture in _WIDE_GEMMAS:
        fields |= _gemma(header, fields)
    if header.architecture in ("phi3", "gpt-oss"):
        fields["sliding_window"] = (
            header.integer(header.of_model("attention.sliding_window")) or None
        )
    if header.architecture == "granitemoe":
        found = {name: _plain(header, header.of_model(key)) for key, name in _GRANITE.items()}
        fields |= {name: value for name, value in found.items() if value is not None}
    if has_experts(header):
        fields |= expert_fields(header, by_name, known)
    _add_rope(header, fields, by_name)
    config = AutoConfig.for_model(family, **fields)
    config.architectures = [_class_name(config)]
    # What is quantised was bfloat16 before, for nearly every model there is.
    config.dtype = _DTYPES.get(header.quantization, "bfloat16")
    return config


def _class_name(config: Any) -> str:
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    return str(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[config.model_type])


def _plain(header: GgufHeader, key: str) -> Any:
    """A value as it was before it was written as a float of 32 bits: 1e-06, not 9.99999997e-07."""
    value = header.metadata.get(key)
    if isinstance(value, float):
        return _shortest(value)
    if isinstance(value, (str, int)):
        return value
    array = header.array(key)
    if array is None:
        return None
    distinct = set(array.numbers())
    if len(distinct) == 1:  # one number per layer, all of them equal
        return distinct.pop()
    raise ModelLoadError(
        f"{header.path} has layers of different sizes ({key}), which are not read.", _ANOTHER
    )


def _shortest(value: float) -> float:
    """The shortest decimal that is the same float of 32 bits."""
    (single,) = struct.unpack("<f", struct.pack("<f", value))
    for digits in range(1, 10):
        shorter = float(f"{single:.{digits}g}")
        if struct.pack("<f", shorter) == struct.pack("<f", single):
            return shorter
    return value


def _check_heads(header: GgufHeader) -> None:
    key, value = (
        header.integer(header.of_model(f"attention.{name}_length")) for name in ("key", "value")
    )
    if key is not None and value is not None and key != value:
        raise ModelLoadError(
            f"{header.path} has keys of {key} and values of {value} numbers a head, which are not "
            "read.",
            _ANOTHER,
        )


def _gemma(header: GgufHeader, fields: dict[str, Any]) -> dict[str, Any]:
    """What a file leaves to whoever knows the sizes that were published."""
    heads = int(fields["num_attention_heads"])
    is_wide = header.num_layers == _WIDE_GEMMAS[header.architecture]
    found: dict[str, Any] = {
        "query_pre_attn_scalar": int(fields["hidden_size"]) // heads
        if is_wide
        else fields["head_dim"]
    }
    for key, name in (
        ("attn_logit_softcapping", "attn_logit_softcapping"),
        ("final_logit_softcapping", "final_logit_softcapping"),
    ):
        value = _plain(header, header.of_model(key))
        if value is not None:
            found[name] = value or None
    return found


# rotary positions


def _add_rope(header: GgufHeader, fields: dict[str, Any], by_name: dict[str, GgufTensor]) -> None:
    """Fill in `rope_parameters` and what goes with them."""
    theta = float(fields.pop("rope_theta", 10000.0))
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": theta}
    head_dim = fields.get("head_dim") or fields["hidden_size"] // fields["num_attention_heads"]
    rotated = header.integer(header.of_model("rope.dimension_count"))
    if rotated is not None and rotated != head_dim:
        if header.architecture != "phi3":
            raise ModelLoadError(
                f"{header.path} rotates {rotated} of {head_dim} numbers of a head, which is not "
                "read.",
                _ANOTHER,
            )
        rope["partial_rotary_factor"] = rotated / head_dim
    rope |= _scaling(header, by_name)
    if header.architecture == "gemma3":
        local = {"rope_type": "default", "rope_theta": 10000.0}
        fields["rope_parameters"] = {"full_attention": rope, "sliding_attention": local}
        return
    fields["rope_parameters"] = rope
    if "original_max_position_embeddings" in rope and header.architecture == "phi3":
        fields["original_max_position_embeddings"] = rope["original_max_position_embeddings"]


def _scaling(header: GgufHeader, by_name: dict[str, GgufTensor]) -> dict[str, Any]:
    def field(name: str) -> Any:
        return _plain(header, header.of_model(f"rope.scaling.{name}"))

    if "rope_freqs.weight" in by_name:
        return _llama3(header, by_name["rope_freqs.weight"])
    original = field("original_context_length")
    if "rope_factors_long.weight" in by_name:
        found = {
            "rope_type": "longrope",
            "long_factor": read_floats(header, by_name["rope_factors_long.weight"]),
            "short_factor": read_floats(header, by_name["rope_factors_short.weight"]),
            "original_max_position_embeddings": original,
        }
        attention_factor = field("attn_factor")
        return found | ({} if attention_factor is None else {"attention_factor": attention_factor})
    kind, factor = field("type"), field("factor")
    if kind in (None, "none") or (kind == "linear" and factor in (None, 1)):
        return {}
    if kind == "linear":
        return {"rope_type": "linear", "factor": float(factor)}
    if kind == "yarn" and factor is not None:
        betas = {"beta_fast": field("yarn_beta_fast"), "beta_slow": field("yarn_beta_slow")}
        return {
            "rope_type": "yarn",
            "factor": float(factor),
            "original_max_position_embeddings": original,
            **{name: value for name, value in betas.items() if value is not None},
            **({"truncate": False} if header.architecture == "gpt-oss" else {}),
        }
    raise ModelLoadError(
        f"{header.path} scales its positions by {kind!r:.40}, which is not read.", _ANOTHER
    )


def read_floats(header: GgufHeader, tensor: GgufTensor) -> list[float]:
    """A small vector of the first file. Raises ModelLoadError for one of another type."""
    if tensor.type.name != "F32":
        raise ModelLoadError(f"{header.path} has {tensor.name} in {tensor.type.name}.", _ANOTHER)
    with header.path.open("rb") as file:
        file.seek(tensor.offset)
        raw = file.read(tensor.num_bytes)
    return [_shortest(value) for value in struct.unpack(f"<{tensor.num_weights}f", raw)]


def _llama3(header: GgufHeader, tensor: GgufTensor) -> dict[str, Any]:
    """The scaling of Llama 3.1 and its successors, of which a file has only the outcome: a factor
    per frequency. Raises ModelLoadError for factors that were made in another way."""
    factors = read_floats(header, tensor)
    theta = header.number(header.of_model("rope.freq_base")) or 10000.0
    rope: dict[str, Any] = {
        "rope_type": "llama3",
        "factor": max(factors),
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    if all(abs(factor - 1) < 1e-6 for factor in factors):
        return {}
    expected = llama3_factors(theta, len(factors), rope)
    if any(abs(a / b - 1) > 1e-3 for a, b in zip(factors, expected, strict=True)):
        raise ModelLoadError(
            f"{header.path} scales its positions in a way of its own, which is not read.", _ANOTHER
        )
    return rope


def llama3_factors(theta: float, num_frequencies: int, rope: dict[str, Any]) -> list[float]:
    """By what each frequency is divided (Llama 3.1, 2024)."""
    low = rope["original_max_position_embeddings"] / rope["low_freq_factor"]
    high = rope["original_max_position_embeddings"] / rope["high_freq_factor"]
    factors = []
    for index in range(num_frequencies):
        wavelength = 2 * 3.141592653589793 * theta ** (index / num_frequencies)
        if wavelength < high:
            factors.append(1.0)
        elif wavelength > low:
            factors.append(rope["factor"])
        else:
            smooth = (
                rope["original_max_position_embeddings"] / wavelength - rope["low_freq_factor"]
            ) / (rope["high_freq_factor"] - rope["low_freq_factor"])
            factors.append(1 / ((1 - smooth) / rope["factor"] + smooth))
    return factors
