"""The local backend as the front end sees it: finds or starts an engine and talks to it.

Owns the life of the connection (opening, a new engine after one that died or left, the end) and the
routing of its events. No torch here: everything that computes is in the other process.
"""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from functools import partial
from typing import Any

from chatcache import __version__
from chatcache.backends.base import (
    BackendEvent,
    BackendFailed,
    CacheEvent,
    CostEstimate,
    EngineUse,
    ModelLoading,
    ModelReady,
    Prepare,
    TurnEvent,
    TurnRequest,
    TurnStream,
)
from chatcache.backends.life import BackendLife, closed_error
from chatcache.backends.local.engine import wire
from chatcache.backends.local.engine.channel import ChannelClosedError
from chatcache.backends.local.engine.child_process import end_process
from chatcache.backends.local.engine.deaths import Deaths
from chatcache.backends.local.engine.opening import OpenedEngine, open_own, open_resident
from chatcache.backends.local.engine.pending import Pending
from chatcache.backends.local.engine.residence import Residence
from chatcache.backends.local.engine.room import engine_bytes
from chatcache.backends.local.engine.settings import EngineSettings
from chatcache.backends.questions import Answer, Question
from chatcache.errors import EngineDiedError, UnavailableError
from chatcache.machine import num_memory_kills
from chatcache.token_ids import TokenIds

log = logging.getLogger(__name__)

ENGINE_MODULE = "chatcache.backends.local.engine.process"
COMMAND = (sys.executable, "-P", "-m", ENGINE_MODULE)
DRAIN_SECONDS = 60.0
MAX_UNHEARD = 50  # engines in a row that were found and said nothing


