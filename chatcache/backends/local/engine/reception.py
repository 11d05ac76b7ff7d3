"""Who comes to an engine, and who leaves it: connections, greetings, and what is asked.

Owns the threads that read, whom the engine takes in, and what the last one that leaves wants. What
is asked goes to the schedule; the state of the engine is told at once. Computes nothing.
"""

from __future__ import annotations

import errno
import logging
import os
import queue
import socket
import threading
import time
from typing import Protocol

from chatcache import __version__
from chatcache.backends.base import (
    EngineStatus,
    ModelInfo,
    Prepare,
    Prepared,
    TurnFinished,
    nothing_said,
)
from chatcache.backends.engine_status import EngineState
from chatcache.backends.local.engine import wire
from chatcache.backends.local.engine.channel import ChannelClosedError, PatientChannel
from chatcache.backends.local.engine.codec import ProtocolError
from chatcache.backends.local.engine.connected import Connected, FrontEnds
from chatcache.backends.local.engine.lifetime import (
    NOT_USED,
    OTHER_FILES,
    Lifetime,
    memory_bytes,
)
from chatcache.backends.local.engine.residence import check_peer
from chatcache.backends.local.engine.schedule import Chore, Question, Schedule, Study, Turn
from chatcache.backends.local.engine.settings import EngineSettings
from chatcache.backends.questions import is_quick
from chatcache.errors import UnavailableError

log = logging.getLogger(__name__)

ACCEPT_SECONDS = 0.1
CHORE_SECONDS = 600.0  # longer than a turn may take that has to end first


class Loaded(Protocol):
    """What must be known of a model that is loaded."""

    @property
    def info(self) -> ModelInfo: ...

    def is_outdated(self) -> bool:
        """Whether the files that the model was loaded from are other ones by now."""


class Ending(Protocol):
    """Ends the engine; `stops_turn`: without waiting for the turn in progress."""

    def __call__(self, reason: str, *, stops_turn: bool = True) -> None: ...


