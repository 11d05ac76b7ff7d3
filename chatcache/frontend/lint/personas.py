"""The rule for personas: which of them share most of their words, but not their beginning. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import combinations

from chatcache.formatting import one_line
from chatcache.frontend.lint.finding import LintFinding, TokenScale, line_and_column, words_at
from chatcache.frontend.lint.orders import MIN_TOKENS, early_difference, is_worth_saying
from chatcache.personas import Persona

MAX_PAIRS = 10


def persona_findings(personas: Mapping[str, Persona], scale: TokenScale) -> Iterator[LintFinding]:
    """The pairs that another order would save most for, the best first."""
    min_chars = round(MIN_TOKENS * scale.chars_per_token)
    found = []
    for first, second in combinations(personas.values(), 2):
        difference = early_difference(first.system, second.system)
        if difference and is_worth_saying(difference, first.system, second.system, min_chars):
            found.append((difference, first, second))
    found.sort(key=lambda pair: -pair[0].gain)
    for difference, first, second in found[:MAX_PAIRS]:
        line, column = line_and_column(second.system, difference.at)
        here, there = (words_at(who.system, difference.at) for who in (second, first))
        yield LintFinding(
            rule="personas_differ_early",
            place=f"personas {one_line(first.name)} and {one_line(second.name)}",
            what=f"they share most of their words, but {one_line(second.name)} says {here} where"
            f" {one_line(first.name)} says {there}.",
            advice="Put the paragraphs that both have first, and what differs behind them.",
            found=here.strip("“”"),
            line=line,
            column=column,
            token=scale.tokens(difference.at),
            cost_tokens=scale.tokens(difference.rest),
            cost_per="switch",
            saves_tokens=scale.tokens(difference.gain),
        )