class LocalBackend(BackendLife):
    """A `Backend` on a model of this machine, in a process of its own.

    `residence` says where an engine lives that other front ends use as well, and that may outlive
    this one; None: the engine is this front end's own, and ends with it. `command` starts an
    engine; tests give one that needs no model. `front_end` is what others are told of this one.
    """

    def __init__(
        self,
        settings: EngineSettings,
        residence: Residence | None = None,
        *,
        front_end: str = "",
        command: Sequence[str] = COMMAND,
        drain_seconds: float = DRAIN_SECONDS,
    ) -> None:
        super().__init__()
        self._settings = settings
        self._residence = residence
        self._front_end = front_end
        self._command = tuple(command)
        self._drain_seconds = drain_seconds
        self._engine: OpenedEngine | None = None
        self._readers: list[threading.Thread] = []
        self._deaths = Deaths(settings.model, settings.log_path, partial(engine_bytes, settings))
        self._num_memory_kills = 0
        self._pending = Pending()
        self._goodbye: str | None = None
        self._is_accepted = False
        self._num_unheard = 0
        self._use: EngineUse | None = None
        self._wanted_at = 0.0

    def start(self) -> None:
        """Begin to load; returns at once. Does nothing when the engine is there already."""
        with self._changed:
            if self._state in ("idle", "failed"):
                self._open_engine()

    def ask(self, request: TurnRequest) -> TurnStream:
        """Begin a turn; it waits for the model to be loaded. Never raises."""
        turn_id = request.turn_id
        with self._changed:
            stream = self._pending.add(request, lambda: self._stop(turn_id))
            if self._state == "closed":
                self._pending.fail(closed_error())
            elif self._state in ("idle", "failed"):
                self._open_engine()  # which sends the turns that wait
            else:
                self._send(wire.RunTurn(request))
        return stream

    def _stop(self, turn_id: str) -> None:
        with self._changed:
            if self._pending.has(turn_id):
                self._send(wire.StopTurn(turn_id))

    def engine_use(self) -> EngineUse | None:
        """How this front end came to its engine; None before it did."""
        with self._changed:
            use = self._use
            if use is None:
                return None
            return EngineUse(use.is_resident, use.is_started, self._pending.waited_ms, use.load_ms)

    def estimate(self, journals: Sequence[TokenIds]) -> list[CostEstimate]:
        """The cost of continuing each journal. Raises UnavailableError while loading."""
        _, told = self._call(lambda call_id: wire.EstimateCosts(call_id, tuple(journals)))
        costs: wire.CostsEstimated = told.result()
        return list(costs.estimates)

    def study(self, question: Question, timeout: float | None = None) -> Answer:
        """What the engine answers. Raises its error, or UnavailableError."""
        call_id, told = self._call(
            lambda call_id: wire.AskStudy(call_id, wire.QUESTIONS.encode(question))
        )
        try:
            studied: wire.Studied = told.result(timeout)
        except TimeoutError:
            with self._changed:
                self._pending.forget(call_id)
                self._send(wire.StopStudy(call_id))
            raise UnavailableError(
                f"The engine had no answer after {timeout:g} s.",
                "Ask again when it has less to do.",
            ) from None
        answer: Answer = wire.QUESTIONS.decode(studied.answer)
        return answer

    def _call(self, message: Callable[[int], object]) -> tuple[int, Future[Any]]:
        """Send a message that is answered with another one, which will be there."""
        with self._changed:
            if self._state != "ready":
                raise UnavailableError("The model is not loaded yet.", "Wait until it is.")
            call_id, told = self._pending.call()
            self._send(message(call_id))
            return call_id, told

    def prepare(self, request: Prepare) -> bool:
        """Begin idle work; False when a turn runs or the model is not ready."""
        with self._changed:
            is_idle = self._state == "ready" and not self._pending.has_turns
            if is_idle:
                self._send(wire.PrepareTurn(request))
            return is_idle

    def cancel_prepare(self) -> None:
        """End idle work, if there is any."""
        with self._changed:
            if self._state == "ready":
                self._send(wire.CancelPrepare())

    def spill(self, segment_id: str | None = None) -> bool:
        """Have written to disk what is in memory alone; False when not ready."""
        with self._changed:
            is_ready = self._state == "ready"
            if is_ready:
                self._send(wire.SpillAll(segment_id))
            return is_ready

    def close(self) -> None:
        """Leave. An engine that ends with this front end writes out what is still to be spilled
        before this returns; one that stays does so by itself. May be called again."""
        with self._changed:
            is_first = self._state != "closed"
            was_ready = self._state == "ready"
            engine = self._engine
            self._state, self._error = "closed", None
            self._send(wire.Leave())
            self._changed.notify_all()
        if engine is not None and is_first:
            self._see_off(engine, was_ready=was_ready)
        self._join_readers()
        with self._changed:
            self._pending.fail(closed_error())

    def _see_off(self, engine: OpenedEngine, *, was_ready: bool) -> None:
        """Wait for an engine that ends with us, but not for ever."""
        patience = self._drain_seconds if was_ready else 0.0
        if not engine.is_resident and engine.process is not None:
            end_process(engine.process, patience)
        elif self._stays():
            engine.channel.close()
        else:
            self._join_readers(patience)  # it closes the connection when it stays, or has ended
            engine.channel.close()

    def _join_readers(self, timeout: float | None = None) -> None:
        for reader in self._readers:
            if reader is not threading.current_thread():  # a listener may close us
                reader.join(timeout)

    def _stays(self) -> bool:
        return self._residence is not None and self._residence.keep_alive_seconds != 0.0

    # the engine

    def _open_engine(self) -> None:
        """With the lock held. A thread finds or starts an engine, and then reads its events."""
        self._state, self._info, self._error = "loading", None, None
        self._engine, self._wanted_at = None, time.monotonic()
        reader = threading.Thread(target=self._be_served, name="engine-events", daemon=True)
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

    # in the thread that reads

    def _be_served(self) -> None:
        """By one engine after the other, until there is no need of one, or no hope."""
        is_again = True
        while is_again:
            try:
                engine = self._open()
            except OSError as error:
                hint = f"Check that {self._command[0]} can be run, and the memory that is free."
                why = error.strerror or str(error)
                self._give_up(EngineDiedError(f"The engine could not be started: {why}.", hint))
                return
            if engine is None:
                return
            is_again = self._read(engine)

    def _open(self) -> OpenedEngine | None:
        """None: nobody wants it any more. Raises OSError."""
        residence, engine = self._residence, None
        if residence is not None:
            try:
                engine = open_resident(
                    self._settings, residence, self._command, lambda: self._state == "loading"
                )
            except OSError as error:
                why = f"{error.filename or residence.directory}: {error.strerror or error}"
                text = f"the engine of this chat is its own, and does not stay ({why})"
                self._listeners.tell(CacheEvent(time.time(), "warning", text))
                residence = None
        if residence is None:
            engine = open_own(self._settings, self._command)
        if engine is None:
            return None
        keep_alive = 0.0 if residence is None else residence.keep_alive_seconds
        with self._changed:
            self._engine, self._goodbye, self._is_accepted = engine, None, False
            self._num_memory_kills = num_memory_kills()
            self._send(
                wire.Hello(wire.PROTOCOL, __version__, self._front_end, self._settings, keep_alive)
            )
            if self._state == "closed":  # while it was opened
                self._send(wire.Leave())
            for message in self._pending.messages():
                self._send(message)
        return engine

    def _read(self, engine: OpenedEngine) -> bool:
        """Take what the engine says, to its end; returns whether there is to be another."""
        while True:
            try:
                message = engine.channel.receive()
            except ChannelClosedError:
                break
            if isinstance(message, TurnEvent):
                with self._changed:
                    self._pending.take(message)
            elif isinstance(message, BackendEvent):
                self._on_backend_event(message, engine)
            elif isinstance(message, (wire.CostsEstimated, wire.Studied)):
                with self._changed:
                    self._pending.answer(message)
            elif isinstance(message, wire.Refused):
                self._on_refused(message)
            elif isinstance(message, wire.Goodbye):
                self._goodbye = message.reason
            elif isinstance(message, wire.Accepted):
                self._is_accepted, self._num_unheard = True, 0
                if message.note:
                    self._listeners.tell(CacheEvent(time.time(), "warning", message.note))
        return self._on_engine_end(engine)

    def _on_backend_event(self, event: BackendEvent, engine: OpenedEngine) -> None:
        with self._changed:
            # What the last spills came to is still told; the rest is of no use any more.
            if self._state == "closed" and not isinstance(event, CacheEvent):
                return
            if isinstance(event, ModelReady):
                load_ms = 1000 * (time.monotonic() - self._wanted_at)
                self._use = EngineUse(engine.is_resident, engine.is_started, 0.0, load_ms)
                self._state, self._info = "ready", event.info
            elif isinstance(event, BackendFailed):
                self._fail(event.error)
            self._changed.notify_all()
        self._listeners.tell(event)

    def _on_refused(self, refused: wire.Refused) -> None:
        """Asked again there is another engine, unless we do not understand each other."""
        self._goodbye = refused.detail
        if refused.reason == "protocol":
            error = UnavailableError(
                f"The engine that is running cannot be used: {refused.detail}.",
                "`chatcache engine stop --all` ends it.",
            )
            self._give_up(error)

    def _give_up(self, error: Exception) -> None:
        with self._changed:
            if self._state == "closed":
                self._pending.fail(closed_error())
                return
            self._fail(error)
        self._listeners.tell(BackendFailed(error))

    def _fail(self, error: Exception) -> None:
        """There is no engine, and there will be none until somebody asks again."""
        self._state, self._info, self._error = "failed", None, error
        self._pending.fail(error)
        self._changed.notify_all()

    def _on_engine_end(self, engine: OpenedEngine) -> bool:
        """The channel ended: after close(), after a failed load, in good order, or because the
        engine died. Returns whether there is to be another engine."""
        engine.channel.close()
        code = engine.exit_code(is_left=self._state == "closed" and self._goodbye is None)
        with self._changed:
            if self._engine is not engine:  # somebody has asked again meanwhile
                return False
            self._engine = None
            if self._state == "closed":
                self._pending.fail(closed_error())
            if self._state in ("closed", "failed"):
                return False
            if self._goodbye is not None:
                return self._on_goodbye(self._goodbye)
            if not self._is_accepted and code in (None, 0) and self._num_unheard < MAX_UNHEARD:
                self._num_unheard += 1  # it was about to end when it was found
                return True
            event = self._note_death(code)
        self._listeners.tell(event)
        with self._changed:
            return event.will_restart and self._state == "loading"

    def _on_goodbye(self, reason: str) -> bool:
        """It ended in good order. What it has not begun is asked of the next engine; without such
        there is none until somebody asks."""
        error = EngineDiedError(f"The engine has ended: {reason}.", "It starts with the next turn.")
        self._pending.fail(error, only_begun=True)
        self._state, self._info, self._wanted_at = "loading", None, time.monotonic()
        if not self._is_accepted or self._pending.has_turns:
            return True
        self._state = "idle"
        self._changed.notify_all()
        self._listeners.tell(ModelLoading(f"{reason}; it starts with the next message"))
        return False

    def _note_death(self, code: int | None) -> BackendFailed:
        """Tell the turns in progress, and decide whether to try again."""
        was_loading = self._state == "loading"
        death = self._deaths.note(
            code,
            time.monotonic(),
            was_loading=was_loading,
            was_memory_full=num_memory_kills() > self._num_memory_kills,
        )
        if death.may_restart:
            self._pending.fail(death.error, only_begun=True)
            self._state, self._info = "loading", None
            self._changed.notify_all()
        else:
            self._fail(death.error)
        return BackendFailed(death.error, will_restart=death.may_restart)
