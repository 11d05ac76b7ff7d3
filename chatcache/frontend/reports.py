"""Texts that commands show or write: totals, the model, sampling, a chat as Markdown. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from chatcache import formatting as fmt
from chatcache.backends.usage import Figures
from chatcache.frontend import servers

if TYPE_CHECKING:
    from chatcache.backends.base import ModelInfo, TurnPrice

_CODE = re.compile(r"^(`{3,}|~{3,})[^\n]*\n(.*?)^\1[`~]*[ \t]*$", re.DOTALL | re.MULTILINE)


def totals(answers: Sequence[Figures]) -> str:
    """What the cache did over a whole chat."""
    if not answers:
        return "Nothing has been answered yet."
    local = [answer for answer in answers if not answer.is_remote]
    prompt = sum(answer.prompt_tokens for answer in local)
    cached = sum(answer.cached_tokens for answer in local)
    saved = sum(answer.cache.saved_ms or 0.0 for answer in local)
    produced = sum(answer.completion_tokens for answer in answers)
    lines = [f"{fmt.plural(len(answers), 'answer')}, {produced:,} tokens written"]
    if local:
        lines += [
            f"{prompt:,} prompt tokens, {cached:,} of them reused ({fmt.percent(cached, prompt)})",
            f"{fmt.duration(saved)} of prefill saved" if saved > 0 else "no prefill saved yet",
        ]
    remote = [answer for answer in answers if answer.is_remote]
    if prompt := sum(answer.prompt_tokens for answer in remote):
        cached = sum(answer.usage.server_cached_tokens or 0 for answer in remote)
        is_told = any(answer.usage.server_cached_tokens is not None for answer in remote)
        there = f", {cached:,} of them cached there" if is_told else ""
        lines.append(f"{prompt:,} prompt tokens at servers{there}")
    if (price := total_price(remote)) is not None:
        lines.append(f"{servers.price_words(price)} by the prices of the profile")
    return "\n  ".join(lines)


def total_price(answers: Iterable[Figures]) -> TurnPrice | None:
    """The sum over answers; None when none had a price. Of several currencies the first counts."""
    from chatcache.backends.base import TurnPrice  # not for the first paint, which draws a model

    prices = [answer.price for answer in answers if answer.price and answer.price.total is not None]
    if not prices:
        return None
    currency = prices[0].currency
    same = [price for price in prices if price.currency == currency]
    total = sum(price.total or 0.0 for price in same)
    return TurnPrice(currency, total, sum(price.saved or 0.0 for price in same))


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
