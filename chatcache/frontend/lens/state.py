"""What is being looked at in the lens: which turn and token, how, and with which settings.

Owns no facts. A view that has a place of its own (a row, a step, an event) keeps it in `places`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

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
    a second one to compare with, "" for none. `mode` counts the other ways of a view to show the
    same."""

    turn: int | None = None
    token: int | None = None
    layer: int | None = None
    head: int | None = None
    has_ids: bool = False
    tokenizer: str = ""
    mode: int = 0
    sampling: SamplingParams = field(default_factory=SamplingParams)
    places: Mapping[str, int] = field(default_factory=dict)

    def place(self, view: str, default: int = 0) -> int:
        return self.places.get(view, default)

    def at(self, view: str, place: int) -> LensState:
        """The same with another place in a view."""
        return replace(self, places={**self.places, view: place})


def clamped(value: int, count: int) -> int:
    """A number of `count` ones, from zero on."""
    return max(0, min(count - 1, value))
