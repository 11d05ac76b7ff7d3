"""The local backend as the front end sees it: starts the engine process and talks to it.

Owns: the life of the engine (start, restart after a crash, end) and the routing of its events. No
torch here: everything that computes is in the other process.
"""

from __future__ import annotations

import itertools
import logging
import os
import queue
import subprocess
import sys
import sysconfig
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from chatcache.backends.base import (
    BackendEvent,
    BackendFailed,
    CacheSnapshot,
    CostEstimate,
    ModelInfo,
    ModelLoading,
    ModelReady,
    TurnEvent,
    TurnFailed,
    TurnFinished,
    TurnRequest,
)
from chatcache.backends.local.partial import PartialAnswer
from chatcache.backends.local.settings import EngineSettings
from chatcache.backends.local.wire import (
    Channel,
    ChannelClosedError,
    CloseEngine,
    CostsEstimated,
    EstimateCosts,
    RunTurn,
    StopTurn,
    channel_pair,
)
from chatcache.errors import EngineDiedError, UnavailableError

log = logging.getLogger(__name__)

ENGINE_MODULE = "chatcache.backends.local.process"
MAX_RESTARTS = 3
RESTART_WINDOW_SECONDS = 60.0
DRAIN_SECONDS = 60.0
_EXIT_SECONDS = 5.0
_MAX_LOG_BYTES = 5 << 20

Listener = Callable[[BackendEvent], None]
State = Literal["idle", "loading", "ready", "failed", "closed"]


@dataclass(slots=True)
class _Engine:
    """One engine process and our end of its channel."""

    process: subprocess.Popen[bytes]
    channel: Channel


@dataclass(slots=True)
class _Turn:
    """A turn that was asked for; its events arrive in `events`."""

    request: TurnRequest
    events: queue.SimpleQueue[TurnEvent] = field(default_factory=queue.SimpleQueue)
    partial: PartialAnswer = field(default_factory=PartialAnswer)


