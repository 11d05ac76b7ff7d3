"""What somebody asks who opens the lens: why was this turn quick, what was computed, what would
make it slow. Sentences from the figures of a turn; nothing is asked of anybody. Pure.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from chatcache import formatting as fmt
from chatcache.backends.usage import Figures
from chatcache.frontend import figures as words
from chatcache.frontend import servers


@dataclass(frozen=True, slots=True)
class Asked:
    """A question and its answer. `name` is what the JSON calls it."""

    name: str
    question: str
    answer: str


def asked(turn: int, figures: Figures | None, edits: Mapping[int, int]) -> tuple[Asked, ...]:
    """The answers for a turn. `edits` has, by turn, the tokens that are read again when that turn
    is edited. Of a turn without figures only what would make the next one slow can be said."""
    slow = Asked("slow", "What would make it slow?", _slow(figures, edits))
    if figures is None:
        return (Asked("quick", f"Turn {turn}", "It was not answered to its end."), slow)
    if figures.is_remote:
        return (Asked("quick", f"Turn {turn}", servers.NO_LENS),)
    return (
        Asked("quick", _question(turn, figures), _quick(figures)),
        Asked("computed", "What was computed?", _computed(figures)),
        slow,
    )


def _question(turn: int, figures: Figures) -> str:
    return f"Why was turn {turn} {'quick' if figures.cached_tokens else 'not quicker'}?"


def _quick(figures: Figures) -> str:
    took = f"First token after {fmt.duration(figures.timings.ttft_ms)}"
    cold = figures.cache.estimated_cold_ttft_ms
    if not figures.cached_tokens:
        return f"Nothing was reused: {words.reason_words(figures.cache.reason)}. {took}."
    source = " and ".join(
        f"{tokens:,} from {tier}"
        for tier, tokens in (
            ("RAM", figures.cached_ram_tokens),
            ("disk", figures.cached_disk_tokens),
        )
        if tokens
    )
    share = fmt.percent(figures.cached_tokens, figures.prompt_tokens)
    text = (
        f"{figures.cached_tokens:,} of its {figures.prompt_tokens:,} prompt tokens ({share}) had"
        f" been read before: their K and V were reused, {source}. {took}"
    )
    if cold is not None:
        about = "about " if figures.cache.is_estimate_measured else "an estimated "
        text += f"; without it {about}{fmt.duration(cold)}"
    return f"{text}."


def _computed(figures: Figures) -> str:
    computed, cut_at = figures.computed_tokens, figures.cache.diverged_at
    text = f"{fmt.plural(computed, 'prompt token')}"
    if cut_at is not None and figures.cached_tokens:
        text += f", those from position {cut_at:,} on"
    if figures.cache.reason == "new_user_turn":
        text += ": your message, and what the template writes around it"
    elif figures.cached_tokens:
        text += f", because: {words.reason_words(figures.cache.reason)}"
    text += f". Then {fmt.plural(figures.completion_tokens, 'token')} of the answer, one by one"
    if (detail := figures.cache.detail) and figures.cache.reason != "new_user_turn":
        text += f". {detail.rstrip('.')}"
    return f"{text}."


def _slow(figures: Figures | None, edits: Mapping[int, int]) -> str:
    """What a change costs, from the rate at which this turn would have been read without reuse."""
    per_token = _ms_per_token(figures)
    whole = max(edits.values(), default=0)
    text = "Whatever changes the beginning, because K and V depend on all that stands before: "
    text += f"another system prompt or another model reads all {whole:,} tokens again"
    text += _cost(whole, per_token)
    turns = sorted(edits)
    if len(turns) > 1:
        edited = turns[len(turns) // 2]
        text += f"; an edit of turn {edited} reads {edits[edited]:,}"
        text += _cost(edits[edited], per_token)
    return f"{text}. So does what was given up in RAM and on disk to keep within the budgets."


def _ms_per_token(figures: Figures | None) -> float | None:
    cold = figures.cache.estimated_cold_ttft_ms if figures else None
    if figures is None or cold is None or not figures.prompt_tokens:
        return None
    return cold / figures.prompt_tokens


def _cost(tokens: int, per_token: float | None) -> str:
    return "" if per_token is None else f" (about {fmt.duration(tokens * per_token)})"
