"""What is being looked at in the lens: which turn and token, how, and with which settings.

Owns no facts. What only one view knows of (a row, a step, a fold) it keeps in `own`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from chatcache.backends.base import SamplingParams

# What can be pressed in any view; each says which of them mean something.
LensKey = Literal[
    "left",
    "right",
    "up",
    "down",
    "page_up",
    "page_down",
    "home",
    "end",
    "less",
    "more",
    "layer",
    "layer_back",
    "head",
    "head_back",
    "ids",
    "mode",
    "cut",
]


@dataclass(frozen=True, slots=True)
class LensState:
    """`turn` None: the last one that was answered. `token` is a position in the prompt of the turn,
    None where the view chooses. `layer` and `head` None: averaged over all of them. `tokenizer` is
    a second one to compare with, "" for none. `step` is where somebody wants to begin in what is
    played step by step."""

    turn: int | None = None
    token: int | None = None
    layer: int | None = None
    head: int | None = None
    has_ids: bool = False
    tokenizer: str = ""
    step: int | None = None
    sampling: SamplingParams = field(default_factory=SamplingParams)
    own: Mapping[str, Any] = field(default_factory=dict)

    def with_own(self, view: str, kept: Any) -> LensState:
        """The same with something else kept for a view."""
        return replace(self, own={**self.own, view: kept})


def clamped(value: int, count: int) -> int:
    """A number of `count` ones, from zero on."""
    return max(0, min(count - 1, value))
