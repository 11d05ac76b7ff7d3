"""Tiny models with random weights as GGUF files, in any type of tensor, and what they stand for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from transformers import AutoConfig, AutoModelForCausalLM

_SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# The name in a file, the family of transformers, and what is special about its config.
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "qwen2": ("qwen2", {}),
    "qwen3": ("qwen3", {}),
    "gemma2": ("gemma2", {"sliding_window": 8, "query_pre_attn_scalar": 64}),
    "gemma3": ("gemma3_text", {"sliding_window": 8, "query_pre_attn_scalar": 64}),
    "phi3": ("phi3", {"pad_token_id": 0}),
    "starcoder2": ("starcoder2", {}),
}
# The same with a mixture of experts: by the family, its name in a file.
_SOME = {"num_experts": 6, "num_local_experts": 6, "num_experts_per_tok": 3}
_YARN = {"rope_type": "yarn", "rope_theta": 150000.0, "factor": 4.0, "truncate": False}
_YARN |= {"beta_fast": 32.0, "beta_slow": 1.0, "original_max_position_embeddings": 128}
MIXTURES: dict[str, tuple[str, dict[str, Any]]] = {
    "mixtral": ("llama", {}),
    "qwen2_moe": ("qwen2moe", {"shared_expert_intermediate_size": 512, "norm_topk_prob": False}),
    "qwen3_moe": ("qwen3moe", {"norm_topk_prob": True}),
    "olmoe": ("olmoe", {"norm_topk_prob": False, "num_key_value_heads": 4}),
    "granitemoe": (
        "granitemoe",
        {
            "embedding_multiplier": 2.0,
            "residual_multiplier": 0.5,
            "logits_scaling": 4.0,
            "attention_multiplier": 0.25,
        },
    ),
    "gpt_oss": ("gpt-oss", {"sliding_window": 8, "rope_parameters": _YARN}),
}
_GRANITE = {
    "embedding_scale": "embedding_multiplier",
    "residual_scale": "residual_multiplier",
    "logit_scale": "logits_scaling",
    "attention.scale": "attention_multiplier",
}
_INTERLEAVED = ("llama", "granitemoe")
_PLUS_ONE = ("gemma2", "gemma3")
# Types that the package reads and does not write: any bytes are weights, once the scales are small.
_SCALES = {"Q2_K": (80, 82), "Q3_K": (108,), "Q4_K": (0, 2), "Q5_K": (0, 2), "Q6_K": (208,)}
_SCALES |= {"IQ4_NL": (0,), "IQ4_XS": (0,), "IQ2_XS": (0,), "IQ3_S": (0,)}


def write_model(
    path: Path, architecture: str, kind: str, *, is_tied: bool = True, **fields: Any
) -> Any:
    """Write a model whose matrices are of the type `kind`; the model with these very weights."""
    family, special = FAMILIES[architecture]
    special = special | {"tie_word_embeddings": is_tied} | fields
    return _write(path, architecture, family, special, kind)


def write_mixture(
    path: Path, family: str, kind: str = "Q8_0", *, experts: tuple[str, ...] = (), **fields: Any
) -> Any:
    """The same for a mixture of experts, whose gate, up and down may be of types of their own."""
    architecture, special = MIXTURES[family]
    special = _SOME | {"moe_intermediate_size": 256} | special | fields
    if family != "gpt_oss":
        special.setdefault("intermediate_size", 256 if "moe" not in family[-3:] else 512)
    return _write(path, architecture, family, special, kind, experts)


def _write(
    path: Path,
    architecture: str,
    family: str,
    fields: dict[str, Any],
    kind: str,
    experts: tuple[str, ...] = (),
) -> Any:
    config = AutoConfig.for_model(
        family,
        **{
            "vocab_size": 256 + len(_SPECIAL) + 1,
            "hidden_size": 256,
            "intermediate_size": 512,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 64,
            "max_position_embeddings": 512,
            "bos_token_id": None,
            "eos_token_id": None,
            **fields,
        },
    )
    torch.manual_seed(7)
    model: Any = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape) * (0.1 if parameter.dim() > 1 else 0.3))
    writer = gguf.GGUFWriter(path, architecture)
    _add_config(writer, config, architecture)
    _add_tokenizer(writer)
    kinds = [gguf.GGMLQuantizationType[name] for name in (experts or (kind,) * 3)]
    _add_experts(writer, model, kinds)
    _add_tensors(writer, model, architecture, gguf.GGMLQuantizationType[kind])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return model


def _add_config(writer: Any, config: Any, architecture: str) -> None:
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(64)
    writer.add_value_length(64)
    writer.add_rope_dimension_count(64)
    if architecture == "starcoder2":
        writer.add_layer_norm_eps(config.norm_epsilon)
    else:
        writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    rope = config.rope_parameters
    writer.add_rope_freq_base(rope.get("full_attention", rope)["rope_theta"])
    scaling = rope.get("full_attention", rope)
    if scaling["rope_type"] == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(scaling["factor"])
    if scaling["rope_type"] == "yarn":
        writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
        writer.add_rope_scaling_factor(scaling["factor"])
        writer.add_rope_scaling_orig_ctx_len(scaling["original_max_position_embeddings"])
    if getattr(config, "sliding_window", None):
        writer.add_sliding_window(config.sliding_window)
    if config.model_type in MIXTURES:
        writer.add_expert_count(config.num_experts)
        writer.add_expert_used_count(config.num_experts_per_tok)
    if architecture in ("qwen2moe", "qwen3moe"):
        writer.add_expert_feed_forward_length(config.moe_intermediate_size)
    if architecture == "qwen2moe":
        writer.add_expert_shared_feed_forward_length(config.shared_expert_intermediate_size)
    if architecture == "gpt-oss":
        writer.add_expert_feed_forward_length(config.intermediate_size)
    if architecture == "granitemoe":
        for key, name in _GRANITE.items():
            writer.add_float32(f"granitemoe.{key}", getattr(config, name))


def _add_tokenizer(writer: Any) -> None:
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    tokens = [*bytes_to_unicode().values(), *_SPECIAL, "ab"]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types([1] * 256 + [3] * len(_SPECIAL) + [1])
    writer.add_token_merges(["a b"])
    writer.add_eos_token_id(256)
    writer.add_chat_template(TEMPLATE)


def _add_tensors(writer: Any, model: Any, architecture: str, kind: Any) -> None:
    """Write each tensor, and put into the model what is read from the file again."""
    names = gguf.get_tensor_name_map(
        {name: number for number, name in gguf.MODEL_ARCH_NAMES.items()}[architecture],
        model.config.num_hidden_layers,
    )
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight" and model.config.tie_word_embeddings:
            continue
        if ".experts." in name:
            continue
        target = _target(name, names)
        order = _order(architecture, target, tensor.shape[0], model.config)
        weights = tensor[order].numpy()
        if weights.shape[0] == 1:
            weights = weights[0]  # a matrix of one row is a vector there
        if weights.ndim == 1:
            if target.endswith("norm.weight") and architecture in _PLUS_ONE:
                weights = weights + 1
            writer.add_tensor(target, weights.astype(np.float32))
            continue
        blocks = _blocks(weights, kind)
        writer.add_tensor(target, blocks, raw_dtype=kind)
        tensor[order] = torch.from_numpy(gguf.dequantize(blocks, kind).astype(np.float32))


def _target(name: str, names: Any) -> str:
    if ".block_sparse_moe.router." in name:
        return f"blk.{name.split('.')[2]}.ffn_gate_inp.weight"
    found = str(names.get_name(name, try_suffixes=(".weight", ".bias")))
    return f"{found}.weight" if found.endswith("sinks") else found


def _add_experts(writer: Any, model: Any, kinds: list[Any]) -> None:
    """The same for the experts' tensors, which the model has joined."""
    for name, module in model.named_modules():
        if not name.endswith(".experts"):
            continue
        block = f"blk.{name.split('.')[2]}"
        for part, kind in zip(("gate", "up", "down"), kinds, strict=True):
            weights, bias = _part(module, part)
            blocks = _blocks(weights.contiguous().flatten(0, 1).numpy(), kind)
            blocks = blocks.reshape(*weights.shape[:2], -1)
            writer.add_tensor(f"{block}.ffn_{part}_exps.weight", blocks, raw_dtype=kind)
            weights.copy_(torch.from_numpy(gguf.dequantize(blocks, kind).astype(np.float32)))
            if bias is not None:
                own = bias.detach().contiguous().numpy().copy()
                writer.add_tensor(f"{block}.ffn_{part}_exps.bias", own)


