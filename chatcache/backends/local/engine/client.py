"""The local backend as the front end sees it: starts the engine process and talks to it.

Owns: the life of the engine (start, restart after a crash, end) and the routing of its events. No
torch here: everything that computes is in the other process.
"""

from __future__ import annotations

import itertools
import logging
import queue
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from chatcache.backends.base import (
    BackendEvent,
    BackendFailed,
    CacheEvent,
    CostEstimate,
    ModelReady,
    Prepare,
    TurnEvent,
    TurnFailed,
    TurnFinished,
    TurnRequest,
    TurnStream,
)
from chatcache.backends.life import BackendLife, closed_error
from chatcache.backends.local.engine.child_process import (
    EXIT_SECONDS,
    end_process,
    exit_words,
    start_process,
)
from chatcache.backends.local.engine.settings import EngineSettings
from chatcache.backends.local.engine.wire import (
    CancelPrepare,
    Channel,
    ChannelClosedError,
    CloseEngine,
    CostsEstimated,
    EstimateCosts,
    PrepareTurn,
    RunTurn,
    SpillAll,
    StopTurn,
)
from chatcache.errors import EngineDiedError, UnavailableError
from chatcache.token_ids import TokenIds

log = logging.getLogger(__name__)

ENGINE_MODULE = "chatcache.backends.local.engine.server"
MAX_RESTARTS = 3
RESTART_WINDOW_SECONDS = 60.0
DRAIN_SECONDS = 60.0


@dataclass(slots=True)
class _Engine:
    """One engine process and our end of its channel."""

    process: subprocess.Popen[bytes]
    channel: Channel


