"""The form of a view: what its facts depend on, how they are read, drawn, and moved through."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import replace
from typing import Generic, Literal, TypeVar

from chatcache.frontend.lens.page import Page
from chatcache.frontend.lens.source import LensSource
from chatcache.frontend.lens.state import LensKey, LensState, clamped

# What a view asks beside the database: nothing, what ids stand for, or the model's computing.
Need = Literal["disk", "tokenizer", "model"]
Facts = TypeVar("Facts")
PAGE = 10


class LensView(Generic[Facts]):
    """Stateless: the state is given. `read` may block and is called in threads; the others are
    pure. `name` is the word of the commands; `follows`: when it is opened, the place that is chosen
    is shown, rather than the beginning of its page."""

    name = ""
    title = ""
    need: Need = "disk"
    follows = True

    def depends(self, state: LensState) -> Hashable:
        """The part of the state that the facts depend on."""
        return state.turn

    def read(self, source: LensSource, state: LensState) -> Facts:
        """What is known. Without a model that can answer: what the disk knows. Raises
        ChatcacheError where not even that can be shown."""
        raise NotImplementedError

    def page(self, facts: Facts, state: LensState, width: int, height: int | None) -> Page:
        """At most `width` cells wide. With a height, a view may lay out no more than fits around
        the chosen place; None: everything."""
        raise NotImplementedError

    def press(self, facts: Facts, state: LensState, key: LensKey, width: int) -> LensState:
        """The state after a key; the same one where it means nothing here."""
        return state


def moved(key: LensKey, place: int, count: int) -> int:
    """Where a key leads in a row of `count` places; the same place for a key that does not move."""
    steps: dict[LensKey, int] = {
        "left": -1,
        "right": 1,
        "up": -1,
        "down": 1,
        "page_up": -PAGE,
        "page_down": PAGE,
        "home": -count,
        "end": count,
    }
    return clamped(place + steps.get(key, 0), count)


def with_turn(state: LensState, turn: int | None) -> LensState:
    """Another turn: its tokens are others, so none is chosen."""
    if turn == state.turn:
        return state
    return replace(state, turn=turn, token=None, step=None, own={})