class Reception:
    """Takes in front ends. `end` ends the engine; `loaded` is set once there is a model."""

    def __init__(self, lifetime: Lifetime, end: Ending, *, is_resident: bool) -> None:
        self._is_resident = is_resident
        self.lock = threading.RLock()  # admitting and leaving
        self.front_ends = FrontEnds()
        self.schedule = Schedule()
        self.loaded: Loaded | None = None
        self._lifetime = lifetime
        self._end = end
        self._first: queue.SimpleQueue[EngineSettings] = queue.SimpleQueue()
        self._wanted: EngineSettings | None = None
        self._started_at = time.time()

    def wait_for_settings(self, timeout: float) -> EngineSettings | None:
        """What the first front end wants; None when nobody has come."""
        try:
            return self._first.get(timeout=timeout)
        except queue.Empty:
            return None

    def listen(self, listener: socket.socket) -> None:
        """Accept connections from now on, in a thread."""

        def accept() -> None:
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError as error:
                    if listener.fileno() < 0 or error.errno in (errno.EINVAL, errno.EBADF):
                        return  # nobody listens any more
                    log.warning("a connection could not be accepted: %s", error)
                    time.sleep(ACCEPT_SECONDS)  # too many files are open, for instance
                    continue
                self.connect(connection)

        threading.Thread(target=accept, name="accept", daemon=True).start()

    def connect(self, connection: socket.socket) -> None:
        """Take the messages of a connection from now on, in a thread."""
        try:
            check_peer(connection)
            connected = self.front_ends.connect(PatientChannel(connection, wire.CODEC))
            name = f"front end {connected.number}"
            threading.Thread(target=self._read, args=(connected,), name=name, daemon=True).start()
        except (OSError, RuntimeError) as error:  # somebody else, gone already, or no more threads
            log.warning("a connection is refused: %s", error)
            connection.close()

    def _read(self, connected: Connected) -> None:
        try:
            while True:
                self._take(connected, connected.channel.receive())
        except ChannelClosedError:
            pass
        except Exception:  # whatever it was, nobody is left who hears nothing more
            log.exception("front end %d is sent away", connected.number)
        finally:
            self._leave(connected)

    def _take(self, connected: Connected, message: wire.ToEngine) -> None:
        if isinstance(message, wire.Hello):
            self._greet(connected, message)
        elif isinstance(message, wire.AskStatus):
            connected.send(self.status())
        elif isinstance(message, wire.EndEngine):
            self._end(message.reason)
        elif isinstance(message, wire.ForgetDeleted):
            chore = Chore(message)
            self.schedule.add_chore(chore)
            if self.loaded is None or chore.is_done.wait(CHORE_SECONDS):
                connected.send(wire.Forgotten())
        elif connected.front_end is None:
            log.warning("%s from one that has not said hello", type(message).__name__)
        else:
            self._take_of_front_end(connected, message)

    def _take_of_front_end(self, connected: Connected, message: wire.ToEngine) -> None:
        schedule, number = self.schedule, connected.number
        if isinstance(message, wire.RunTurn):
            self._cancelled(connected, schedule.add_turn(Turn(number, message.request)))
            self.tell_waiting()
        elif isinstance(message, wire.StopTurn):
            if (turn := schedule.stop_turn(number, message.turn_id)) is not None:
                connected.send(TurnFinished(turn.request.turn_id, nothing_said()))
                self.tell_waiting()
        elif isinstance(message, (wire.EstimateCosts, wire.SpillAll)):
            schedule.add_question(Question(number, message))
        elif isinstance(message, wire.AskStudy):
            self._take_study(connected, message)
        elif isinstance(message, wire.StopStudy):
            schedule.stop_study(number, message.call_id)
        elif isinstance(message, wire.PrepareTurn):
            self._cancelled(connected, schedule.want(number, message.request))
        elif isinstance(message, wire.CancelPrepare):
            self._cancelled(connected, schedule.want(number, None))
        elif isinstance(message, wire.Leave):
            self._leave(connected)

    def _take_study(self, connected: Connected, message: wire.AskStudy) -> None:
        try:
            question = wire.QUESTIONS.decode(message.question)
        except ProtocolError as error:
            problem = UnavailableError(
                f"The engine that is running does not know this question ({error}).",
                "`chatcache engine stop` ends it; the next one starts with the next message.",
            )
            connected.send(wire.Studied(message.call_id, error=problem))
            return
        study = Study(connected.number, message.call_id, question)
        if is_quick(question):
            self.schedule.add_question(Question(connected.number, study))
        else:
            self.schedule.add_study(study)

    def _greet(self, connected: Connected, hello: wire.Hello) -> None:
        with self.lock:
            if connected.front_end is not None:
                return  # it has said so before
            refusal, note = self._judge(hello)
            if refusal is not None:
                connected.send(refusal)
                connected.close()
                return
            connected.front_end = hello.front_end
            connected.keep_alive_seconds = hello.keep_alive_seconds
            self._lifetime.used()
            connected.send(wire.Accepted(wire.PROTOCOL, __version__, note))
            for event in self.front_ends.admit(connected):
                connected.send(event)
            if self._wanted is None:  # only now: it hears whatever loading comes to
                self._wanted = hello.settings
                self._first.put(hello.settings)
        self.tell_status()

    def _judge(self, hello: wire.Hello) -> tuple[wire.Refused | None, str]:
        """Why a front end is sent away, if it is; else what it has to be told."""
        if hello.protocol != wire.PROTOCOL:
            detail = f"it speaks protocol {wire.PROTOCOL}, not {hello.protocol}"
            return wire.Refused("protocol", detail), ""
        if self.schedule.is_ending:
            return wire.Refused("ending", "it is about to end"), ""
        if self._lifetime.is_outdated():
            self._end(OTHER_FILES, stops_turn=False)  # of somebody who began it before
            return wire.Refused("changed", OTHER_FILES), ""
        others = [] if self._wanted is None else hello.settings.differences(self._wanted)
        if not others:
            return None, ""
        names = ", ".join(others)
        if all(other.front_end is None for other in self.front_ends.all()):
            self._end(f"another {names} was wanted")
            return wire.Refused("settings", names), ""
        return None, (
            f"the engine was started with another {names}, and others use it;"
            " `chatcache engine stop` lets the next one start with yours"
        )

    def _leave(self, connected: Connected) -> None:
        """It says so, or it is gone."""
        if connected.front_end is None:
            connected.channel.close()
            return
        with self.lock:
            name, connected.front_end = connected.front_end, None
            waiting = self.schedule.leave(connected.number)
        for turn in waiting:
            connected.send(TurnFinished(turn.request.turn_id, nothing_said()))
        log.info("front end %d (%s) leaves", connected.number, name)
        if self.loaded is None:
            self.left(connected.number)  # while it loads nobody else looks after that

    def left(self, number: int) -> None:
        """Its turns are over. Who leaves last decides how long the engine stays."""
        with self.lock:
            connected = self.front_ends.get(number)
            if connected is None:
                return
            is_last = len(self.front_ends.all()) == 1
            if is_last:
                self._lifetime.keep_alive_seconds = connected.keep_alive_seconds
                self._lifetime.unused()
            if is_last and connected.keep_alive_seconds == 0.0:
                self._end("its last front end has left")  # and is told what that comes to
                return
            self.front_ends.drop(number)
            if is_last and self.loaded is None and connected.keep_alive_seconds is not None:
                self._end_unless_loaded(connected.keep_alive_seconds)
        connected.close()
        self.tell_status()

    def _end_unless_loaded(self, seconds: float) -> None:
        """Loading that nobody waits for may take for ever: a download that hangs, for instance."""

        def end() -> None:
            with self.lock:
                if self.loaded is None and self._lifetime.seconds_left == 0.0:
                    self._end(NOT_USED)

        timer = threading.Timer(seconds, end)
        timer.daemon = True
        timer.start()

    def _cancelled(self, connected: Connected, dropped: Prepare | None) -> None:
        if dropped is not None:
            connected.send(Prepared(dropped.prepare_id, dropped.kind, was_cancelled=True))

    def tell_waiting(self) -> None:
        if self.loaded is not None:
            self.front_ends.tell_waiting(self.schedule.waiting())

    def tell_status(self) -> None:
        """Where several can use the engine, all are told how it stands."""
        if self._is_resident:
            self.front_ends.tell(self.status())

    def status(self) -> EngineStatus:
        """What this engine is and does. By any thread."""
        wanted, lifetime = self._wanted, self._lifetime
        info = self.loaded.info if self.loaded is not None else None
        held = self.front_ends.snapshot
        return EngineStatus(
            pid=os.getpid(),
            version=__version__,
            model=wanted.model if wanted else "",
            adapter=str(wanted.adapter) if wanted and wanted.adapter else None,
            device=info.device if info else "",
            dtype=info.dtype if info else "",
            cache_dir=str(wanted.cache_dir) if wanted else "",
            state=self._state(),
            started_at=self._started_at,
            memory_bytes=memory_bytes(),
            front_ends=self.front_ends.names(),
            is_answering=self.schedule.is_answering,
            keep_alive_seconds=self._keep_alive_seconds(),
            seconds_left=lifetime.seconds_left,
            quantization=info.quantization if info else "",
            ram=held.ram if held else None,
            vram=held.vram if held else None,
            pinned_bytes=held.pinned_bytes if held else None,
        )

    def _keep_alive_seconds(self) -> float | None:
        """What counts once the last front end has left; if none has, what one of them wishes."""
        present = self.front_ends.all()
        return present[-1].keep_alive_seconds if present else self._lifetime.keep_alive_seconds

    def _state(self) -> EngineState:
        if self.schedule.is_ending:
            return "ending"
        return "loading" if self.loaded is None else "ready"
