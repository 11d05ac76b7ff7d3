"""A turn as a handle: its events as they come, and the way to end it.

Owns the one queue between whoever answers (the reader of the engine's channel, the task that talks
to a server) and whoever asked. Knows nothing of what the events mean, only which one is the last.
"""

from __future__ import annotations

import queue
import time
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

_Event = TypeVar("_Event")


class EventStream(Generic[_Event]):
    """The events of one turn. One thread reads; the answerer puts from any thread.

    `on_stop` tells the answerer that the turn is to end. It is called at most once, by the thread
    that reads, and not after the last event.
    """

    def __init__(self, on_stop: Callable[[], None]) -> None:
        self._on_stop = on_stop
        self._events: queue.SimpleQueue[_Event | None] = queue.SimpleQueue()  # None: look up
        self._last: _Event | None = None
        self._is_told = False
        self._is_ended = False
        self.is_stopped = False

    # Whoever answers

    def put(self, event: _Event) -> None:
        self._events.put(event)

    def end(self, last: _Event) -> None:
        """Put the last event; what comes after it is not read any more."""
        self._last = last
        self._events.put(last)

    # Whoever asked

    def get(self, timeout: float | None = None) -> _Event | None:
        """The next event; None when the last one has been read.

        Raises TimeoutError when there is none within `timeout` seconds.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        while not self._is_ended:
            self._pass_stop_on()
            try:
                left = None if deadline is None else max(0.0, deadline - time.monotonic())
                event = self._events.get(timeout=left)
            except queue.Empty:
                raise TimeoutError("nothing has come yet") from None
            if event is not None:
                self._is_ended = event is self._last
                return event
        return None

    def __iter__(self) -> Iterator[_Event]:
        """The events to the end. Who leaves the loop before that stops the turn."""
        try:
            while (event := self.get()) is not None:
                yield event
        finally:
            self.close()

    def stop(self) -> None:
        """End the turn; its last event still comes.

        From any thread, also in a signal handler, at any time and any number of times: it leaves
        a mark and wakes the reader, which passes it on.
        """
        self.is_stopped = True
        self._events.put(None)

    def close(self) -> None:
        """Nobody reads on: end the turn."""
        self.is_stopped = True
        self._pass_stop_on()

    def _pass_stop_on(self) -> None:
        if self.is_stopped and not (self._is_told or self._is_ended):
            self._is_told = True
            self._on_stop()
