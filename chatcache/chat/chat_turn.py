"""One turn as a handle: from a question that is on disk to an answer that is on disk.

Owns the order of things: the question is kept, the model is waited for, then the turn before this
one; what is read is kept, the words are passed on while they are kept about once a second, and the
answer is kept, whole or cut off, however the turn ends.

The thread that reads the handle drives the turn, in `get`. So what is shown is on disk before it is
shown, a failure reaches whoever asked, and a turn that nobody follows any more does not go on. The
backend fills its stream in a thread of its own: an interrupt (Ctrl+C) that strikes the reader never
strikes inside the backend, and the turn can still be ended in an orderly way.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import replace

from chatcache.backends.base import (
    Backend,
    ModelInfo,
    TextDelta,
    TurnFailed,
    TurnFinished,
    TurnPlanned,
    TurnResult,
    TurnStream,
    nothing_said,
)
from chatcache.chat import cut_warning
from chatcache.chat.answer_keeper import AnswerKeeper
from chatcache.chat.store import SessionStore
from chatcache.chat.tasks import TurnTask, read_journal, turn_request
from chatcache.chat.views import AnswerSaved, ChatEvent, UserMessageSaved, WaitingForModel
from chatcache.errors import ChatcacheError

TICK_SECONDS = 0.1
DRAIN_SECONDS = 15.0

# None: nothing has come for a tick.
Steps = Generator[ChatEvent | None, None, None]


class ChatTurn:
    """A turn of a conversation. `begin` writes the question down; it is called with the first
    `get`, so a turn that is never read leaves nothing behind."""

    def __init__(
        self,
        store: SessionStore,
        backend: Backend,
        begin: Callable[[], TurnTask],
        turns: RunningTurns,
    ) -> None:
        self._store = store
        self._backend = backend
        self._begin = begin
        self._turns = turns
        self._steps = self._run()
        self._stream: TurnStream | None = None
        self._keeper: AnswerKeeper | None = None
        self._is_stopped = False

    def get(self, timeout: float | None = None) -> ChatEvent | None:
        """The next event; None when the last one (AnswerSaved) has been read.

        Raises TimeoutError when there is none within `timeout` seconds (and a tenth), and the
        turn's own ChatcacheError after what had been produced is on disk.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        for event in self._steps:
            if event is not None:
                return event
            if deadline is not None and time.monotonic() >= deadline:
                raise TimeoutError("nothing has come yet")
        return None

    def __iter__(self) -> Iterator[ChatEvent]:
        """The events to the end. Who leaves the loop before that ends the turn."""
        try:
            while (event := self.get()) is not None:
                yield event
        finally:
            self.close()

    def stop(self) -> None:
        """End the turn; what was said so far is kept, and told as AnswerSaved.

        From any thread, also in a signal handler, at any time and any number of times.
        """
        self._is_stopped = True
        if (stream := self._stream) is not None:
            stream.stop()

    def close(self) -> None:
        """Nobody reads on: end the turn and keep what was said. By the thread that reads."""
        self._steps.close()

    def _run(self) -> Steps:
        task = self._begin()
        with self._turns.running(self):
            if task.question is not None:
                node = task.question.node
                yield UserMessageSaved(node.turn, node.node_id)
            info = yield from self._wait_for_model(task)
            if info is None or not (yield from self._wait_for_turn(task)):
                yield self._answered(task, None, nothing_said())
                return
            try:
                result = yield from self._answer(task, info)
            finally:
                self._turns.lock.release()
                if self._keeper is not None and self._keeper.saved is not None:
                    self._turns.seen[task.session_id] = self._keeper.saved.seq
            yield self._answered(task, info, result)

    def _wait_for_model(
        self, task: TurnTask
    ) -> Generator[ChatEvent | None, None, ModelInfo | None]:
        """The model once it is ready; None when the turn was stopped before."""
        timeout = 0.0
        while not self._is_stopped:
            try:
                return self._backend.wait_ready(timeout)
            except TimeoutError:
                yield WaitingForModel() if timeout == 0.0 else None
            except Exception as error:
                if timeout > 0.0:
                    raise _as_shown(error) from error
                # It failed before this turn: whatever was wrong may be right by now.
                self._backend.start()
            timeout = TICK_SECONDS
        return None

    def _wait_for_turn(self, task: TurnTask) -> Generator[ChatEvent | None, None, bool]:
        """Wait until no other turn is answered; False when this one was stopped before."""
        if self._turns.lock.acquire(blocking=False):
            return True
        yield WaitingForModel()
        while not self._is_stopped:
            if self._turns.lock.acquire(timeout=TICK_SECONDS):
                return True
            yield None
        return False

    def _answer(
        self, task: TurnTask, info: ModelInfo
    ) -> Generator[ChatEvent | None, None, TurnResult]:
        """Let the backend answer; what came of it, saved. Raises ChatcacheError."""
        path = read_journal(self._store, task, info)
        request = turn_request(self._store, task, info, path)
        keeper = self._keeper = AnswerKeeper(self._store, task, info, request, path)
        stream = self._stream = self._backend.ask(request)
        if self._is_stopped:  # while there was no stream to tell
            stream.stop()
        closing: TurnFinished | TurnFailed | None = None
        try:
            while closing is None:
                try:
                    event = stream.get(TICK_SECONDS)
                except TimeoutError:
                    yield None
                    continue
                if isinstance(event, TextDelta):
                    keeper.add(event)
                elif isinstance(event, TurnPlanned):
                    keeper.plan(event)
                elif isinstance(event, TurnFinished | TurnFailed):
                    closing = event
                    break
                yield event
            keeper.save(_result_of(closing))
        except BaseException:
            # The reader has gone (closed, interrupted), or the disk is full: stop and keep.
            self._end_early(stream, closing)
            raise
        if isinstance(closing, TurnFailed):
            raise _as_shown(closing.error)
        return closing.result

    def _end_early(self, stream: TurnStream, closing: TurnFinished | TurnFailed | None) -> None:
        keeper = self._keeper
        try:
            stream.close()
            deadline = time.monotonic() + DRAIN_SECONDS
            while closing is None:
                event = stream.get(max(0.0, deadline - time.monotonic()))
                if event is None:
                    break
                if isinstance(event, TurnFinished | TurnFailed):
                    closing = event
        except TimeoutError:
            pass  # it hangs
        finally:
            if keeper is not None:
                keeper.save(_result_of(closing) if closing else None)

    def _answered(self, task: TurnTask, info: ModelInfo | None, result: TurnResult) -> AnswerSaved:
        saved = self._keeper.saved if self._keeper else None
        if saved is not None:
            message = saved.node.message
            result = replace(result, text=message.text, reasoning=message.reasoning)
        return AnswerSaved(
            session_id=task.session_id,
            session_name=task.session_name,
            turn=task.turn,
            node_id=saved.node.node_id if saved else None,
            model=info.model if info else "",
            backend=info.backend if info else "local",
            result=result,
            remark=cut_warning.remark(self._store, task, info, result) if info else "",
            quantization=info.quantization if info else "",
        )


