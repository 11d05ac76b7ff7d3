"""What became of each token of a turn: reused from RAM or disk, computed, or written by the model.

Owns the runs of one fate and their counts, which are those of the turn's usage, exactly. Pure.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from chatcache import formatting as fmt
from chatcache.chat.readings import MessageRun, TurnReading
from chatcache.frontend.lens.page import LETTERS, Mark

# "reused": from RAM or disk, but in which order was not recorded. "read": the turn has no answer,
# and so no figures. "vram": what a GPU held; usage counts it as RAM.
Fate = Literal["vram", "ram", "disk", "reused", "computed", "written", "read"]

WORDS: dict[Fate, str] = {
    "vram": "from VRAM",
    "ram": "from RAM",
    "disk": "from disk",
    "reused": "reused",
    "computed": "computed",
    "written": "written by the model",
    "read": "read",
}
_OWN_LETTERS: dict[Fate, str] = {"vram": "V", "reused": "R/D"}
ROLES = {"system": "system prompt", "user": "you", "assistant": "the model"}


@dataclass(frozen=True, slots=True)
class FateRun:
    """Tokens `start` to `stop` of a turn, all of one fate."""

    start: int
    stop: int
    fate: Fate

    @property
    def num_tokens(self) -> int:
        return self.stop - self.start

    @property
    def mark(self) -> Mark:
        if self.fate == "vram" or self.fate == "reused":
            return "ram"
        return "" if self.fate == "read" else self.fate

    @property
    def letter(self) -> str:
        return _OWN_LETTERS.get(self.fate) or LETTERS.get(self.mark, "-")

    @property
    def where(self) -> str:
        return fmt.span(self.start, self.stop)


def fate_runs(reading: TurnReading) -> tuple[FateRun, ...]:
    """All tokens of a turn, prompt and answer. () where its ids are not known."""
    prompt, total = len(reading.prompt_ids), len(reading.ids)
    figures = reading.figures
    if not prompt:
        return ()
    if figures is None:
        runs = [FateRun(0, prompt, "read")]
    else:
        runs = [*_reused(reading), FateRun(figures.cached_tokens, prompt, "computed")]
    runs.append(FateRun(prompt, total, "written"))
    return tuple(run for run in runs if run.num_tokens > 0)


def is_order_known(reading: TurnReading) -> bool:
    """Whether it is known which of the reused tokens came from which tier."""
    return all(run.fate != "reused" for run in fate_runs(reading))


def _reused(reading: TurnReading) -> list[FateRun]:
    figures = reading.figures
    if figures is None or not figures.cached_tokens:
        return []
    if figures.cache.runs is None:
        by_tier = {"ram": figures.cached_ram_tokens, "disk": figures.cached_disk_tokens}
        tiers = [tier for tier, number in by_tier.items() if number]
        fate: Fate = "reused" if len(tiers) > 1 else "ram" if tiers == ["ram"] else "disk"
        return [FateRun(0, figures.cached_tokens, fate)]
    runs: list[FateRun] = []
    start = 0
    for run in figures.cache.runs:
        runs.append(FateRun(start, run.stop, run.tier))
        start = run.stop
    return runs


def run_at(runs: Sequence[FateRun], position: int) -> FateRun | None:
    return next((run for run in runs if run.start <= position < run.stop), None)


def message_at(messages: Sequence[MessageRun], position: int) -> MessageRun | None:
    return next((run for run in messages if run.start <= position < run.stop), None)


def message_words(run: MessageRun) -> str:
    """Whose tokens they are: `system prompt`; `turn 2, you`; `turns 1 to 3`."""
    turns = sorted({turn for turn, role in run.roles if role != "system"})
    has_system = any(role == "system" for _, role in run.roles)
    if len(run.roles) == 1 and turns:
        return f"turn {turns[0]}, {ROLES[run.roles[0][1]]}"
    parts = ["system prompt"] if has_system else []
    if turns:
        parts.append(turns_words(turns[0], turns[-1]))
    return ", ".join(parts)


def turns_words(first: int, last: int) -> str:
    return f"turn {first}" if first == last else f"turns {first} to {last}"


def covered_words(messages: Sequence[MessageRun], start: int, stop: int) -> str:
    """What lies between two positions: `system prompt, turns 1 to 3`."""
    roles = tuple(
        role for run in messages if run.start < stop and run.stop > start for role in run.roles
    )
    return message_words(MessageRun(start, stop, roles)) if roles else ""


def basics(reading: TurnReading) -> dict[str, Any]:
    """Which turn it is, as the data of a page have it."""
    return {"session": reading.session_name, "turn": reading.turn, "turns": reading.num_turns}


def run_words(run: FateRun, messages: Sequence[MessageRun]) -> str:
    """`R 0-611: 612 tokens from RAM, system prompt, turn 1`."""
    covered = covered_words(messages, run.start, run.stop)
    tokens = f"{fmt.plural(run.num_tokens, 'token')} {WORDS[run.fate]}"
    return f"{run.letter} {run.where}: {tokens}" + (f", {covered}" if covered else "")
