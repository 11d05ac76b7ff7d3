"""Runs a generator of turn events in a thread of its own.

So an interrupt (Ctrl+C) that strikes the consumer never strikes inside the backend: the turn can
still be stopped in an orderly way, and its last event received.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterator

from chatcache.backends.base import TurnEvent, TurnFailed, TurnFinished
from chatcache.errors import ChatcacheError

IDLE_SECONDS = 0.1


class EventPump:
    """The events of one turn. Consume `events` once; then, if that was cut short, `drain`."""

    def __init__(self, turn_id: str, produce: Callable[[], Iterator[TurnEvent]]) -> None:
        self._turn_id = turn_id
        self._produce = produce
        self._events: queue.SimpleQueue[TurnEvent | None] = queue.SimpleQueue()
        self._has_ended = False
        self._thread = threading.Thread(target=self._run, name=f"turn-{turn_id}", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            for event in self._produce():
                self._events.put(event)
        except BaseException as error:
            failure = error if isinstance(error, Exception) else RuntimeError(repr(error))
            self._events.put(TurnFailed(self._turn_id, failure))
        finally:
            self._events.put(None)

    def events(self, on_idle: Callable[[], None]) -> Iterator[TurnEvent]:
        """The events as they come; `on_idle` is called while there are none."""
        while not self._has_ended:
            try:
                event = self._events.get(timeout=IDLE_SECONDS)
            except queue.Empty:
                on_idle()
                continue
            if event is None:
                self._has_ended = True
            else:
                yield event

    def drain(
        self, seconds: float, on_idle: Callable[[], None]
    ) -> TurnFinished | TurnFailed | None:
        """Wait for the end and return the closing event; None when it does not come in time."""
        closing: TurnFinished | TurnFailed | None = None
        deadline = time.monotonic() + seconds
        while not self._has_ended and time.monotonic() < deadline:
            try:
                event = self._events.get(timeout=IDLE_SECONDS)
            except queue.Empty:
                on_idle()
                continue
            if isinstance(event, TurnFinished | TurnFailed):
                closing = event
            self._has_ended = event is None
        return closing


def as_shown(error: Exception) -> ChatcacheError:
    """An error of the backend as one that can be shown; an unexpected one is a bug: exit code 1."""
    if isinstance(error, ChatcacheError):
        return error
    wrapped = ChatcacheError(
        f"The model failed unexpectedly: {type(error).__name__}: {error}.",
        "What was said is kept. The log has the details.",
    )
    wrapped.__cause__ = error
    return wrapped
