"""Writes a transformers model as a GGUF file, so that llama.cpp runs the very same weights.

Matrices keep their dtype bit for bit; vectors (norms, biases) become float32, as llama.cpp wants
them. Families of the Llama kind only, without rope scaling: what is not known to give the same
logits is refused (`tests/unit/test_bench_llamacpp.py` compares them). There is no tokenizer in the
file: the bench deals in token ids.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import torch

from chatcache.errors import UnavailableError

# Families by `model_type`. In "llama" the two halves of a rotated head lie interleaved.
FAMILIES = ("llama", "qwen2", "qwen3")
_INTERLEAVED = ("llama",)
_DTYPES = {torch.bfloat16: "BF16", torch.float16: "F16", torch.float32: "F32"}
_FILE_TYPES = {
    torch.bfloat16: "MOSTLY_BF16",
    torch.float16: "MOSTLY_F16",
    torch.float32: "ALL_F32",
}


def write_gguf(model: Any, path: Path) -> None:
    """Raises UnavailableError for a model that is not known to come out right."""
    config = model.config.get_text_config()
    problem = refusal(config)
    if problem is not None:
        raise UnavailableError(f"llama.cpp is left out: {problem}.", "Choose another model.")
    gguf: Any = importlib.import_module("gguf")
    writer = gguf.GGUFWriter(path, config.model_type)
    _add_config(writer, gguf, config, model.dtype)
    names = gguf.get_tensor_name_map(
        gguf.MODEL_ARCH[config.model_type.upper()], config.num_hidden_layers
    )
    is_tied = bool(config.tie_word_embeddings)
    for name, tensor in model.state_dict().items():
        if is_tied and name == "lm_head.weight":
            continue
        target = names.get_name(name, try_suffixes=(".weight", ".bias"))
        if target is None:
            raise UnavailableError(f"llama.cpp has no name for the tensor {name}.", "Leave it out.")
        _add_tensor(writer, gguf, target, _arranged(name, tensor, config))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def refusal(config: Any) -> str | None:
    """Why a model cannot be converted; None when it can."""
    if config.model_type not in FAMILIES:
        return f"the family {config.model_type} is not converted"
    rope = getattr(config, "rope_parameters", None) or {}
    if rope.get("rope_type", "default") != "default":
        return "rope scaling is not converted"
    if getattr(config, "use_sliding_window", False):
        return "sliding windows are not converted"
    return None


def _add_config(writer: Any, gguf: Any, config: Any, dtype: torch.dtype) -> None:
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    rope = getattr(config, "rope_parameters", None) or {}
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    writer.add_rope_dimension_count(head_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(rope.get("rope_theta") or getattr(config, "rope_theta", 10_000.0))
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("none")
    writer.add_file_type(gguf.LlamaFileType[_FILE_TYPES[dtype]])


def _arranged(name: str, tensor: torch.Tensor, config: Any) -> torch.Tensor:
    """The tensor in llama.cpp's order of rows."""
    if config.model_type not in _INTERLEAVED or ".self_attn." not in name:
        return tensor
    is_query = ".q_proj." in name
    if not is_query and ".k_proj." not in name:
        return tensor
    heads = config.num_attention_heads if is_query else config.num_key_value_heads
    halves = tensor.reshape(heads, 2, tensor.shape[0] // heads // 2, *tensor.shape[1:])
    return halves.transpose(1, 2).reshape(tensor.shape)


def _add_tensor(writer: Any, gguf: Any, name: str, tensor: torch.Tensor) -> None:
    if tensor.dim() == 1:
        writer.add_tensor(name, tensor.float().numpy())
        return
    kind = gguf.GGMLQuantizationType[_DTYPES[tensor.dtype]]
    bits = tensor.contiguous()
    if tensor.dtype is not torch.float32:
        bits = bits.view(torch.int16)  # numpy knows no bfloat16; the bits are what counts
    writer.add_tensor(name, bits.numpy(), raw_dtype=kind)
