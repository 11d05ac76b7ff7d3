"""How fast segments are written: at full speed, but slowly while a turn computes.

A writer that takes a core from a step of the model delays all of it, because the threads of a step
wait for one another. So the writer works in small pieces and rests after each while a turn runs,
unless somebody waits for it or memory is short.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator

PIECE_BYTES = 1 << 20
_REST_PER_WORK = 100.0  # of the time that a core works for the writer
_LONGEST_REST_SECONDS = 0.5


class Pace:
    """Shared by the thread that computes, the writer's thread, and those that wait for it."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._num_computing = 0
        self._num_waiting = 0
        self._began: float | None = None
        self.is_pressed = False

    @contextlib.contextmanager
    def computing(self) -> Iterator[None]:
        """A turn computes meanwhile."""
        with self._changed:
            self._num_computing += 1
        try:
            yield
        finally:
            with self._changed:
                self._num_computing -= 1
                self._changed.notify_all()

    @contextlib.contextmanager
    def waited_for(self) -> Iterator[None]:
        """Somebody needs what is written meanwhile."""
        with self._changed:
            self._num_waiting += 1
            self._changed.notify_all()
        try:
            yield
        finally:
            with self._changed:
                self._num_waiting -= 1

    def begin(self) -> None:
        """The writer begins a piece of work."""
        self._began = time.thread_time()

    def breathe(self) -> None:
        """The writer has done a piece: it rests for as long as that asks for."""
        if self._began is not None:
            worked = time.thread_time() - self._began
            rest = min(worked * _REST_PER_WORK, _LONGEST_REST_SECONDS)
            with self._changed:
                self._changed.wait_for(self._is_free, rest)
        self.begin()

    def _is_free(self) -> bool:
        return self._num_computing == 0 or self._num_waiting > 0 or self.is_pressed
