"""The numbers of a model's architecture that decide what its cache takes."""

from __future__ import annotations

from typing import Any

from chatcache.backends.local.model.loader import LoadedModel
from chatcache.backends.questions import ModelShape
from chatcache.cache.tensors.live_kv import LiveKV


def model_shape(
    loaded: LoadedModel, kv: LiveKV, kv_bytes_per_token: int, prefill_chunk: int = 0
) -> ModelShape:
    """Of K and V what the model really writes, once it has been run on `kv`; the rest from its
    config."""
    config = loaded.model.config.get_text_config()
    num_heads = num_heads_of(config)
    hidden_size = _number(config, "hidden_size", "n_embd", "d_model")
    latent = _number(config, "kv_lora_rank")
    kept = None if latent else next((layer for layer in kv.growing if layer.is_initialized), None)
    num_kv_heads, head_dim = _of_config(config, num_heads)
    if kept is not None:
        keys, values = kept.view("key", 0, 0).shape, kept.view("value", 0, 0).shape
        num_kv_heads, head_dim = keys[1], (keys[3] + values[3]) // 2
    return ModelShape(
        num_layers=loaded.num_layers,
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        hidden_size=hidden_size,
        intermediate_size=_number(config, "intermediate_size", "n_inner", "ffn_dim")
        or 4 * hidden_size,
        vocab_size=_number(config, "vocab_size"),
        num_parameters=loaded.num_parameters,
        bytes_per_number=loaded.dtype.itemsize,
        kv_bytes_per_token=kv_bytes_per_token,
        windows=_windows(config, loaded.num_layers),
        num_states=kv.num_states,
        latent_dim=latent and latent + _number(config, "qk_rope_head_dim"),
        has_tied_embeddings=bool(getattr(config, "tie_word_embeddings", True)),
        prefill_chunk=prefill_chunk,
    )


def num_heads_of(config: Any) -> int:
    """How many heads ask in each layer; 0 where a config does not say."""
    return _number(config, "num_attention_heads", "n_head", "num_heads")


def _of_config(config: Any, num_heads: int) -> tuple[int, int]:
    """KV heads and their width, where what is kept does not show it."""
    num_kv_heads = _number(config, "num_key_value_heads", "num_kv_heads") or num_heads
    if values := _number(config, "v_head_dim"):
        keys = _number(config, "qk_nope_head_dim") + _number(config, "qk_rope_head_dim")
        return num_kv_heads, (keys + values) // 2
    hidden_size = _number(config, "hidden_size", "n_embd", "d_model")
    return num_kv_heads, _number(config, "head_dim") or hidden_size // max(1, num_heads)


def _windows(config: Any, num_layers: int) -> tuple[int, ...]:
    """How many tokens each layer sees; 0: all of them, or it has no attention."""
    window = _number(config, "sliding_window")
    kinds = getattr(config, "layer_types", None)
    if not kinds:
        is_used = getattr(config, "use_sliding_window", True)
        return (window if is_used else 0,) * num_layers
    lengths = {
        "sliding_attention": window,
        "chunked_attention": _number(config, "attention_chunk_size"),
    }
    return tuple(lengths.get(kind, 0) for kind in kinds)


def _number(config: Any, *names: str) -> int:
    """The first of these fields that has a number; 0: none has."""
    found = (getattr(config, name, None) for name in names)
    return next((n for n in found if isinstance(n, int) and not isinstance(n, bool) and n > 0), 0)
