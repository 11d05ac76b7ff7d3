"""A backend whose model can be changed while the chat runs: one engine at a time.

Owns the change: the old engine is left before the new one starts. One that ends with its front end
has written out by then what is to be kept; one that stays ends if its memory is needed. Listeners
move along.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

from chatcache.backends.base import (
    Backend,
    CostEstimate,
    EngineUse,
    ModelInfo,
    ModelLoading,
    Prepare,
    TurnRequest,
    TurnStream,
)
from chatcache.backends.life import Listener, Listeners
from chatcache.backends.questions import Answer, Question
from chatcache.errors import UnavailableError
from chatcache.token_ids import TokenIds


class SwitchingBackend:
    """A `Backend` in front of the one that `make` builds for a model's name."""

    def __init__(self, make: Callable[[str], Backend], model: str) -> None:
        self._make = make
        self._current = make(model)
        self.model = model
        self._listeners = Listeners()
        self._unsubscribe = self._current.subscribe(self._listeners.tell)
        self._lock = threading.RLock()
        self._is_switching = False
        self._is_closed = False

    def switch(self, model: str) -> None:
        """End the engine and start one for another model; returns when the new one is loading.

        Turns that are asked for meanwhile wait. What is being answered must have been stopped.
        """
        with self._lock:
            if self._is_closed:
                return
            self._is_switching = True
            try:
                self._replace(model)
            finally:
                self._is_switching = False
            self._current.start()

    def _replace(self, model: str) -> None:
        following = self._make(model)  # a name that means nothing leaves all as it is
        self._unsubscribe()
        self._listeners.forget()
        self._listeners.tell(ModelLoading(f"closing {self.model}"))
        self._current.close()
        self._current, self.model = following, model
        self._unsubscribe = following.subscribe(self._listeners.tell)

    # Backend

    def start(self) -> None:
        self._current.start()

    def subscribe(self, listener: Listener) -> Callable[[], None]:
        return self._listeners.subscribe(listener)

    def wait_ready(self, timeout: float | None = None) -> ModelInfo:
        if timeout == 0 and self._is_switching:
            raise TimeoutError("another model is being loaded")
        return self._settled(timeout).wait_ready(timeout)

    def ask(self, request: TurnRequest) -> TurnStream:
        return self._settled().ask(request)

    def estimate(self, journals: Sequence[TokenIds]) -> list[CostEstimate]:
        if self._is_switching:
            raise UnavailableError("Another model is being loaded.", "Wait until it is ready.")
        return self._current.estimate(journals)

    def study(self, question: Question, timeout: float | None = None) -> Answer:
        if self._is_switching:
            raise UnavailableError("Another model is being loaded.", "Wait until it is ready.")
        return self._current.study(question, timeout)

    def prepare(self, request: Prepare) -> bool:
        return not self._is_switching and self._current.prepare(request)

    def cancel_prepare(self) -> None:
        self._current.cancel_prepare()

    def spill(self, segment_id: str | None = None) -> bool:
        return not self._is_switching and self._current.spill(segment_id)

    def engine_use(self) -> EngineUse | None:
        return self._current.engine_use()

    def close(self) -> None:
        with self._lock:
            self._is_closed = True
            self._current.close()

    def _settled(self, timeout: float | None = None) -> Backend:
        """The present backend; while it is being exchanged, the one after that. Raises TimeoutError
        when that takes longer than `timeout` seconds."""
        if not self._lock.acquire(timeout=-1 if timeout is None else timeout):
            raise TimeoutError("another model is being loaded")
        try:
            return self._current
        finally:
            self._lock.release()
