"""The figures of one answer, whether it has just been given or was read from the store.

Owns the words for reasons and costs. Knows nothing of widgets; every number shown comes from here,
and equals the one that `--json` prints.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from chatcache import formatting as fmt
from chatcache.frontend import servers

if TYPE_CHECKING:
    from chatcache.backends.base import CostEstimate, TurnPrice, TurnResult

OUTCOME_SIGNS = {"hit": "⟲", "partial": "◐", "miss": "✗", "off": "○"}
REASON_WORDS = {
    "new_user_turn": "new user turn",
    "cold_start": "cold start",
    "below_minimum": "too short to reuse",
    "system_prompt_changed": "system prompt changed",
    "turn_edited": "turn edited",
    "template_rewrote_history": "template rewrote history",
    "template_is_unstable": "template is unstable",
    "model_changed": "model changed",
    "adapter_changed": "adapter changed",
    "settings_changed": "settings changed",
    "evicted": "evicted",
    "expired": "expired",
    "corrupt": "segment damaged",
    "not_cuttable": "model cannot be cut here",
    "cheaper_to_recompute": "cheaper to recompute",
    "disabled": "cache is off",
    "remote": "remote server",
}
# Reasons that are no loss: nothing could have been reused.
_CALM_REASONS = frozenset({"cold_start", "disabled", "remote", "below_minimum"})
_ENDINGS = {
    "stopped": "stopped, /continue goes on",
    "length": "length limit, /continue goes on",
}


@dataclass(frozen=True, slots=True)
class Figures:
    """What one turn cost. None (of a server's token counts: 0) is what the backend did not say."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_ram_tokens: int = 0
    cached_disk_tokens: int = 0
    system_tokens: int = 0
    outcome: str = "miss"
    reason: str = "cold_start"
    detail: str = ""
    diverged_at: int = 0
    restore_ms: float | None = None
    prefill_ms: float | None = None
    ttft_ms: float | None = None
    decode_tokens_per_second: float | None = None
    prefill_tokens_per_second: float | None = None
    cold_ttft_ms: float | None = None
    saved_ms: float | None = None
    is_cold_measured: bool = False
    bytes_read: int = 0
    bytes_written: int = 0
    ahead_tokens: int = 0
    finish_reason: str = "stop"
    server_cached_tokens: int | None = None
    price: TurnPrice | None = None

    @property
    def is_remote(self) -> bool:
        """Did a server answer? What it reused is its own, and in none of our sums."""
        return self.reason == "remote"

    @property
    def cached_tokens(self) -> int:
        return self.cached_ram_tokens + self.cached_disk_tokens

    @property
    def computed_tokens(self) -> int:
        return self.prompt_tokens - self.cached_tokens

    @property
    def sources(self) -> str:
        """Where the reused tokens came from, in words."""
        tiers = (("RAM", self.cached_ram_tokens), ("disk", self.cached_disk_tokens))
        return " + ".join(name for name, tokens in tiers if tokens)


def from_result(result: TurnResult) -> Figures:
    usage, timings, cache = result.usage, result.timings, result.cache
    return Figures(
        prompt_tokens=usage.prompt_tokens or 0,
        completion_tokens=usage.completion_tokens or 0,
        cached_ram_tokens=usage.cached_ram_tokens or 0,
        cached_disk_tokens=usage.cached_disk_tokens or 0,
        system_tokens=cache.system_tokens,
        outcome=cache.outcome,
        reason=cache.reason,
        detail=cache.detail,
        diverged_at=cache.diverged_at or 0,
        restore_ms=timings.restore_ms,
        prefill_ms=timings.prefill_ms,
        ttft_ms=timings.ttft_ms,
        decode_tokens_per_second=timings.decode_tokens_per_second,
        prefill_tokens_per_second=timings.prefill_tokens_per_second,
        cold_ttft_ms=cache.estimated_cold_ttft_ms,
        saved_ms=cache.saved_ms,
        is_cold_measured=cache.is_estimate_measured,
        bytes_read=cache.bytes_read,
        bytes_written=cache.bytes_written,
        ahead_tokens=cache.ahead_tokens,
        finish_reason=result.finish_reason,
        server_cached_tokens=usage.server_cached_tokens,
        price=result.price,
    )


def from_json(text: str | None, finish_reason: str | None = None) -> Figures | None:
    """The figures kept with an answer, in the shape of `ask --json`; None when there are none."""
    if not text:
        return None
    try:
        stored = json.loads(text)
    except ValueError:
        return None
    if not isinstance(stored, dict):
        return None
    usage, timings, cache = (_part(stored, name) for name in ("usage", "timings", "cache"))
    cached = _part(usage, "prompt_tokens_details")
    is_remote = cache.get("reason") == "remote"
    return Figures(
        prompt_tokens=_int(usage, "prompt_tokens"),
        completion_tokens=_int(usage, "completion_tokens"),
        cached_ram_tokens=_int(cached, "cached_ram_tokens"),
        cached_disk_tokens=_int(cached, "cached_disk_tokens"),
        system_tokens=_int(cache, "system_tokens"),
        outcome=str(cache.get("outcome", "miss")),
        reason=str(cache.get("reason", "cold_start")),
        detail=str(cache.get("detail") or ""),
        diverged_at=_int(cache, "diverged_at"),
        restore_ms=_float(timings, "restore_ms"),
        prefill_ms=_float(timings, "prefill_ms"),
        ttft_ms=_float(timings, "ttft_ms"),
        decode_tokens_per_second=_float(timings, "decode_tokens_per_second"),
        prefill_tokens_per_second=_float(timings, "prefill_tokens_per_second"),
        cold_ttft_ms=_float(cache, "estimated_cold_ttft_ms"),
        saved_ms=_float(cache, "saved_ms"),
        is_cold_measured=bool(cache.get("is_estimate_measured", False)),
        bytes_read=_int(cache, "bytes_read"),
        bytes_written=_int(cache, "bytes_written"),
        ahead_tokens=_int(cache, "ahead_tokens"),
        finish_reason=finish_reason or str(stored.get("finish_reason") or "stop"),
        server_cached_tokens=cached.get("cached_tokens") if is_remote else None,
        price=servers.price_from(_part(stored, "cost")),
    )


def _part(stored: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    part = stored.get(name)
    return part if isinstance(part, dict) else {}


def _int(stored: Mapping[str, Any], name: str) -> int:
    value = stored.get(name)
    return int(value) if isinstance(value, int | float) else 0


def _float(stored: Mapping[str, Any], name: str) -> float | None:
    value = stored.get(name)
    return float(value) if isinstance(value, int | float) else None


def reason_words(reason: str) -> str:
    return REASON_WORDS.get(reason, reason.replace("_", " "))


def is_real_miss(figures: Figures) -> bool:
    """Was something lost that could have been reused?"""
    return figures.outcome == "miss" and figures.reason not in _CALM_REASONS


def sign(figures: Figures) -> str:
    """One character for the outcome; words stand beside it always."""
    if figures.outcome == "miss" and not is_real_miss(figures):
        return "○"
    return OUTCOME_SIGNS.get(figures.outcome, "○")


def footer(figures: Figures) -> str:
    """The one line below an answer."""
    parts = []
    if figures.is_remote:
        parts += servers.reuse_words(figures.prompt_tokens, figures.server_cached_tokens)
    elif figures.cached_tokens:
        parts.append(f"{sign(figures)} {figures.cached_tokens:,} reused")
        parts.append(f"+{figures.computed_tokens:,}")
        if figures.reason != "new_user_turn":
            parts.append(reason_words(figures.reason))
    else:
        is_told = figures.diverged_at > 0 and figures.reason not in _CALM_REASONS
        where = f" at token {figures.diverged_at:,}" if is_told else ""
        parts.append(f"{sign(figures)} {reason_words(figures.reason)}{where}")
        parts.append(f"{figures.computed_tokens:,} computed")
    if figures.ttft_ms is not None:
        parts.append(f"TTFT {fmt.duration(figures.ttft_ms)}")
    tokens = f"{figures.completion_tokens:,} tok"
    if figures.decode_tokens_per_second is not None:
        tokens += f" @ {fmt.rate(figures.decode_tokens_per_second)}/s"
    if figures.completion_tokens or not figures.is_remote:
        parts.append(tokens)
    if figures.price is not None:
        parts.append(servers.price_words(figures.price))
    if ending := _ENDINGS.get(figures.finish_reason):
        parts.append(ending)
    return " · ".join(parts)


def cost(estimate: CostEstimate | None) -> str:
    """What going on from a place costs: `instant (RAM)`, `restore 264 MB · ~0.2 s`."""
    if estimate is None:
        return "cost unknown"
    steps = []
    if estimate.disk_tokens:
        steps.append(f"restore {fmt.size(estimate.disk_bytes)}")
    if estimate.recompute_tokens:
        steps.append(f"recompute {estimate.recompute_tokens:,} tok")
    if not steps:
        return "instant (RAM)" if estimate.ram_tokens else "instant"
    text = " + ".join(steps)
    if estimate.estimated_ms is not None:
        text += f" · ~{_about(estimate.estimated_ms)}"
    return text


def _about(milliseconds: float) -> str:
    """A rough time span: estimates do not deserve three figures."""
    seconds = milliseconds / 1000
    if seconds < 0.095:
        return fmt.duration(milliseconds) if milliseconds >= 1 else "1 ms"
    return f"{seconds:.1f} s" if seconds < 9.95 else fmt.duration(round(seconds) * 1000)
