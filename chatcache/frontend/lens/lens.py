"""The lens itself, without a screen: which view of which turn is open, its facts, and its page.

Owns what has been read and what is still to be read. What `reading` returns may block and is called
in a thread; what says so here as well. Everything else is quick.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any

from chatcache.errors import ChatcacheError, NotFoundError, UsageError
from chatcache.frontend.lens.page import Marked, Page, flow, line
from chatcache.frontend.lens.source import LensSource
from chatcache.frontend.lens.state import LensKey, LensState
from chatcache.frontend.lens.view import LensView, with_turn
from chatcache.frontend.lens.views import VIEWS, view_named

_MAX_FACTS = 48
_WAITS = {
    "disk": "reading the chat …",
    "tokenizer": "asking for the tokens …",
    "model": "asking the model …",
}


class Lens:
    """Begins with the first view, or a named one. Raises UsageError for a name of none."""

    def __init__(self, source: LensSource, view: str = "", state: LensState | None = None) -> None:
        self.source = source
        self.state = state or LensState()
        self.view: LensView[Any] = view_named(view) if view else VIEWS[0]
        self._facts: OrderedDict[Hashable, Any] = OrderedDict()
        self._latest: dict[str, tuple[int | None, Any]] = {}
        self._being_read: set[str] = set()
        self._edition = 0

    # Which view

    def show(self, name: str) -> None:
        self.view = view_named(name)

    def step(self, by: int) -> None:
        """The next view, or the one before; from the last one on to the first."""
        self.view = VIEWS[(VIEWS.index(self.view) + by) % len(VIEWS)]

    # Which turn

    def choose_turn(self, turn: int) -> None:
        """Raises NotFoundError. May block."""
        if turn not in (turns := self.source.turns()):
            there = f"There are turns 1 to {turns[-1]}." if turns else "Say something first."
            raise NotFoundError(f"There is no turn {turn}.", there)
        self.state = with_turn(self.state, turn)

    def step_turn(self, by: int) -> bool:
        """The turn before or behind; False at the end. May block."""
        turns, now = self.source.turns(), self.state.turn or self.source.last_answered()
        if now not in turns:
            return False
        index = turns.index(now) + by
        if not 0 <= index < len(turns):
            return False
        self.state = with_turn(self.state, turns[index])
        return True

    # Facts

    @property
    def _key(self) -> Hashable:
        return self._edition, self.view.name, self.view.depends(self.state)

    def reading(self) -> Callable[[], None] | None:
        """What gets the facts of the open view; None when they are there, or while others of this
        view are being read: ask again then. What cannot be read is said on the page."""
        key, view, state = self._key, self.view, self.state
        if key in self._facts or view.name in self._being_read:
            return None

        def read() -> None:
            try:
                facts = view.read(self.source, state)
                self._keep(key, facts)
                self._latest[view.name] = (state.turn, facts)
            except ChatcacheError as error:
                self._keep(key, error)
            finally:
                self._being_read.discard(view.name)

        self._being_read.add(view.name)
        return read

    def _keep(self, key: Hashable, facts: Any) -> None:
        self._facts[key] = facts
        while len(self._facts) > _MAX_FACTS:
            self._facts.popitem(last=False)

    def refresh(self) -> None:
        """Everything is read anew: a turn has ended, or a model is there now."""
        self._edition += 1

    def press(self, key: LensKey, width: int) -> bool:
        """What a key does in the open view; False where it does nothing. While a model is being
        asked, keys go on from where one is: what is asked last counts."""
        facts = self._facts.get(self._key)
        if facts is None and self.view.name in self._latest:
            turn, latest = self._latest[self.view.name]
            facts = latest if turn == self.state.turn else None
        if facts is None or isinstance(facts, ChatcacheError):
            return False
        before, self.state = self.state, self.view.press(facts, self.state, key, width)
        return self.state != before

    def page(self, width: int, height: int | None = None) -> Page | None:
        """The page; None while its facts are not read."""
        facts = self._facts.get(self._key)
        if isinstance(facts, ChatcacheError):
            return problem_page(self.view.title, facts, width)
        return None if facts is None else self.view.page(facts, self.state, width, height)

    def page_now(self, width: int, height: int | None = None) -> Page:
        """The page, after reading what it needs. Blocks. Raises ChatcacheError, also for a token
        that there is none of."""
        if (token := self.state.token) is not None:
            num_tokens = len(self.source.reading(self.state.turn).ids)
            if num_tokens and token >= num_tokens:
                raise UsageError(
                    f"There is no token {token:,} in this turn.",
                    f"Its prompt and answer are tokens 0 to {num_tokens - 1:,}.",
                )
        if (read := self.reading()) is not None:
            read()
        facts = self._facts[self._key]
        if isinstance(facts, ChatcacheError):
            raise facts
        return self.view.page(facts, self.state, width, height)

    @property
    def waits_for(self) -> str:
        """What is going on while the facts are being read."""
        return _WAITS[self.view.need]

    @property
    def can_load(self) -> bool:
        """Whether a model would show more of this view than is known without one."""
        return self.view.need != "disk" and self.source.can_load

    def other_model(self) -> str:
        """The model that read the turn, if the one that is loaded cannot tell what its tokens
        are; else "". May block."""
        reading = self.source.reading(self.state.turn)
        is_known = not reading.tokenizer_id or self.source.can_read(reading.tokenizer_id)
        return "" if is_known else reading.model


def problem_page(title: str, error: ChatcacheError, width: int) -> Page:
    """Why a view cannot be shown, and what to do."""
    sentences = tuple(filter(None, (error.message, error.hint)))
    lines = [line(Marked(text, "warning")) for text in flow(error.message, width)]
    lines += [line(text) for text in flow(error.hint, width)] if error.hint else []
    return Page(title, tuple(lines), sentences, {"error": error.message, "hint": error.hint})