class RunningTurns:
    """The turns of one service that are answered or wait for it.

    lock: held while the backend works for one of them. seen: where each session was last seen;
    an answer moves it.
    """

    def __init__(self, seen: dict[str, int | None]) -> None:
        self.lock = threading.Lock()
        self.seen = seen
        self._turns: set[ChatTurn] = set()
        self._changed = threading.Condition()

    @contextmanager
    def running(self, turn: ChatTurn) -> Iterator[None]:
        with self._changed:
            self._turns.add(turn)
        try:
            yield
        finally:
            with self._changed:
                self._turns.discard(turn)
                self._changed.notify_all()

    def stop(self) -> None:
        """End all of them."""
        with self._changed:
            turns = list(self._turns)
        for turn in turns:
            turn.stop()

    def wait(self, seconds: float) -> None:
        """Until all have ended, in the threads that read them."""
        with self._changed:
            self._changed.wait_for(lambda: not self._turns, seconds)


def _result_of(event: TurnFinished | TurnFailed) -> TurnResult | None:
    return event.result if isinstance(event, TurnFinished) else event.partial


def _as_shown(error: Exception) -> ChatcacheError:
    """An error of the backend as one that can be shown; an unexpected one is a bug: exit code 1."""
    if isinstance(error, ChatcacheError):
        return error
    wrapped = ChatcacheError(
        f"The model failed unexpectedly: {type(error).__name__}: {error}.",
        "What was said is kept. The log has the details.",
    )
    wrapped.__cause__ = error
    return wrapped