class LocalBackend:
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
        self._settings = settings
        self._command = tuple(command)
        self._drain_seconds = drain_seconds
        self._changed = threading.Condition(threading.RLock())
        self._state: State = "idle"
        self._engine: _Engine | None = None
        self._pumps: list[threading.Thread] = []
        self._info: ModelInfo | None = None
        self._error: Exception | None = None
        self._deaths: deque[float] = deque()
        self._turns: dict[str, _Turn] = {}
        self._calls: dict[int, queue.SimpleQueue[CostsEstimated]] = {}
        self._call_ids = itertools.count()
        self._listeners: list[Listener] = []
        self._latest: dict[str, BackendEvent] = {}

    def start(self) -> None:
        """Begin to load; returns at once. Does nothing when the engine is there already."""
        with self._changed:
            if self._state in ("idle", "failed"):
                self._start_engine()
            error = self._error
        if error is not None:
            self._announce(BackendFailed(error))

    def subscribe(self, listener: Listener) -> Callable[[], None]:
        """Call `listener` for each event from now on; it is told the present state at once."""
        with self._changed:
            self._listeners.append(listener)
            known = list(self._latest.values())
        for event in known:
            self._tell([listener], event)

        def unsubscribe() -> None:
            with self._changed:
                if listener in self._listeners:
                    self._listeners.remove(listener)

        return unsubscribe

    def wait_ready(self, timeout: float | None = None) -> ModelInfo:
        """Block until the model is loaded. Raises what made loading fail."""
        with self._changed:
            if self._state == "idle":
                self._start_engine()
            is_settled = self._changed.wait_for(lambda: self._state != "loading", timeout)
            if not is_settled:
                raise UnavailableError(
                    f"The model is still being loaded after {timeout:g} s.", "Wait a little longer."
                )
            if self._state != "ready" or self._info is None:
                raise self._error or _closed_error()
            return self._info

    def generate(self, request: TurnRequest) -> Iterator[TurnEvent]:
        """The events of one turn; it waits for the model to be loaded. Never raises."""
        turn = _Turn(request)
        try:
            self._submit(turn)
            while True:
                event = turn.events.get()
                yield event
                if isinstance(event, (TurnFinished, TurnFailed)):
                    return
        finally:
            self._forget(turn)

    def stop(self) -> None:
        """End the turn in progress within one decode step or one prefill chunk."""
        with self._changed:
            turn_id = next(iter(self._turns), None)
            if turn_id is not None:
                self._send(StopTurn(turn_id))

    def estimate(self, journals: Sequence[tuple[int, ...]]) -> list[CostEstimate]:
        """The cost of continuing each journal. Raises UnavailableError while loading."""
        answers: queue.SimpleQueue[CostsEstimated] = queue.SimpleQueue()
        with self._changed:
            if self._state != "ready":
                raise UnavailableError("The model is not loaded yet.", "Wait until it is.")
            call_id = next(self._call_ids)
            self._calls[call_id] = answers
            self._send(EstimateCosts(call_id, tuple(tuple(journal) for journal in journals)))
        answer = answers.get()
        if answer.error is not None:
            raise answer.error
        return list(answer.estimates)

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
            _end_process(engine.process, self._drain_seconds if was_ready else 0.0)
        for pump in self._pumps:
            pump.join()
        if engine is None:
            self._fail_pending(_closed_error())

    # the engine process; all of these are called with the lock held

    def _start_engine(self) -> None:
        self._state, self._info, self._error = "loading", None, None
        channel, theirs = channel_pair()
        log_file = open_log(self._settings.log_path)
        try:
            process = subprocess.Popen(
                [*self._command, "--fd", str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=log_file,
                stderr=log_file,
                pass_fds=[theirs.fileno()],
                env=_engine_environment(),
            )
        except OSError as error:
            channel.close()
            self._fail(EngineDiedError(f"The engine could not be started: {error.strerror}."))
            return
        finally:
            theirs.close()
            if log_file is not subprocess.DEVNULL:
                os.close(log_file)
        self._engine = _Engine(process, channel)
        self._send(self._settings)
        for turn in self._turns.values():
            self._send(RunTurn(turn.request))
        pump = threading.Thread(
            target=self._pump, args=(self._engine,), name="engine-events", daemon=True
        )
        self._pumps = [old for old in self._pumps if old.is_alive()] + [pump]
        pump.start()

    def _send(self, message: object) -> None:
        """To the engine. If it has just died, the pump is about to notice and says so."""
        if self._engine is None:
            return
        try:
            self._engine.channel.send(message)
        except ChannelClosedError:
            log.info("the engine is gone, %s was not delivered", type(message).__name__)

    def _submit(self, turn: _Turn) -> None:
        with self._changed:
            if self._state == "closed":
                turn.events.put(TurnFailed(turn.request.turn_id, _closed_error()))
                return
            self._turns[turn.request.turn_id] = turn
            if self._state in ("idle", "failed"):
                self._start_engine()  # which sends the turns that wait
            else:
                self._send(RunTurn(turn.request))

    def _forget(self, turn: _Turn) -> None:
        """The caller is done with a turn; one that still runs is stopped."""
        with self._changed:
            if self._turns.get(turn.request.turn_id) is turn:
                del self._turns[turn.request.turn_id]
                self._send(StopTurn(turn.request.turn_id))

    # events; in the pump's thread

    def _pump(self, engine: _Engine) -> None:
        while True:
            try:
                message = engine.channel.receive()
            except ChannelClosedError:
                break
            self._dispatch(message)
        self._on_engine_end(engine)

    def _dispatch(self, message: object) -> None:
        if isinstance(message, CostsEstimated):
            with self._changed:
                answers = self._calls.pop(message.call_id, None)
            if answers is not None:
                answers.put(message)
        elif isinstance(message, BackendEvent):
            self._on_backend_event(message)
        elif isinstance(message, TurnEvent):
            self._on_turn_event(message)

    def _on_turn_event(self, event: TurnEvent) -> None:
        with self._changed:
            turn = self._turns.get(event.turn_id)
            if turn is None:
                return
            if isinstance(event, (TurnFinished, TurnFailed)):
                del self._turns[event.turn_id]
        turn.partial.note(event)
        turn.events.put(event)

    def _on_backend_event(self, event: BackendEvent) -> None:
        with self._changed:
            if self._state == "closed":
                return
            if isinstance(event, ModelReady):
                self._state, self._info = "ready", event.info
            elif isinstance(event, BackendFailed):
                self._fail(event.error)
            self._changed.notify_all()
        self._announce(event)

    def _fail(self, error: Exception) -> None:
        """There is no engine, and there will be none until somebody asks again."""
        self._state, self._info, self._error = "failed", None, error
        self._fail_pending(error)
        self._changed.notify_all()

    def _fail_pending(self, error: Exception) -> None:
        turns, self._turns = self._turns, {}
        for turn_id, turn in turns.items():
            turn.events.put(TurnFailed(turn_id, error, turn.partial.result()))
        calls, self._calls = self._calls, {}
        for call_id, answers in calls.items():
            answers.put(CostsEstimated(call_id, error=error))

    def _on_engine_end(self, engine: _Engine) -> None:
        """The channel ended: after close(), after a failed load, or because the engine died."""
        code = _end_process(engine.process, _EXIT_SECONDS)
        engine.channel.close()
        with self._changed:
            if self._engine is not engine:
                return
            self._engine = None
            if self._state == "closed":
                self._fail_pending(_closed_error())
            if self._state in ("closed", "failed"):
                return
            event = self._note_death(code)
        self._announce(event)
        with self._changed:
            if event.will_restart and self._state == "loading":
                self._start_engine()

    def _note_death(self, code: int) -> BackendFailed:
        """Tell the turn in progress, and decide whether to try again."""
        error = EngineDiedError(
            f"The engine process ended unexpectedly ({_exit_words(code)}).",
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

    def _announce(self, event: BackendEvent) -> None:
        """Remember what a new listener must know, and tell the present ones."""
        with self._changed:
            if isinstance(event, (ModelLoading, ModelReady, BackendFailed)):
                self._latest["model"] = event
            elif isinstance(event, CacheSnapshot):
                self._latest["cache"] = event
            listeners = list(self._listeners)
        self._tell(listeners, event)

    def _tell(self, listeners: Sequence[Listener], event: BackendEvent) -> None:
        for listener in listeners:
            try:
                listener(event)
            except Exception:
                log.exception("a listener failed on %s", type(event).__name__)


def open_log(path: Path) -> int:
    """The descriptor that the engine's output goes to; a log that cannot be written is no log.

    Only its owner may read it. It starts anew when it has grown large; one older log is kept.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        if path.exists() and path.stat().st_size > _MAX_LOG_BYTES:
            path.replace(path.with_suffix(path.suffix + ".1"))
        return os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    except OSError:
        log.warning("the engine's log %s cannot be written", path)
        return subprocess.DEVNULL


def _engine_environment() -> dict[str, str]:
    """Ours; plus the place of a chatcache that is not installed, but run from a checkout.

    The engine is started with -P: a file `torch.py` in the user's directory must not be imported.
    """
    environment = dict(os.environ)
    root = str(Path(__file__).resolve().parents[3])
    if root not in (sysconfig.get_path("purelib"), sysconfig.get_path("platlib")):
        others = environment.get("PYTHONPATH")
        environment["PYTHONPATH"] = os.pathsep.join([root, *([others] if others else [])])
    return environment


def _end_process(process: subprocess.Popen[bytes], patience_seconds: float) -> int:
    """Wait for the end of a process; after that, make it end. Returns its exit code."""
    for seconds, end in (
        (patience_seconds, process.terminate),
        (_EXIT_SECONDS, process.kill),
    ):
        try:
            return process.wait(seconds)
        except subprocess.TimeoutExpired:
            end()
    return process.wait()


def _exit_words(code: int) -> str:
    if code >= 0:
        return f"exit code {code}"
    names = {9: "killed; perhaps the memory was full", 11: "segmentation fault", 6: "aborted"}
    return f"signal {-code}, {names[-code]}" if -code in names else f"signal {-code}"


def _closed_error() -> UnavailableError:
    return UnavailableError("The engine has been closed.", "Start chatcache again.")
