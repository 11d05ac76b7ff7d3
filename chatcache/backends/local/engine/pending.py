"""What a front end has asked an engine and has no answer to yet: turns, and calls.

Owns the streams of the turns. Whoever uses it holds a lock. Knows no engine and no channel.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import Any

from chatcache.backends.base import (
    TurnEvent,
    TurnFailed,
    TurnFinished,
    TurnRequest,
    TurnStream,
    TurnWaiting,
)
from chatcache.backends.local.engine.wire import CostsEstimated, RunTurn, StopTurn, Studied


class _Turn:
    def __init__(self, request: TurnRequest, stream: TurnStream) -> None:
        self.request = request
        self.stream = stream
        self.is_begun = False
        self.asked_at = time.monotonic()


class Pending:
    """`waited_ms` is how long the last turn that had to waited for other chats."""

    def __init__(self) -> None:
        self.waited_ms = 0.0
        self._turns: dict[str, _Turn] = {}
        self._calls: dict[int, Future[Any]] = {}
        self._call_ids = itertools.count()

    def add(self, request: TurnRequest, on_stop: Callable[[], None]) -> TurnStream:
        stream = TurnStream(on_stop)
        self._turns[request.turn_id] = _Turn(request, stream)
        return stream

    def has(self, turn_id: str) -> bool:
        return turn_id in self._turns

    @property
    def has_turns(self) -> bool:
        return bool(self._turns)

    def messages(self) -> Iterator[RunTurn | StopTurn]:
        """What an engine has to be told that knows nothing of all this."""
        for turn in self._turns.values():
            yield RunTurn(turn.request)
            if turn.stream.is_stopped:  # perhaps when there was no engine to tell it to
                yield StopTurn(turn.request.turn_id)

    def take(self, event: TurnEvent) -> None:
        """Pass an event on to whoever asked."""
        turn = self._turns.get(event.turn_id)
        if turn is None:
            return
        if not isinstance(event, TurnWaiting):
            turn.is_begun = True
        elif event.num_ahead == 0:
            self.waited_ms = 1000 * (time.monotonic() - turn.asked_at)
        if isinstance(event, (TurnFinished, TurnFailed)):
            del self._turns[event.turn_id]
            turn.stream.end(event)
        else:
            turn.stream.put(event)

    def call(self) -> tuple[int, Future[Any]]:
        """The number of a new call, and where its answer will be: the message, or its error."""
        call_id, answer = next(self._call_ids), Future[Any]()
        self._calls[call_id] = answer
        return call_id, answer

    def answer(self, message: CostsEstimated | Studied) -> None:
        if (answer := self._calls.pop(message.call_id, None)) is None:
            return
        if message.error is not None:
            answer.set_exception(message.error)
        else:
            answer.set_result(message)

    def forget(self, call_id: int) -> None:
        """Nobody waits for the answer of this call any more."""
        self._calls.pop(call_id, None)

    def fail(self, error: Exception, *, only_begun: bool = False) -> None:
        """No answer will come. `only_begun`: what was not begun can be asked again."""
        for turn_id, turn in list(self._turns.items()):
            if turn.is_begun or not only_begun:
                del self._turns[turn_id]
                turn.stream.end(TurnFailed(turn_id, error))
        calls, self._calls = self._calls, {}
        for answer in calls.values():
            answer.set_exception(error)
