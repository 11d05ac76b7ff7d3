"""What a front end has asked an engine and has no answer to yet: turns, and the cost of forks.

Owns the streams of the turns. Whoever uses it holds a lock. Knows no engine and no channel.
"""

from __future__ import annotations

import itertools
import queue
import time
from collections.abc import Callable, Iterator

from chatcache.backends.base import (
    TurnEvent,
    TurnFailed,
    TurnFinished,
    TurnRequest,
    TurnStream,
    TurnWaiting,
)
from chatcache.backends.local.engine.wire import CostsEstimated, RunTurn, StopTurn

Answers = queue.SimpleQueue[CostsEstimated]


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
        self._calls: dict[int, Answers] = {}
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

    def call(self) -> tuple[int, Answers]:
        """The number of a new question about costs, and where the answer will be."""
        call_id, answers = next(self._call_ids), queue.SimpleQueue[CostsEstimated]()
        self._calls[call_id] = answers
        return call_id, answers

    def answer(self, costs: CostsEstimated) -> None:
        if (answers := self._calls.pop(costs.call_id, None)) is not None:
            answers.put(costs)

    def fail(self, error: Exception, *, only_begun: bool = False) -> None:
        """No answer will come. `only_begun`: what was not begun can be asked again."""
        for turn_id, turn in list(self._turns.items()):
            if turn.is_begun or not only_begun:
                del self._turns[turn_id]
                turn.stream.end(TurnFailed(turn_id, error))
        calls, self._calls = self._calls, {}
        for call_id, answers in calls.items():
            answers.put(CostsEstimated(call_id, error=error))
