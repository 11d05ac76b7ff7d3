"""The words of changes to the open chat: what a person typed, and what is presented afterwards."""

from __future__ import annotations

from dataclasses import dataclass
from typing import get_args

from chatcache.backends.base import HistoryMode
from chatcache.chat.views import ForkResult, SessionSummary
from chatcache.checks import typed_number
from chatcache.errors import UsageError
from chatcache.formatting import duration, one_line, shorten

HISTORY_MODES: tuple[HistoryMode, ...] = get_args(HistoryMode)
MODE_WORDS: dict[HistoryMode, str] = {
    "canonical": "canonical: each prompt is what the template writes for the conversation",
    "append": "append: what was read stays as it was read, whatever the template would write now",
}


@dataclass(frozen=True, slots=True)
class Forked:
    """A fork of the chat `origin`, open now. `text` is what the person can say anew."""

    session: SessionSummary
    origin: str
    result: ForkResult
    text: str | None = None

    @property
    def words(self) -> str:
        return (
            f"Forked in {duration(self.result.elapsed_ms)}. It shares"
            f" {self.result.shared_tokens:,} tokens, nothing was copied;"
            f" “{one_line(self.origin)}” is as it was."
        )


@dataclass(frozen=True, slots=True)
class VariantChosen:
    """Answer `number` of `total` is the one that the chat goes on from."""

    number: int
    total: int

    @property
    def words(self) -> str:
        return f"Answer {self.number} of {self.total}."


@dataclass(frozen=True, slots=True)
class SystemChange:
    """What became of another system prompt. `is_reread`: the messages of the chat are new ones;
    `warning`: what speaks against the text."""

    words: str
    is_reread: bool = False
    warning: str | None = None


def as_history_mode(word: str) -> HistoryMode:
    """The mode that somebody typed. Raises UsageError."""
    for mode in HISTORY_MODES:
        if word.strip().casefold() == mode:
            return mode
    raise UsageError(f"There is no mode {word!r}.", "Say /mode append or /mode canonical.")


def which_variant(word: str, here: int, number: int) -> int:
    """The index of the answer that a person asked for: the next one, or that of a number from 1.

    Raises UsageError when there is no such answer, or no other one.
    """
    if number < 2:
        raise UsageError("There is only one answer.", "/regen gives another one.")
    if not word:
        return (here + 1) % number
    chosen = typed_number(word)
    if chosen is None or not 1 <= chosen <= number:
        words = shorten(word, 40)
        raise UsageError(f"There is no answer {words!r}.", f"Say a number from 1 to {number}.")
    return chosen - 1
