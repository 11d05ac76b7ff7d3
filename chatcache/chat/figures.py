"""An answer's figures as the JSON of `chatcache ask --json`, which is also how they are stored.

Owns the names used outside, both ways: what `encode` writes, `decode` reads again; it also reads
what older versions stored. Figures that are unknown are None, never invented.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, cast, get_args

from chatcache.backends.usage import (
    CacheReport,
    Figures,
    FinishReason,
    Outcome,
    Reason,
    Tier,
    TierRun,
    Timings,
    TurnPrice,
    Usage,
)

if TYPE_CHECKING:
    from chatcache.backends.base import TurnResult
    from chatcache.chat.views import AnswerSaved

JsonObject = dict[str, Any]


def figures_of(result: TurnResult) -> Figures:
    return Figures(result.usage, result.timings, result.cache, result.price, result.finish_reason)


def turn_report(saved: AnswerSaved) -> JsonObject:
    """The whole object of `ask --json`."""
    result = saved.result
    return {
        "session_id": saved.session_id or None,
        "session": saved.session_name or None,
        "turn": saved.turn,
        "node_id": saved.node_id,
        "model": saved.model,
        "model_approximate": saved.quantization or None,
        "backend": saved.backend,
        "text": result.text,
        "reasoning": result.reasoning,
        "finish_reason": result.finish_reason,
        **as_objects(figures_of(result)),
    }


def as_objects(figures: Figures) -> JsonObject:
    """The objects `usage`, `timings` and `cache`; of a server with prices also `cost`."""
    price = figures.price
    return {
        "usage": _usage(figures.usage),
        "timings": {name: _rounded(getattr(figures.timings, name)) for name in _TIMINGS},
        "cache": _cache(figures.cache),
        **({} if price is None else {"cost": _price(price)}),
    }


def encode(figures: Figures) -> str:
    """As compact JSON, as it is stored with the answer. The answer's own row says how it ended."""
    return json.dumps(as_objects(figures), ensure_ascii=False, separators=(",", ":"))


def decode(text: str | None, finish_reason: FinishReason | None = None) -> Figures | None:
    """The figures kept with an answer that ended like this; None when there are none."""
    try:
        stored = json.loads(text or "")
    except ValueError:
        return None
    if not isinstance(stored, dict):
        return None
    cost = _part(stored, "cost")
    timings = _part(stored, "timings")
    return Figures(
        usage=_read_usage(_part(stored, "usage")),
        timings=Timings(**{name: _number(timings, name) for name in _TIMINGS}),
        cache=_read_cache(_part(stored, "cache")),
        price=_read_price(cost) if cost else None,
        finish_reason=finish_reason or "stop",
    )


_TIMINGS = (
    "restore_ms",
    "prefill_ms",
    "ttft_ms",
    "decode_ms",
    "prefill_tokens_per_second",
    "decode_tokens_per_second",
)


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


def _read_usage(stored: Mapping[str, Any]) -> Usage:
    cached = _part(stored, "prompt_tokens_details")
    ram, disk = _count(cached, "cached_ram_tokens"), _count(cached, "cached_disk_tokens")
    is_of_server = ram is None or disk is None
    return Usage(
        prompt_tokens=_count(stored, "prompt_tokens"),
        completion_tokens=_count(stored, "completion_tokens"),
        cached_ram_tokens=ram,
        cached_disk_tokens=disk,
        server_cached_tokens=_count(cached, "cached_tokens") if is_of_server else None,
    )


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
        "system_tokens": cache.system_tokens,
        "is_estimate_measured": cache.is_estimate_measured,
        **({} if cache.runs is None else {"runs": [[run.stop, run.tier] for run in cache.runs]}),
    }


def _read_cache(stored: Mapping[str, Any]) -> CacheReport:
    return CacheReport(
        outcome=cast(Outcome, str(stored.get("outcome", "miss"))),
        reason=cast(Reason, str(stored.get("reason", "cold_start"))),
        diverged_at=_count(stored, "diverged_at"),
        detail=str(stored.get("detail") or ""),
        estimated_cold_ttft_ms=_number(stored, "estimated_cold_ttft_ms"),
        saved_ms=_number(stored, "saved_ms"),
        bytes_read=_count(stored, "bytes_read") or 0,
        bytes_written=_count(stored, "bytes_written") or 0,
        is_estimate_measured=bool(stored.get("is_estimate_measured", False)),
        system_tokens=_count(stored, "system_tokens") or 0,
        ahead_tokens=_count(stored, "ahead_tokens") or 0,
        is_approximate=bool(stored.get("approximate", False)),
        runs=_read_runs(stored.get("runs")),
    )


def _read_runs(stored: object) -> tuple[TierRun, ...] | None:
    """None for what was not recorded, and for what nobody can read."""
    if not isinstance(stored, list):
        return None
    runs: list[TierRun] = []
    for pair in stored:
        match pair:
            case [int(stop), str(tier)] if tier in get_args(Tier):
                runs.append(TierRun(stop, cast(Tier, tier)))
            case _:
                return None
    return tuple(runs)


def _price(price: TurnPrice) -> JsonObject:
    return {"currency": price.currency, "total": price.total, "saved": price.saved}


def _rounded(figure: float | None) -> float | None:
    return None if figure is None else round(figure, 3)


def _read_price(stored: Mapping[str, Any]) -> TurnPrice:
    currency = str(stored.get("currency", ""))
    return TurnPrice(currency, _number(stored, "total"), _number(stored, "saved"))


def _part(stored: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    part = stored.get(name)
    return part if isinstance(part, dict) else {}


def _count(stored: Mapping[str, Any], name: str) -> int | None:
    value = stored.get(name)
    return int(value) if isinstance(value, int | float) else None


def _number(stored: Mapping[str, Any], name: str) -> float | None:
    value = stored.get(name)
    return float(value) if isinstance(value, int | float) else None
