"""The two modes of a session's history, in words."""

from __future__ import annotations

from typing import get_args

from chatcache.backends.base import HistoryMode
from chatcache.errors import UsageError

HISTORY_MODES: tuple[HistoryMode, ...] = get_args(HistoryMode)
MODE_WORDS: dict[HistoryMode, str] = {
    "canonical": "canonical: each prompt is what the template writes for the conversation",
    "append": "append: what was read stays as it was read, whatever the template would write now",
}


def as_history_mode(word: str) -> HistoryMode:
    """The mode that somebody typed. Raises UsageError."""
    for mode in HISTORY_MODES:
        if word.strip().casefold() == mode:
            return mode
    raise UsageError(f"There is no mode {word!r}.", "Say /mode append or /mode canonical.")
