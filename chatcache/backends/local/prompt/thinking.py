"""How a chat template is told to let the model think, or not to.

Owns the names that templates have for it. Whether a template reads one of them is found out by
letting it write a prompt both ways, never by its name.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from chatcache.backends.base import ThinkSwitch
from chatcache.errors import UnavailableError

_FLAGS = ("enable_thinking", "thinking", "think", "enable_reasoning")
_EFFORT = "reasoning_effort"
_LOW_WORDS = ("none", "minimal", "low")
_HIGH_WORDS = ("high", "medium")

Variables = Mapping[str, Any]


def flags(think: bool) -> Variables:
    """The switch as most templates know it."""
    return dict.fromkeys(_FLAGS, think)


@dataclass(frozen=True, slots=True)
class Thinking:
    """What a template can be told, and the variables that tell it to think (`on`) and not to."""

    switch: ThinkSwitch
    on: Variables
    off: Variables

    def variables(self, think: bool | None) -> Variables:
        return {} if think is None else self.on if think else self.off


def find_switch(source: str, write: Callable[[Variables], str]) -> Thinking:
    """How the template is told.

    `write` gives a prompt as the template writes it with these variables. Raises nothing."""
    if _differ(write, flags(True), flags(False)):
        return Thinking("flag", flags(True), flags(False))
    if _EFFORT in source:
        # A word that the template does not know may be refused, or taken for a text like any other.
        low = [word for word in _LOW_WORDS if _is_quoted(word, source)] or ["low"]
        for high_word in _HIGH_WORDS:
            for low_word in low:
                high, low_effort = {_EFFORT: high_word}, {_EFFORT: low_word}
                if _differ(write, high, low_effort):
                    is_off = low_word == "none"
                    return Thinking("flag" if is_off else "effort", high, low_effort)
    return Thinking("none", flags(True), flags(False))


def _differ(write: Callable[[Variables], str], left: Variables, right: Variables) -> bool:
    try:
        return write(left) != write(right)
    except UnavailableError:
        return False


def _is_quoted(word: str, source: str) -> bool:
    return re.search(rf"""(['"]){word}\1""", source) is not None
