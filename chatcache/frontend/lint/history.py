"""The rules for what happened: turns of a chat that missed, by the figures kept with them. Pure.

The figures are exact: how much had been read, how much of it was reused, where it was cut and why.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from chatcache.backends.usage import Figures, Reason
from chatcache.formatting import one_line
from chatcache.frontend.figures import reason_words
from chatcache.frontend.lint.finding import LintFinding, LintRule

APPEND = (
    "`chatcache sessions mode {session} append` (/mode append in the chat) keeps what was read as"
    " it was read."
)
TEMPLATE_RULES: Mapping[Reason, tuple[LintRule, int]] = {
    "template_is_unstable": ("template_changes", 1),
    "template_rewrote_history": ("template_rewrites", 2),
}
TEMPLATE_WORDS: Mapping[LintRule, str] = {
    "template_changes": "the model's template writes something else each time",
    "template_rewrites": "the model's template writes earlier turns otherwise than they were read",
}
# What can be done about a miss that comes again at the same place.
MISS_ADVICE: Mapping[Reason, str] = {
    "system_prompt_changed": "Say what changes in a message, and leave the system prompt as it is.",
    "turn_edited": "Edit as late a turn as you can, or fork there once and go on.",
    "model_changed": "Stay with one model in a chat: K and V of another one are of no use to it.",
    "adapter_changed": "Stay with one adapter in a chat: its K and V are its own.",
    "settings_changed": "Keep dtype, device and quantisation as they are: each has K and V of its"
    " own.",
    "evicted": "Give it more room (cache.ram_budget, cache.disk_budget), or keep it:"
    " `chatcache cache pin {session}`.",
    "expired": "Let it stay longer (cache.ram_ttl, cache.disk_ttl), or keep it:"
    " `chatcache cache pin {session}`.",
    "corrupt": "Look at the disk: `chatcache cache verify` lists damaged segments.",
    "not_cuttable": "This architecture goes on at the ends of messages only; send shorter ones.",
}
MIN_MISSES = 2


@dataclass(frozen=True, slots=True)
class PastTurn:
    """A turn of a path, answered by a model of this machine. `num_read` tokens had been read of
    the path before it: prompt and answer of the turn before."""

    turn: int
    figures: Figures
    num_read: int

    @property
    def num_lost(self) -> int:
        """Tokens that had been read and were computed again."""
        known = min(self.num_read, self.figures.prompt_tokens)
        return max(0, known - self.figures.cached_tokens)


def history_findings(
    turns: Sequence[PastTurn], session: str, *, is_append: bool = False
) -> Iterator[LintFinding]:
    """What kept turns of this chat from reuse more than once. In append mode the template is no
    cause any more."""
    if not is_append:
        yield from _template_findings(turns, session)
    places: dict[tuple[Reason, int], list[PastTurn]] = defaultdict(list)
    for past in turns:
        cache = past.figures.cache
        if cache.reason in MISS_ADVICE and past.num_lost:
            places[cache.reason, cache.diverged_at or 0].append(past)
    for (reason, position), missed in places.items():
        if len(missed) >= MIN_MISSES:
            yield LintFinding(
                rule="repeated_miss",
                place=turn_words(missed),
                what=f"reuse ended at token {position:,} each time: {reason_words(reason)}."
                f" In the last one {one_line(missed[-1].figures.cache.detail)}.",
                advice=MISS_ADVICE[reason].format(session=session),
                found=reason,
                token=position,
                cost_tokens=_mean_lost(missed),
                cost_per="turn",
                is_estimated=False,
            )


def _template_findings(turns: Sequence[PastTurn], session: str) -> Iterator[LintFinding]:
    for reason, (rule, min_turns) in TEMPLATE_RULES.items():
        hit = [past for past in turns if past.figures.cache.reason == reason]
        if len(hit) < min_turns:
            continue
        last = hit[-1].figures.cache
        yield LintFinding(
            rule=rule,
            place=turn_words(hit),
            what=f"{TEMPLATE_WORDS[rule]}. In the last one {one_line(last.detail)}.",
            advice=APPEND.format(session=session),
            found=reason,
            token=last.diverged_at,
            cost_tokens=_mean_lost(hit),
            cost_per="turn",
            is_estimated=False,
        )


def _mean_lost(turns: Sequence[PastTurn]) -> int:
    return round(sum(past.num_lost for past in turns) / len(turns))


def turn_words(turns: Sequence[PastTurn]) -> str:
    """`turn 3`, `turns 2, 3, 5`, `12 turns from 2 to 30`."""
    numbers = [past.turn for past in turns]
    if len(numbers) == 1:
        return f"turn {numbers[0]}"
    if len(numbers) > 6:
        return f"{len(numbers)} turns from {numbers[0]} to {numbers[-1]}"
    return f"turns {', '.join(map(str, numbers))}"
