"""Attention on a GPU: torch's fused kernels without a mask, and grouped matmul over a bucket.

A prompt is read in chunks. The first is plain causal; one behind a prefix has the lower-right
causal bias, which the fused kernels know without a mask in memory. Query heads that share a KV head
read it where it lies; only where no such kernel is (float32, older cards) are K and V repeated.

A step over a bucket (`run/static_step.py`) comes with a mask that tells what of it counts: its
length, and the windows of layers that have such. Its query heads are the rows of one product per KV
head, in parts, so that scores stay small. Soft caps and sinks are computed there, as transformers'
eager code has them; a prompt with such goes through the stock kernels.

Batch one, and nothing else (see `attention.py`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch.backends.cuda import SDPAParams, can_use_flash_attention
from torch.nn.attention.bias import causal_lower_right
from torch.nn.functional import scaled_dot_product_attention
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

NAME = "chatcache_grouped"

_SCORE_NUMBERS = 1 << 25  # made at a time: 64 MB of them in bfloat16


def grouped_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """Attention of `num_new` positions over `num_keys`.

    query `[1, num_heads, num_new, head_dim]`, key and value `[1, num_kv_heads, num_keys,
    head_dim]`; returns `[1, num_new, num_heads, head_dim]`. `attention_mask` None: they are the
    last positions. Else it is bool `[1, 1, num_new, num_keys]`, True where a key is seen, windows
    and all; what lies in the others does not matter as long as the values are finite. Of the
    `options`, `softcap` bounds scores, and `s_aux` `[num_heads]` are scores of a key without value.
    Raises ValueError for a window, a soft cap or sinks without a mask.
    """
    unknown = unknown_options(options) if attention_mask is None else []
    if query.shape[0] != 1 or unknown:
        raise ValueError(f"{NAME} is plain causal attention for one sequence; got {unknown}")
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    if attention_mask is None:
        output = _fused(query, key, value, scale)
    else:
        softcap, sinks = options.get("softcap"), options.get("s_aux")
        is_seen = attention_mask[0, 0]
        output = _over_bucket(query, key, value, scale, is_seen, softcap=softcap, sinks=sinks)
    return output.transpose(1, 2).contiguous(), None


def unknown_options(options: Mapping[str, Any]) -> list[str]:
    """Those of a model's options (window, soft cap, sinks) that plain causal attention has not."""
    return [
        name for name in ("sliding_window", "softcap", "s_aux") if options.get(name) is not None
    ]


def _fused(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float
) -> torch.Tensor:
    num_new, num_keys = query.shape[2], key.shape[2]
    group = query.shape[1] // key.shape[1]
    is_grouped = group > 1 and (num_new == 1 or _has_grouped_kernel(query, key, value))
    if group > 1 and not is_grouped:
        key, value = key.repeat_interleave(group, 1), value.repeat_interleave(group, 1)
    is_behind = 1 < num_new < num_keys
    output: torch.Tensor = scaled_dot_product_attention(
        query,
        key,
        value,
        attn_mask=causal_lower_right(num_new, num_keys) if is_behind else None,
        is_causal=1 < num_new == num_keys,
        scale=scale,
        enable_gqa=is_grouped,
    )
    return output


def _has_grouped_kernel(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> bool:
    """Whether a kernel that needs no mask takes grouped heads as they are. (As `torch` asks it for
    a lower-right bias: with `is_causal` it would say no to a chunk behind a prefix.)"""
    return can_use_flash_attention(SDPAParams(query, key, value, None, 0.0, False, True))


def _over_bucket(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    scale: float,
    is_seen: torch.Tensor,
    *,
    softcap: float | None,
    sinks: torch.Tensor | None,
) -> torch.Tensor:
    """`is_seen` `[num_new, num_keys]`. Parts depend on nothing but the shapes."""
    num_kv_heads, num_keys, head_dim = key.shape[1:]
    num_heads, num_new = query.shape[1:3]
    heads = (query[0] * scale).view(num_kv_heads, num_heads // num_kv_heads, num_new, head_dim)
    hidden = ~is_seen
    size = max(1, _SCORE_NUMBERS // (num_heads * num_keys))
    parts = []
    for start in range(0, num_new, size):
        part = slice(start, start + size)
        parts.append(_few(heads[:, :, part], key[0], value[0], hidden[part], softcap, sinks))
    return torch.cat(parts, dim=1)[None]


def _few(
    heads: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    hidden: torch.Tensor,
    softcap: float | None,
    sinks: torch.Tensor | None,
) -> torch.Tensor:
    """`[num_kv_heads, group, num_new, head_dim]` to `[num_heads, num_new, head_dim]`."""
    num_kv_heads, group, num_new, head_dim = heads.shape
    rows = heads.reshape(num_kv_heads, group * num_new, head_dim)
    scores = torch.bmm(rows, key.transpose(1, 2)).view(num_kv_heads, group, num_new, -1)
    if softcap is not None:
        scores.div_(softcap).tanh_().mul_(softcap)
    scores.masked_fill_(hidden, float("-inf"))
    if sinks is None:
        weights = torch.softmax(scores, dim=-1)
    else:  # one more key, whose value is nothing
        sink = sinks.to(scores.dtype).view(num_kv_heads, group, 1, 1).expand(-1, -1, num_new, -1)
        weights = torch.softmax(torch.cat([scores, sink], dim=-1), dim=-1)[..., :-1]
    weights = weights.reshape(num_kv_heads, group * num_new, -1)
    return torch.bmm(weights, value).view(num_kv_heads * group, num_new, -1)


ALL_ATTENTION_FUNCTIONS.register(NAME, grouped_attention)
