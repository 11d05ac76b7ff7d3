"""Words for the figures of an answer, whether it has just been given or was read from the store.

Owns the words for reasons and costs. Knows nothing of widgets.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from chatcache import formatting as fmt
from chatcache.backends.usage import DEFAULT_NEW_TOKENS
from chatcache.frontend import servers

if TYPE_CHECKING:
    from chatcache.backends.base import CostEstimate
    from chatcache.backends.usage import Figures

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
ENDINGS = {
    "stopped": "stopped, /continue goes on",
    "length": "length limit, /continue goes on",
    "loop": "stopped: it repeated itself, /continue goes on",
}


def sources(figures: Figures) -> str:
    """Where the reused tokens came from, in words."""
    tiers = (("RAM", figures.cached_ram_tokens), ("disk", figures.cached_disk_tokens))
    return " + ".join(name for name, tokens in tiers if tokens)


def reason_words(reason: str) -> str:
    return REASON_WORDS.get(reason, reason.replace("_", " "))


def is_real_miss(figures: Figures) -> bool:
    """Was something lost that could have been reused?"""
    return figures.cache.outcome == "miss" and figures.cache.reason not in _CALM_REASONS


def sign(figures: Figures) -> str:
    """One character for the outcome; words stand beside it always."""
    if figures.cache.outcome == "miss" and not is_real_miss(figures):
        return "○"
    return OUTCOME_SIGNS.get(figures.cache.outcome, "○")


def footer(figures: Figures) -> str:
    """The one line below an answer."""
    parts = []
    if figures.is_remote:
        parts += servers.reuse_words(figures.prompt_tokens, figures.usage.server_cached_tokens)
    elif figures.cached_tokens:
        parts.append(f"{sign(figures)} {figures.cached_tokens:,} reused")
        parts.append(f"+{figures.computed_tokens:,}")
        if figures.cache.reason != "new_user_turn":
            parts.append(reason_words(figures.cache.reason))
    else:
        cut_at = figures.cache.diverged_at
        is_told = cut_at and figures.cache.reason not in _CALM_REASONS
        where = f" at token {cut_at:,}" if is_told else ""
        parts.append(f"{sign(figures)} {reason_words(figures.cache.reason)}{where}")
        parts.append(f"{figures.computed_tokens:,} computed")
    if figures.timings.ttft_ms is not None:
        parts.append(f"TTFT {fmt.duration(figures.timings.ttft_ms)}")
    tokens = f"{figures.completion_tokens:,} tok"
    if figures.timings.decode_tokens_per_second is not None:
        tokens += f" @ {fmt.rate(figures.timings.decode_tokens_per_second)}/s"
    if figures.completion_tokens or not figures.is_remote:
        parts.append(tokens)
    if figures.price is not None:
        parts.append(servers.price_words(figures.price))
    if ending := ENDINGS.get(figures.finish_reason):
        parts.append(ending)
    return " · ".join(parts)


def ending_warning(figures: Figures) -> str:
    """What somebody who only reads the answer would not see of its end; "" if nothing."""
    if figures.finish_reason == "loop":
        return (
            f"The model repeated itself, and was stopped after {figures.completion_tokens:,} "
            "tokens; another message, or --repetition-penalty 1.1, may help."
        )
    is_default = figures.completion_tokens == DEFAULT_NEW_TOKENS
    if figures.finish_reason == "length" and is_default and not figures.is_remote:
        return (
            f"The answer was cut after {DEFAULT_NEW_TOKENS:,} tokens; --max-new-tokens (or "
            "sampling.max_new_tokens in the settings) allows more."
        )
    return ""


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
