"""Attention on a CPU over K and V that lie in a growing buffer: grouped and blocked matmul.

torch's `scaled_dot_product_attention` streams long K and V at a fraction of the memory bandwidth
(one query token), and wants a mask as large as the chunk times the history (a chunk behind a
prefix). Here the query heads that share a KV head are the rows of one `mm` against the keys where
they lie. A batched matmul would copy a slice of a larger buffer first; scores of few queries are
made by one all the same, over the whole buffer: what lies behind the keys gives columns that are
cut off. (Values are added up over the keys that count and no others: which bits come out must not
depend on how much room there is.) Scores of a chunk are made block by block, so that they stay in
the cache, and only the last square of a block needs a mask.

It computes plain causal attention, batch one, and nothing else; `install` puts it only into models
without windows, of families that `tests/equivalence` compares with the stock kernel.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from chatcache.backends.local.model import device_attention
from chatcache.backends.local.model.families import TUNED_FAMILIES

NAME = "chatcache_matmul"
_KERNELS = {"cpu": NAME, "cuda": device_attention.NAME}  # elsewhere the stock kernel stays

# Measured (2 cores, bf16): behind fewer keys the stock kernel is as fast or faster, for a chunk and
# for one token.
MIN_KEYS = 512
MIN_KEYS_OF_ONE = 1280
# Scores of so many bytes stay in the cache, and are quicker made for all heads at once.
_BATCH_BYTES = 2_500_000
# A block's scores should stay in the cache; longer blocks are quicker while they do.
_BLOCK_BYTES = 512


def is_tuned(config: Any) -> bool:
    """Whether this is a family whose code is known not to look into what is replaced here."""
    return config.model_type in TUNED_FAMILIES


def install(model: Any, device: torch.device) -> str:
    """Let `model` use this kernel if it is the right one; returns the name of the kernel in use."""
    config = model.config.get_text_config()
    is_known = is_tuned(config) and not has_window(config)
    kernel = _KERNELS.get(device.type)
    if kernel is not None and is_known and config._attn_implementation == "sdpa":
        model.set_attn_implementation(kernel)
    return str(config._attn_implementation)


def has_window(config: Any) -> bool:
    """Whether some layers see a part of the past only."""
    kinds = set(getattr(config, "layer_types", None) or ())
    has_own_kinds = bool(kinds - {"full_attention"})
    return has_own_kinds or (not kinds and bool(getattr(config, "sliding_window", None)))


def matmul_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """Causal attention of the last `num_new` positions over all `num_keys`.

    query `[1, num_heads, num_new, head_dim]`, key and value `[1, num_kv_heads, num_keys,
    head_dim]`; returns `[1, num_new, num_heads, head_dim]`. Raises ValueError for a mask or an
    option (window, soft cap, sinks) that this kernel does not know.
    """
    unknown = device_attention.unknown_options(options)
    if attention_mask is not None or query.shape[0] != 1 or unknown:
        raise ValueError(f"{NAME} is plain causal attention for one sequence; got {unknown}")
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    num_new, num_keys = query.shape[2], key.shape[2]
    if num_keys < (MIN_KEYS_OF_ONE if num_new == 1 else MIN_KEYS):
        return _stock(query, key, value, scale), None
    num_bytes = query.shape[1] * num_new * num_keys * query.itemsize
    if num_new == 1 or num_bytes <= _BATCH_BYTES:
        return _few(query, key, value, scale), None
    return _prefill(query, key, value, scale), None


def _stock(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float
) -> torch.Tensor:
    num_new, num_keys = query.shape[2], key.shape[2]
    if num_new == 1:
        grouped = query.reshape(1, key.shape[1], -1, query.shape[3])
        output = scaled_dot_product_attention(grouped, key, value, scale=scale)
        return output.reshape(1, 1, query.shape[1], -1)
    mask = None
    if num_new < num_keys:
        mask = torch.ones((num_new, num_keys), dtype=torch.bool).tril_(num_keys - num_new)
    repeats = query.shape[1] // key.shape[1]
    if repeats > 1:
        key, value = key.repeat_interleave(repeats, 1), value.repeat_interleave(repeats, 1)
    is_causal = num_new == num_keys
    output = scaled_dot_product_attention(
        query, key, value, attn_mask=mask, is_causal=is_causal, scale=scale
    )
    return output.transpose(1, 2).contiguous()


def _few(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float) -> torch.Tensor:
    """One query token or a few: `[group * num_new, head_dim] @ [head_dim, num_keys]` per KV head,
    all heads in one product; nothing is copied."""
    num_kv_heads, num_keys, head_dim = key.shape[1:]
    num_new = query.shape[2]
    group = query.shape[1] // num_kv_heads
    rows = (query * scale).reshape(num_kv_heads, group * num_new, head_dim)
    scores = torch.bmm(rows, _whole(key).transpose(1, 2))[:, :, :num_keys]
    if num_new > 1:
        last = scores.view(num_kv_heads, group, num_new, num_keys)[..., num_keys - num_new :]
        last += query.new_full((num_new, num_new), float("-inf")).triu_(1)
    weights = torch.softmax(scores, dim=-1)
    output = query.new_empty((num_kv_heads, group * num_new, value.shape[3]))
    for head in range(num_kv_heads):
        torch.mm(weights[head], value[0, head], out=output[head])
    by_token = output.view(num_kv_heads * group, num_new, -1).transpose(0, 1)
    return by_token.contiguous()[None]


def _whole(states: torch.Tensor) -> torch.Tensor:
    """The buffer `[num_heads, room, head_dim]` that `[1, num_heads, length, head_dim]` is the
    beginning of; a copy, if it is laid out in another way."""
    num_heads, length, head_dim = states.shape[1:]
    room = states.stride(1) // head_dim
    strides = (room * head_dim, head_dim, 1)
    end = states.storage_offset() + num_heads * room * head_dim
    is_there = end * states.itemsize <= states.untyped_storage().nbytes()
    if room < length or states.stride()[1:] != strides or not is_there:
        return states[0].contiguous()
    return states.as_strided((num_heads, room, head_dim), strides)


def _prefill(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float
) -> torch.Tensor:
    """A chunk behind a prefix, in blocks of queries; keys behind a block are never touched.

    The softmax adds up in float32 whatever the dtype (torch does so), and rounds once.
    """
    num_kv_heads, num_keys, head_dim = key.shape[1:]
    num_new = query.shape[2]
    group = query.shape[1] // num_kv_heads
    heads = (query * scale).reshape(num_kv_heads, group, num_new, head_dim)
    output = query.new_empty((num_new, num_kv_heads, group, value.shape[3]))
    block = min(_BLOCK_BYTES // query.itemsize, num_new)
    future = query.new_full((block, block), float("-inf")).triu_(1)
    for start in range(0, num_new, block):
        stop = min(start + block, num_new)
        size, end = stop - start, num_keys - num_new + stop
        scores = query.new_empty((group * size, end))
        for head in range(num_kv_heads):
            rows = heads[head, :, start:stop].reshape(group * size, head_dim)
            torch.mm(rows, key[0, head, :end].t(), out=scores)
            scores.view(group, size, end)[:, :, end - size :] += future[:size, :size]
            weights = torch.softmax(scores, dim=-1)
            seen = torch.mm(weights, value[0, head, :end]).view(group, size, -1)
            output[start:stop, head] = seen.transpose(0, 1)
    return output.view(1, num_new, num_kv_heads * group, -1)


ALL_ATTENTION_FUNCTIONS.register(NAME, matmul_attention)
