"""What every backend has in common: who listens to it, and whether its model is ready.

Owns the telling of events and the states idle, loading, ready, failed and closed. Knows nothing of
processes and servers.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Literal

from chatcache.backends.base import (
    BackendEvent,
    BackendFailed,
    CacheSnapshot,
    EngineStatus,
    EngineUse,
    ModelInfo,
    ModelLoading,
    ModelReady,
)
from chatcache.errors import UnavailableError

log = logging.getLogger(__name__)

Listener = Callable[[BackendEvent], None]


def remember(latest: dict[str, BackendEvent], event: object) -> None:
    """Keep what one that comes late must know: the newest of the model, the cache, the engine."""
    if isinstance(event, (ModelLoading, ModelReady, BackendFailed)):
        latest["model"] = event
    elif isinstance(event, CacheSnapshot):
        latest["cache"] = event
    elif isinstance(event, EngineStatus):
        latest["engine"] = event


class Listeners:
    """Who hears the events. A listener that comes late is told what is true now, and that last."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._listeners: list[Listener] = []
        self._latest: dict[str, BackendEvent] = {}

    def subscribe(self, listener: Listener) -> Callable[[], None]:
        """Call `listener` for each event from now on; returns the undo."""
        told: list[BackendEvent] = []
        while True:  # until it knows the newest: there may be news while it is told
            with self._lock:
                news = [event for event in self._latest.values() if event not in told]
                if not news:
                    self._listeners.append(listener)
                    break
            for event in news:
                _tell(listener, event)
            told += news

        def unsubscribe() -> None:
            with self._lock:
                if listener in self._listeners:
                    self._listeners.remove(listener)

        return unsubscribe

    def tell(self, event: BackendEvent) -> None:
        """Tell all, and remember what one that comes late must know."""
        with self._lock:
            remember(self._latest, event)
            listeners = list(self._listeners)
        for listener in listeners:
            _tell(listener, event)

    def forget(self) -> None:
        """What was told is no longer true."""
        with self._lock:
            self._latest.clear()


def _tell(listener: Listener, event: BackendEvent) -> None:
    try:
        listener(event)
    except Exception:
        log.exception("a listener failed on %s", type(event).__name__)


class BackendLife:
    """The part of a `Backend` that does not depend on where its model runs.

    `_changed` guards the state, and is notified of each change of it.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition(threading.RLock())
        self._state: Literal["idle", "loading", "ready", "failed", "closed"] = "idle"
        self._info: ModelInfo | None = None
        self._error: Exception | None = None
        self._listeners = Listeners()

    def engine_use(self) -> EngineUse | None:
        """How it came to its engine; None where there is none."""
        return None

    def start(self) -> None:
        """Begin to load; returns at once."""
        raise NotImplementedError

    def subscribe(self, listener: Listener) -> Callable[[], None]:
        """Call `listener` for each event from now on; it is told the present state at once."""
        return self._listeners.subscribe(listener)

    def wait_ready(self, timeout: float | None = None) -> ModelInfo:
        """Block until the model is loaded. Raises what made loading fail, or TimeoutError.

        Starts the backend if nobody did, except for `wait_ready(0)`, which only asks.
        """
        if self._state == "idle":
            if timeout == 0:
                raise TimeoutError("the model has not been asked for yet")
            self.start()
        with self._changed:
            if not self._changed.wait_for(lambda: self._state != "loading", timeout):
                raise TimeoutError(f"the model is still being loaded after {timeout:g} s")
            if self._state == "idle":  # it was sent away while it was waited for
                return self.wait_ready(timeout)
            if self._state != "ready" or self._info is None:
                raise self._error or closed_error()
            return self._info


def closed_error() -> UnavailableError:
    return UnavailableError("The model has been closed.", "Start chatcache again.")