class LocalBackend(BackendLife):
    """A `Backend` on a model of this machine, in a process of its own.

    `command` starts the engine; tests give one that needs no model.
    """

    def __init__(
        self,
        settings: EngineSettings,
        *,
        command: Sequence[str] = (sys.executable, "-P", "-m", ENGINE_MODULE),
        drain_seconds: float = DRAIN_SECONDS,
    ) -> None:
        super().__init__()
        self._settings = settings
        self._command = tuple(command)
        self._drain_seconds = drain_seconds
        self._engine: _Engine | None = None
        self._readers: list[threading.Thread] = []
        self._deaths: deque[float] = deque()
        self._turns: dict[str, tuple[TurnRequest, TurnStream]] = {}
        self._calls: dict[int, queue.SimpleQueue[CostsEstimated]] = {}
        self._call_ids = itertools.count()

    def start(self) -> None:
        """Begin to load; returns at once. Does nothing when the engine is there already."""
        with self._changed:
            if self._state in ("idle", "failed"):
                self._start_engine()
        self._announce_failed_start()

    def ask(self, request: TurnRequest) -> TurnStream:
        """Begin a turn; it waits for the model to be loaded. Never raises."""
        turn_id = request.turn_id
        stream = TurnStream(lambda: self._stop(turn_id))
        with self._changed:
            if self._state == "closed":
                stream.end(TurnFailed(turn_id, closed_error()))
                return stream
            self._turns[turn_id] = (request, stream)
            if self._state in ("idle", "failed"):
                self._start_engine()  # which sends the turns that wait
            else:
                self._send(RunTurn(request))
        return stream

    def _stop(self, turn_id: str) -> None:
        with self._changed:
            if turn_id in self._turns:
                self._send(StopTurn(turn_id))

    def estimate(self, journals: Sequence[TokenIds]) -> list[CostEstimate]:
        """The cost of continuing each journal. Raises UnavailableError while loading."""
        answers: queue.SimpleQueue[CostsEstimated] = queue.SimpleQueue()
        with self._changed:
            if self._state != "ready":
                raise UnavailableError("The model is not loaded yet.", "Wait until it is.")
            call_id = next(self._call_ids)
            self._calls[call_id] = answers
            self._send(EstimateCosts(call_id, tuple(journals)))
        answer = answers.get()
        if answer.error is not None:
            raise answer.error
        return list(answer.estimates)

    def prepare(self, request: Prepare) -> bool:
        """Begin idle work; False when a turn runs or the model is not ready."""
        with self._changed:
            is_idle = self._state == "ready" and not self._turns
            if is_idle:
                self._send(PrepareTurn(request))
            return is_idle

    def cancel_prepare(self) -> None:
        """End idle work, if there is any."""
        with self._changed:
            if self._state == "ready":
                self._send(CancelPrepare())

    def spill(self, segment_id: str | None = None) -> bool:
        """Have written to disk what is in memory alone; False when not ready."""
        with self._changed:
            is_ready = self._state == "ready"
            if is_ready:
                self._send(SpillAll(segment_id))
            return is_ready

    def close(self) -> None:
        """Write out what is still to be spilled, then end the engine. May be called again."""
        with self._changed:
            is_first = self._state != "closed"
            was_ready = self._state == "ready"
            engine = self._engine
            self._state, self._error = "closed", None
            if engine is not None and was_ready:
                self._send(CloseEngine())
            self._changed.notify_all()
        if engine is not None and is_first:
            end_process(engine.process, self._drain_seconds if was_ready else 0.0)
        for reader in self._readers:
            if reader is not threading.current_thread():  # a listener may close us
                reader.join()
        if engine is None:
            self._fail_pending(closed_error())

    # the engine process; all of these are called with the lock held

    def _start_engine(self) -> None:
        self._state, self._info, self._error = "loading", None, None
        try:
            process, channel = start_process(self._command, self._settings.log_path)
        except OSError as error:
            hint = f"Check that {self._command[0]} can be run, and the memory that is free."
            self._fail(EngineDiedError(f"The engine could not be started: {error.strerror}.", hint))
            return
        self._engine = _Engine(process, channel)
        self._send(self._settings)
        for request, stream in self._turns.values():
            self._send(RunTurn(request))
            if stream.is_stopped:  # perhaps when there was no engine to tell it to
                self._send(StopTurn(request.turn_id))
        reader = threading.Thread(
            target=self._read, args=(self._engine,), name="engine-events", daemon=True
        )
        self._readers = [old for old in self._readers if old.is_alive()] + [reader]
        reader.start()

    def _send(self, message: object) -> None:
        """To the engine. If it has just died, the reader is about to notice and says so."""
        if self._engine is None:
            return
        try:
            self._engine.channel.send(message)
        except ChannelClosedError:
            log.info("the engine is gone, %s was not delivered", type(message).__name__)

    # events; in the thread that reads the channel

    def _read(self, engine: _Engine) -> None:
        while True:
            try:
                message = engine.channel.receive()
            except ChannelClosedError:
                break
            if isinstance(message, TurnEvent):
                self._on_turn_event(message)
            elif isinstance(message, BackendEvent):
                self._on_backend_event(message)
            elif isinstance(message, CostsEstimated):
                self._on_costs(message)
        self._on_engine_end(engine)

    def _on_turn_event(self, event: TurnEvent) -> None:
        with self._changed:
            if event.turn_id not in self._turns:
                return
            _, stream = self._turns[event.turn_id]
            if isinstance(event, (TurnFinished, TurnFailed)):
                del self._turns[event.turn_id]
                stream.end(event)
            else:
                stream.put(event)

    def _on_costs(self, costs: CostsEstimated) -> None:
        with self._changed:
            answers = self._calls.pop(costs.call_id, None)
        if answers is not None:
            answers.put(costs)

    def _on_backend_event(self, event: BackendEvent) -> None:
        with self._changed:
            # What the last spills came to is still told; the rest is of no use any more.
            if self._state == "closed" and not isinstance(event, CacheEvent):
                return
            if isinstance(event, ModelReady):
                self._state, self._info = "ready", event.info
            elif isinstance(event, BackendFailed):
                self._fail(event.error)
            self._changed.notify_all()
        self._listeners.tell(event)

    def _fail(self, error: Exception) -> None:
        """There is no engine, and there will be none until somebody asks again."""
        self._state, self._info, self._error = "failed", None, error
        self._fail_pending(error)
        self._changed.notify_all()

    def _fail_pending(self, error: Exception) -> None:
        turns, self._turns = self._turns, {}
        for turn_id, (_, stream) in turns.items():
            stream.end(TurnFailed(turn_id, error))
        calls, self._calls = self._calls, {}
        for call_id, answers in calls.items():
            answers.put(CostsEstimated(call_id, error=error))

    def _on_engine_end(self, engine: _Engine) -> None:
        """The channel ended: after close(), after a failed load, or because the engine died."""
        code = end_process(engine.process, EXIT_SECONDS)
        engine.channel.close()
        with self._changed:
            if self._engine is not engine:
                return
            self._engine = None
            if self._state == "closed":
                self._fail_pending(closed_error())
            if self._state in ("closed", "failed"):
                return
            event = self._note_death(code)
        self._listeners.tell(event)
        with self._changed:
            if event.will_restart and self._state == "loading":
                self._start_engine()
        if event.will_restart:
            self._announce_failed_start()

    def _announce_failed_start(self) -> None:
        """Tell the listeners of an engine that could not even be started."""
        with self._changed:
            error = self._error
        if error is not None:
            self._listeners.tell(BackendFailed(error))

    def _note_death(self, code: int) -> BackendFailed:
        """Tell the turn in progress, and decide whether to try again."""
        error = EngineDiedError(
            f"The engine process ended unexpectedly ({exit_words(code)}).",
            f"Nothing that was said is lost; {self._settings.log_path} may tell why.",
        )
        now = time.monotonic()
        self._deaths.append(now)
        while now - self._deaths[0] > RESTART_WINDOW_SECONDS:
            self._deaths.popleft()
        will_restart = len(self._deaths) <= MAX_RESTARTS
        self._fail(error)
        if will_restart:
            self._state, self._error = "loading", None
        return BackendFailed(error, will_restart=will_restart)