def _part(module: Any, part: str) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Views of the weights `[num_experts, num_rows, num_columns]` of one part, and of its bias."""
    name = "down_proj" if part == "down" else "gate_up_proj"
    weights, bias = getattr(module, name).data, getattr(module, f"{name}_bias", None)
    is_by_turns = module.is_transposed
    weights = weights.mT if is_by_turns else weights
    if part == "down":
        return weights, bias
    first, half = int(part == "up"), weights.shape[1] // 2
    own = slice(first, None, 2) if is_by_turns else slice(first * half, (first + 1) * half)
    return weights[:, own], None if bias is None else bias.data[:, own]


def _order(architecture: str, target: str, num_rows: int, config: Any) -> torch.Tensor:
    """The rows of a tensor in the order of the file."""
    rows = torch.arange(num_rows)
    is_rotated = ".attn_q." in target or ".attn_k." in target
    if architecture not in _INTERLEAVED or not is_rotated:
        return rows
    is_query = ".attn_q." in target
    heads = config.num_attention_heads if is_query else config.num_key_value_heads
    return rows.view(heads, 2, num_rows // heads // 2).transpose(1, 2).reshape(-1)


def _blocks(weights: np.ndarray[Any, Any], kind: Any) -> np.ndarray[Any, Any]:
    if kind.name not in _SCALES:
        return np.asarray(gguf.quantize(weights, kind))
    size, num_bytes = gguf.GGML_QUANT_SIZES[kind]
    random = np.random.default_rng(weights.size)
    blocks = random.integers(0, 256, (weights.size // size, num_bytes), dtype=np.uint8)
    for place in _SCALES[kind.name]:
        scale = random.uniform(0.0005, 0.001, len(blocks)).astype(np.float16)
        blocks[:, place : place + 2] = scale.view(np.uint8).reshape(-1, 2)
    return blocks.reshape(weights.shape[0], -1)
