"""Texts that commands show or write: totals, the model, sampling, a chat as Markdown. Pure."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from chatcache import formatting as fmt
from chatcache.backends.usage import Figures
from chatcache.frontend import servers

if TYPE_CHECKING:
    from chatcache.backends.base import ModelInfo

_CODE = re.compile(r"^(`{3,}|~{3,})[^\n]*\n(.*?)^\1[`~]*[ \t]*$", re.DOTALL | re.MULTILINE)


def model(info: ModelInfo) -> str:
    if info.backend == "remote":
        return "\n  ".join(servers.model_lines(info))
    lines = [
        f"{_title(info)}: {info.architecture}, {fmt.parameters(info.num_parameters)}"
        f" parameters, {info.num_layers} layers, {dtype_words(info)} on {info.device}",
        f"{fmt.size(info.kv_bytes_per_token)} of KV per token,"
        f" context of {info.max_context_tokens:,} tokens",
        f"reuse: {fmt.one_line(info.cut_detail)}",
    ]
    if info.description:
        lines.insert(0, fmt.one_line(info.description))
    lines += [fmt.one_line(remark) for remark in info.remarks]
    return "\n  ".join(lines)


def _title(info: ModelInfo) -> str:
    return " · ".join(filter(None, (fmt.one_line(info.model), info.quantization)))


def dtype_words(info: ModelInfo) -> str:
    """The dtype that a model runs in, and the one that it was saved in where that is another."""
    if info.quantization:
        return f"{info.quantization}, approximate, computed in {info.dtype}"
    is_same = info.stored_dtype in ("", info.dtype)
    return info.dtype if is_same else f"{info.dtype} (saved in {info.stored_dtype})"


def system_change_cost(figures: Figures | None) -> str:
    """What another system prompt costs, from the figures of the last turn."""
    if figures is None or not figures.prompt_tokens:
        return "It is the first thing the model reads."
    tokens = figures.prompt_tokens + figures.completion_tokens
    text = f"This changes the prefix: {tokens:,} tokens to recompute"
    if figures.timings.prefill_tokens_per_second:
        text += f", about {fmt.duration(1000 * tokens / figures.timings.prefill_tokens_per_second)}"
    return text + ". The old path stays stored."


def last_code_block(text: str) -> str:
    """The content of the last fenced block, or the empty string."""
    blocks = _CODE.findall(text)
    return blocks[-1][1].rstrip("\n") if blocks else ""
