"""What somebody asks who opens the lens: why was this turn quick, what was computed, what would
make it slow. Sentences from the figures of a turn; nothing is asked of anybody. Pure.
"""

from __future__ import annotations

from dataclasses import dataclass

from chatcache import formatting as fmt
from chatcache.backends.usage import Figures
from chatcache.frontend import figures as words
from chatcache.frontend import servers


@dataclass(frozen=True, slots=True)
class Explained:
    """A question and its answer. `name` is what the JSON calls it."""

    name: str
    question: str
    answer: str


def asked(turn: int, figures: Figures | None, num_tokens: int) -> tuple[Explained, ...]:
    """The answers for a turn of a chat in which `num_tokens` have been read. Of a turn without
    figures only what would make the next one slow can be said."""
    slow = Explained("slow", "What would be slow?", _slow(figures, num_tokens))
    if figures is None:
        return (Explained("quick", f"Turn {turn}", "It was not answered to its end."), slow)
    if figures.is_remote:
        return (Explained("quick", f"Turn {turn}", servers.NO_LENS),)
    return (
        Explained("quick", _question(turn, figures), _quick(figures)),
        Explained("computed", "What was computed?", _computed(figures)),
        slow,
    )


def _question(turn: int, figures: Figures) -> str:
    if figures.cached_tokens and _is_slower(figures):
        return f"Why was turn {turn} slow?"
    return f"Why was turn {turn} {'quick' if figures.cached_tokens else 'not quicker'}?"


def _is_slower(figures: Figures) -> bool:
    """Than without any reuse: a small model on a busy machine."""
    took, cold = figures.timings.ttft_ms, figures.cache.estimated_cold_ttft_ms
    return took is not None and cold is not None and took > cold


def _quick(figures: Figures) -> str:
    took = f"First token after {fmt.duration(figures.timings.ttft_ms)}"
    cold = figures.cache.estimated_cold_ttft_ms
    if not figures.cached_tokens:
        return f"Nothing was reused: {words.reason_words(figures.cache.reason)}. {took}."
    share = fmt.percent(figures.cached_tokens, figures.prompt_tokens)
    text = (
        f"{figures.cached_tokens:,} of its {figures.prompt_tokens:,} prompt tokens ({share}) had"
        f" been read before, and their K and V were reused from {_sources(figures)}. {took}"
    )
    if cold is None:
        return f"{text}."
    est = "" if figures.cache.is_estimate_measured else " (est.)"
    if _is_slower(figures):
        return (
            f"{text}, where reading everything takes about {fmt.duration(cold)}{est}: so few"
            " tokens are soon computed, and the machine was busy with something else."
        )
    return f"{text}; about {fmt.duration(cold)} without it{est}."


def _sources(figures: Figures) -> str:
    """`RAM`, `disk`, or both with their numbers."""
    ram, disk = figures.cached_ram_tokens, figures.cached_disk_tokens
    if ram and disk:
        return f"RAM ({ram:,}) and disk ({disk:,})"
    return "RAM" if ram else "disk"


def _computed(figures: Figures) -> str:
    computed, cut_at = figures.computed_tokens, figures.cache.diverged_at
    text = fmt.plural(computed, "prompt token")
    if cut_at is not None and figures.cached_tokens:
        text += f" from position {cut_at:,} on"
    if figures.cache.reason == "new_user_turn":
        text += ": your message, and what the template writes around it"
    elif figures.cache.detail:
        text += f". {fmt.capital(figures.cache.detail.rstrip('.'))}"
    return f"{text}. Then {fmt.plural(figures.completion_tokens, 'token')} of answer, one by one."


def _slow(figures: Figures | None, num_tokens: int) -> str:
    """What is read again when the beginning changes, and how long it takes at the rate at which
    this turn would have been read without reuse."""
    if not num_tokens:
        return "Nothing yet: no model has read anything in this chat."
    per_token = _ms_per_token(figures)
    took = "" if per_token is None else f", about {fmt.duration(num_tokens * per_token)}"
    return (
        "Another system prompt or another model: K and V depend on everything before them, so all"
        f" {fmt.plural(num_tokens, 'token')} would be read again{took}. What is given up in RAM and"
        " on disk for want of room, too. A fork or an edit is not: what stands before it is reused."
    )


def _ms_per_token(figures: Figures | None) -> float | None:
    cold = figures.cache.estimated_cold_ttft_ms if figures else None
    if figures is None or cold is None or not figures.prompt_tokens:
        return None
    return cold / figures.prompt_tokens
