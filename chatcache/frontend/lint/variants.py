"""The rules for prompts that are variants of one text: they share most of their words, but not the
first ones. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations

from chatcache.formatting import one_line
from chatcache.frontend.lint.finding import (
    CostPer,
    LintFinding,
    LintRule,
    TokenScale,
    excerpt,
    line_and_column,
)
from chatcache.frontend.lint.orders import EarlyDifference, worthwhile_difference
from chatcache.frontend.lint.talks import KnownPrompt, LintMessage
from chatcache.personas import Persona

MAX_PAIRS = 10
DIFFERENCE_CHARACTERS = 24


def difference_finding(
    message: LintMessage, known: Sequence[KnownPrompt], scale: TokenScale
) -> LintFinding | None:
    """That a system prompt shares its words with another one, but not its beginning."""
    found: list[tuple[EarlyDifference, KnownPrompt]] = []
    for prompt in {prompt.text: prompt for prompt in known}.values():
        difference = worthwhile_difference(prompt.text, message.text, scale)
        if difference is not None:
            found.append((difference, prompt))
    if not found:
        return None
    difference, prompt = max(found, key=lambda pair: pair[0].gain)
    here, there = (_words_at(text, difference.at) for text in (message.text, prompt.text))
    return _finding(
        "differs_early",
        message.place,
        f"it has most of its words in common with that of {one_line(prompt.name)}, but says"
        f" “{here}” where that says “{there}”.",
        "Put what both have first, and what differs behind it.",
        "chat",
        difference,
        message.text,
        scale,
    )


def persona_findings(personas: Mapping[str, Persona], scale: TokenScale) -> Iterator[LintFinding]:
    """The pairs of personas that another order would save most for, the best first."""
    found: list[tuple[EarlyDifference, Persona, Persona]] = []
    for first, second in combinations(personas.values(), 2):
        difference = worthwhile_difference(first.system, second.system, scale)
        if difference is not None:
            found.append((difference, first, second))
    found.sort(key=lambda pair: -pair[0].gain)
    for difference, first, second in found[:MAX_PAIRS]:
        here, there = (_words_at(who.system, difference.at) for who in (second, first))
        yield _finding(
            "personas_differ_early",
            f"personas {one_line(first.name)} and {one_line(second.name)}",
            f"they share most of their words, but {one_line(second.name)} says “{here}” where"
            f" {one_line(first.name)} says “{there}”.",
            "Put the paragraphs that both have first, and what differs behind them.",
            "switch",
            difference,
            second.system,
            scale,
        )


def _finding(
    rule: LintRule,
    place: str,
    what: str,
    advice: str,
    cost_per: CostPer,
    difference: EarlyDifference,
    text: str,
    scale: TokenScale,
) -> LintFinding:
    """`text` is the one that differs from another, which was there before it."""
    line, column = line_and_column(text, difference.at)
    return LintFinding(
        rule=rule,
        place=place,
        what=what,
        advice=advice,
        found=_words_at(text, difference.at),
        line=line,
        column=column,
        token=scale.tokens(difference.at),
        cost_tokens=scale.tokens(difference.rest),
        cost_per=cost_per,
        saves_tokens=scale.tokens(difference.gain),
    )


def _words_at(text: str, at: int) -> str:
    """The words of a text from the one on that a place is in."""
    start = max(text.rfind(" ", 0, at), text.rfind("\n", 0, at)) + 1
    return excerpt(text[start:].strip() or "nothing", DIFFERENCE_CHARACTERS)
