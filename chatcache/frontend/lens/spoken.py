"""The lens in words: what somebody types behind /lens, and the sentences that answer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from chatcache.checks import typed_number
from chatcache.errors import UnavailableError, UsageError
from chatcache.frontend.lens.lens import Lens
from chatcache.frontend.lens.source import LensSource
from chatcache.frontend.lens.state import LensState
from chatcache.frontend.lens.views import VIEW_NAMES

# Sentences need no width; lines that are drawn beside them do.
_WIDTH = 80
_NUMBERS = ("token", "layer", "head", "step")
_HINT = (
    "Say /lens [VIEW] [TURN] [token N] [layer N] [head N] [step N] [beside MODEL]."
    f" Views: {', '.join(VIEW_NAMES)}."
)


def opened(source: LensSource, words: Sequence[str]) -> Lens:
    """A lens on what the words name: a view, a turn as a number, `token 5`, `layer 2`, `head 0`,
    `step 3`, `ids`, `beside smollm2` (a second tokenizer). May block. Raises UsageError or
    NotFoundError."""
    view, state, turn = "", LensState(), None
    rest = iter(words)
    for word in rest:
        if (number := typed_number(word)) is not None:
            turn = number
        elif word == "turn":
            turn = _number(word, next(rest, ""))
        elif word in _NUMBERS:
            state = _with_number(state, word, _number(word, next(rest, "")))
        elif word == "beside":
            state = replace(state, tokenizer=_model(next(rest, "")))
            view = view or "tokens"
        elif word == "ids":
            state = replace(state, has_ids=True)
        elif view:
            raise UsageError(f"The lens does not know what {word!r} means.", _HINT)
        else:
            view = word
    lens = Lens(source, view, state)
    if turn is not None:
        lens.choose_turn(turn)
        lens.state = replace(state, turn=turn)
    return lens


def _with_number(state: LensState, name: str, number: int) -> LensState:
    changes: dict[str, Any] = {name: number}
    return replace(state, **changes)


def _model(word: str) -> str:
    if not word:
        raise UsageError("The model to compare with is missing.", "Say /lens beside MODEL.")
    return word


def _number(name: str, word: str) -> int:
    if (number := typed_number(word)) is None:
        raise UsageError(f"The number of the {name} is missing.", _HINT)
    return number


def said(source: LensSource, words: Sequence[str]) -> Iterator[str]:
    """The sentences of a view, once the model is there that it needs; without one, what the disk
    knows. May block."""
    lens = opened(source, words)
    if lens.can_load:
        yield "Waiting for the model."
        try:
            source.load()
        except UnavailableError as error:
            yield f"{error.message} {error.hint}".strip()
    yield from lens.page_now(_WIDTH).sentences
    others = [name for name in VIEW_NAMES if name != lens.view.name]
    yield f"Other views: {', '.join(others)}."
