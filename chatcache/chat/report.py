"""An answer's figures as the JSON of `chatcache ask --json`.

Pure functions from results to dictionaries; the only place that knows the names used outside.
Figures that are unknown are None, never invented.
"""

from __future__ import annotations

import json
from typing import Any

from chatcache.backends.base import CacheReport, Timings, TurnPrice, TurnResult, Usage
from chatcache.chat.views import AnswerSaved

JsonObject = dict[str, Any]


def turn_report(saved: AnswerSaved) -> JsonObject:
    """The whole object of `ask --json`."""
    result = saved.result
    return {
        "session_id": saved.session_id or None,
        "session": saved.session_name or None,
        "turn": saved.turn,
        "node_id": saved.node_id,
        "model": saved.model,
        "backend": saved.backend,
        "text": result.text,
        "reasoning": result.reasoning,
        "finish_reason": result.finish_reason,
        **figures(result),
    }


def figures(result: TurnResult) -> JsonObject:
    """The objects `usage`, `timings` and `cache`; of a server with prices also `cost`."""
    price = {} if result.price is None else {"cost": _price(result.price)}
    return {
        "usage": _usage(result.usage),
        "timings": _timings(result.timings),
        "cache": _cache(result.cache),
        **price,
    }


def figures_json(result: TurnResult) -> str:
    """`figures` as compact JSON, as it is stored with the answer."""
    return json.dumps(figures(result), ensure_ascii=False, separators=(",", ":"))


def _usage(usage: Usage) -> JsonObject:
    prompt, completion = usage.prompt_tokens, usage.completion_tokens
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": None if prompt is None or completion is None else prompt + completion,
        "prompt_tokens_details": {
            "cached_tokens": usage.cached_tokens,
            "cached_ram_tokens": usage.cached_ram_tokens,
            "cached_disk_tokens": usage.cached_disk_tokens,
        },
    }


def _timings(timings: Timings) -> JsonObject:
    return {
        "restore_ms": _rounded(timings.restore_ms),
        "prefill_ms": _rounded(timings.prefill_ms),
        "ttft_ms": _rounded(timings.ttft_ms),
        "decode_ms": _rounded(timings.decode_ms),
        "prefill_tokens_per_second": _rounded(timings.prefill_tokens_per_second),
        "decode_tokens_per_second": _rounded(timings.decode_tokens_per_second),
    }


def _cache(cache: CacheReport) -> JsonObject:
    return {
        "outcome": cache.outcome,
        "reason": cache.reason,
        "diverged_at": cache.diverged_at,
        "detail": cache.detail,
        "estimated_cold_ttft_ms": _rounded(cache.estimated_cold_ttft_ms),
        "saved_ms": _rounded(cache.saved_ms),
        "bytes_read": cache.bytes_read,
        "bytes_written": cache.bytes_written,
        "ahead_tokens": cache.ahead_tokens,
        "approximate": cache.is_approximate,
    }


def _price(price: TurnPrice) -> JsonObject:
    return {"currency": price.currency, "total": price.total, "saved": price.saved}


def _rounded(figure: float | None) -> float | None:
    return None if figure is None else round(figure, 3)
