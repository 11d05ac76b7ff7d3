"""What a rule of the linter has found, and how it is told: as lines, as one line, as JSON.

Owns the words for rules and costs. Knows no rule.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from chatcache.formatting import one_line, plural, shorten

LintRule = Literal[
    "date",
    "time",
    "timestamp",
    "random_id",
    "placeholder",
    "differs_early",
    "personas_differ_early",
    "attachment_first",
    "attachment_repeated",
    "template_changes",
    "template_rewrites",
    "repeated_miss",
    "history_rewritten",
    "tools_differ",
]
# Each in so few words that the panel has room for them.
RULE_WORDS: Mapping[LintRule, str] = {
    "date": "date in system prompt",
    "time": "time in system prompt",
    "timestamp": "time in system prompt",
    "random_id": "id in system prompt",
    "placeholder": "placeholder that changes",
    "differs_early": "prompt like another one",
    "personas_differ_early": "personas differ early",
    "attachment_first": "file before what stays",
    "attachment_repeated": "file attached again",
    "template_changes": "template changes itself",
    "template_rewrites": "template rewrites turns",
    "repeated_miss": "the same miss again",
    "history_rewritten": "history is rewritten",
    "tools_differ": "tools differ early",
}
CostPer = Literal["change", "turn", "chat", "switch", "request"]
COST_WORDS: Mapping[CostPer, str] = {
    "change": "each time it changes",
    "turn": "per turn",
    "chat": "per chat",
    "switch": "per switch",
    "request": "per request",
}
SHOWN_CHARACTERS = 48


@dataclass(frozen=True, slots=True)
class TokenScale:
    """How many characters make a token: measured on a chat, or the usual four."""

    chars_per_token: float = 4.0

    def tokens(self, num_chars: int) -> int:
        return round(num_chars / self.chars_per_token)


@dataclass(frozen=True, slots=True)
class LintFinding:
    """One thing that costs reuse. `place` and `line`, `column` or `token` say where, `found` what
    stands there, `advice` what to do. `cost_tokens` are read again, `cost_per` says when;
    `saves_tokens` of them another order would save. `is_estimated`: counted from characters."""

    rule: LintRule
    place: str
    what: str
    advice: str
    found: str = ""
    line: int | None = None
    column: int | None = None
    token: int | None = None
    cost_tokens: int | None = None
    cost_per: CostPer = "change"
    saves_tokens: int | None = None
    is_estimated: bool = True
    subject: str = ""
    session_id: str | None = None

    @property
    def where(self) -> str:
        """`system prompt, line 3, column 12, token 40 (est.)`"""
        parts = [one_line(self.place)]
        if self.line is not None:
            parts.append(f"line {self.line:,}, column {self.column:,}")
        if self.token is not None:
            parts.append(f"token {self.token:,}{self._est}")
        return ", ".join(parts)

    @property
    def cost(self) -> str:
        """`412 tokens (est.) read again each time it changes`; "" where that is not known."""
        if self.cost_tokens is None:
            return ""
        tokens = f"{plural(self.cost_tokens, 'token')}{self._est}"
        words = f"{tokens} read again {COST_WORDS[self.cost_per]}"
        if self.saves_tokens:
            words += f"; another order would save {self.saves_tokens:,}{self._est}"
        return words

    @property
    def _est(self) -> str:
        return " (est.)" if self.is_estimated else ""


def lines(finding: LintFinding) -> Iterator[str]:
    """A finding for the shell and for plain mode: where and what, the cost, what to do."""
    subject = f"{one_line(finding.subject)}: " if finding.subject else ""
    yield f"{subject}{finding.where}: {one_line(finding.what)}"
    if finding.cost:
        yield f"  costs: {finding.cost}"
    yield f"  do: {one_line(finding.advice)}"


def report(findings: Sequence[LintFinding]) -> list[str]:
    """All findings as lines, with an empty line between them; or that there are none."""
    if not findings:
        return ["Nothing was found that makes a prefix change."]
    told: list[str] = []
    for finding in findings:
        told += ["", *lines(finding)] if told else lines(finding)
    return told


def as_json(finding: LintFinding) -> dict[str, Any]:
    return asdict(finding)


def panel_line(findings: Sequence[LintFinding]) -> str:
    """What the panel says of a chat: the dearest finding in a few words; "" without any."""
    if not findings:
        return ""
    worst = max(findings, key=lambda finding: finding.cost_tokens or 0)
    more = f" (+{len(findings) - 1})" if len(findings) > 1 else ""
    return f"{RULE_WORDS[worst.rule]}{more}"


def excerpt(text: str, limit: int = SHOWN_CHARACTERS) -> str:
    """The beginning of somebody's text, short and on one line."""
    return shorten(text[: 4 * limit], limit)


def quoted(text: str) -> str:
    return f"“{excerpt(text)}”"


def line_and_column(text: str, at: int) -> tuple[int, int]:
    """Where a character is, both counted from 1, as editors do."""
    start = text.rfind("\n", 0, at) + 1
    return text.count("\n", 0, at) + 1, at - start + 1
