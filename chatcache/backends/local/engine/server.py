"""The engine: owns the model and its KV, and answers all front ends, one turn at a time.

Owns the one thread that loads and computes. Who is there is the reception's affair, what is done
next the schedule's, how long an unused engine stays the lifetime's.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import Protocol

from chatcache.backends import questions
from chatcache.backends.base import (
    BackendEvent,
    BackendFailed,
    CostEstimate,
    ModelReady,
    Prepare,
    Prepared,
    RestoreBegan,
    TurnEvent,
    TurnFailed,
    TurnFinished,
    TurnRequest,
)
from chatcache.backends.local.engine import wire
from chatcache.backends.local.engine.codec import portable
from chatcache.backends.local.engine.lifetime import Lifetime
from chatcache.backends.local.engine.reception import Loaded, Reception
from chatcache.backends.local.engine.residence import HeldPlace
from chatcache.backends.local.engine.schedule import (
    Chore,
    End,
    Idle,
    Left,
    Question,
    Study,
    Turn,
)
from chatcache.backends.local.engine.settings import EngineSettings
from chatcache.backends.questions import Answer
from chatcache.errors import ChatcacheError, UnavailableError
from chatcache.token_ids import TokenIds

log = logging.getLogger(__name__)

LOAD_FAILED = 3
HELLO_SECONDS = 30.0  # whoever starts an engine says at once what for
DRAIN_SECONDS = 60.0


class Runner(Loaded, Protocol):
    """What runs turns; see `turn_runner.TurnRunner`."""

    def run(self, request: TurnRequest, stop: threading.Event) -> Iterator[TurnEvent]:
        """The events of a turn; the error of a TurnFailed is a ChatcacheError."""

    def estimate(self, journals: Sequence[TokenIds]) -> list[CostEstimate]: ...

    def study(self, question: questions.Question) -> Generator[None, None, Answer]:
        """Answer it; between two steps of the generator it may be given up."""

    def prepare(
        self, request: Prepare, is_wanted: Callable[[], bool]
    ) -> Generator[None, None, Prepared]: ...

    def look_ahead(self) -> bool:
        """Do, in a tenth of a second or so, one of the things that the next turn would have to wait
        for; False: all is done."""

    def spill(self, segment_id: str | None = None) -> int: ...

    def forget_deleted(self, *, is_all: bool) -> None: ...

    def close(self) -> None: ...


Emit = Callable[[BackendEvent], None]
RunnerFactory = Callable[[EngineSettings, Emit], Runner]


class EngineServer:
    """Serves front ends until it has no reason to stay. `place` is where it is found; None: it
    was given its only front end."""

    def __init__(self, lifetime: Lifetime, place: HeldPlace | None = None) -> None:
        self._lifetime = lifetime
        self._place = place
        self.reception = Reception(lifetime, self.end, is_resident=place is not None)
        self._front_ends = self.reception.front_ends
        self._schedule = self.reception.schedule
        self._client = 0  # the front end that something is done for

    def end(self, reason: str, *, stops_turn: bool = True) -> None:
        """Stop what is in progress, or wait for the turn; write out what is to be kept, end. By any
        thread, but not by a signal's handler."""
        self._schedule.end(reason, stops_turn=stops_turn)
        if self._place is not None:
            self._place.hide()  # whoever comes waits for the next engine, and does not ask this one
        if self.reception.loaded is None:  # nothing is worth loading then
            self._say_goodbye(reason)
            self._vacate()
            os._exit(0)

    def serve(self, factory: RunnerFactory) -> int:
        """Load with `factory` what the first front end wants, then answer. Returns an exit code."""
        settings = self.reception.wait_for_settings(HELLO_SECONDS)
        if settings is None:
            self._vacate()
            return 0
        log.info("engine for %s", settings.model)
        try:
            runner = factory(settings, self._emit)
        except Exception as error:
            log.exception("loading failed")
            if self._place is not None:
                self._place.hide()
            self._front_ends.tell(BackendFailed(_as_load_error(error)))
            for connected in self._front_ends.all():
                connected.close()
            self._vacate()
            return LOAD_FAILED
        reason = "it failed"
        try:
            with self.reception.lock:
                self.reception.loaded = runner
                self._lifetime.is_model_outdated = runner.is_outdated
            self._front_ends.tell(ModelReady(runner.info))
            self.reception.tell_status()
            reason = self._work(runner)
        finally:
            self._finish(runner, reason)
        return 0

    def _work(self, runner: Runner) -> str:
        """Until there is a reason to end; returns it."""
        is_ready = True
        while True:
            step = self._schedule.next(self._lifetime.tick_seconds() if is_ready else 0.0)
            if step is None and not is_ready:
                is_ready = not self._look_ahead(runner)
                continue
            is_ready = is_ready and not isinstance(step, Turn | Idle)
            if isinstance(step, Turn):
                self._run(runner, step)
            elif isinstance(step, Idle):
                self._prepare(runner, step)
            elif isinstance(step, Study):
                self._study(runner, step)
            elif isinstance(step, Question):
                self._answer(runner, step)
            elif isinstance(step, Chore):
                self._do(runner, step)
            elif isinstance(step, Left):
                self.reception.left(step.client)
            elif isinstance(step, End):
                return step.reason
            else:
                with self.reception.lock:  # nobody comes in between
                    if (reason := self._lifetime.why_end()) is not None:
                        self._schedule.end(reason)

    def _finish(self, runner: Runner, reason: str) -> None:
        log.info("the engine ends: %s", reason)
        watchdog = threading.Timer(DRAIN_SECONDS, os._exit, args=(1,))
        watchdog.daemon = True
        watchdog.start()
        if self._place is not None:
            self._place.hide()
        try:
            runner.close()
        finally:
            self._say_goodbye(reason)
            self._vacate()
            watchdog.cancel()

    def _vacate(self) -> None:
        if self._place is not None:
            self._place.vacate()

    def _say_goodbye(self, reason: str) -> None:
        for connected in self._front_ends.all():
            connected.send(wire.Goodbye(reason))
            connected.close()

    def _run(self, runner: Runner, turn: Turn) -> None:
        """One turn. Between its events the cheap questions of all front ends are answered."""
        turn_id, send = turn.request.turn_id, self._begin(turn.client, turn.request.turn_id)
        self.reception.tell_waiting()
        is_ended = False
        try:
            for event in runner.run(turn.request, turn.stop):
                if is_ended := isinstance(event, (TurnFinished, TurnFailed)):
                    self._schedule.answered()
                send(event)
                self._answer_questions(runner)
        except Exception as error:
            log.exception("turn %s failed", turn_id)
            self._schedule.answered()
            send(TurnFailed(turn_id, portable(error)))
        else:
            if not is_ended:
                problem = UnavailableError("The engine ended the turn without a result.")
                self._schedule.answered()
                send(TurnFailed(turn_id, problem))
        self._client = 0

    def _begin(self, client: int, turn_id: str = "") -> Callable[[object], None]:
        """Something is done for this front end from now on; returns how it is told."""
        self._client = client
        connected = self._front_ends.get(client)
        if connected is None:
            return lambda event: None
        connected.begin(turn_id)
        return connected.send

    def _prepare(self, runner: Runner, idle: Idle) -> None:
        """Idle work, until it is done or something else is wanted."""
        send, request = self._begin(idle.client), idle.request
        prepared = Prepared(request.prepare_id, request.kind, was_cancelled=True)
        work = runner.prepare(request, lambda: self._schedule.is_wanted(idle))
        try:
            while True:
                next(work)
                self._answer_questions(runner)
        except StopIteration as end:
            prepared = end.value
        except Exception:
            log.exception("idle work failed")
        if not (prepared.was_cancelled and self._schedule.put_back(idle)):
            send(prepared)
        self._client = 0

    def _look_ahead(self, runner: Runner) -> bool:
        """While there is nothing else to do; whether there may be more of it."""
        try:
            return runner.look_ahead()
        except Exception:
            log.exception("what the next turn needs could not be made ahead")
            return False

    def _study(self, runner: Runner, study: Study) -> None:
        """Answer a question, unless something comes before it on the way: then it is put back."""
        try:
            answer = self._answer_to(runner, study)
            if answer is not None:
                told = wire.Studied(study.call_id, wire.QUESTIONS.encode(answer))
                self._reply(study.client, told)
        except Exception as error:
            if not isinstance(error, ChatcacheError):
                log.exception("a study failed")
            self._reply(study.client, wire.Studied(study.call_id, error=portable(error)))

    def _answer_to(self, runner: Runner, study: Study) -> Answer | None:
        """Work on it chunk by chunk; None: it was given up or put back."""
        work = runner.study(study.question)
        while True:
            try:
                next(work)
            except StopIteration as end:
                answer: Answer = end.value
                return answer
            self._answer_questions(runner)
            if not self._schedule.may_study(study):
                work.close()
                self._schedule.put_back(study)
                return None

    def _answer_questions(self, runner: Runner) -> None:
        for question in self._schedule.questions():
            self._answer(runner, question)

    def _answer(self, runner: Runner, question: Question) -> None:
        message = question.message
        try:
            if isinstance(message, wire.EstimateCosts):
                estimates = tuple(runner.estimate(message.journals))
                self._reply(question.client, wire.CostsEstimated(message.call_id, estimates))
            elif isinstance(message, Study):
                self._study(runner, message)
            elif isinstance(message, wire.SpillAll):
                runner.spill(message.segment_id)
        except Exception as error:
            log.exception("%s failed", type(message).__name__)
            if isinstance(message, wire.EstimateCosts):
                failed = wire.CostsEstimated(message.call_id, error=portable(error))
                self._reply(question.client, failed)

    def _do(self, runner: Runner, chore: Chore) -> None:
        if isinstance(chore.message, wire.ForgetDeleted):
            try:
                runner.forget_deleted(is_all=chore.message.is_all)
            except Exception:
                log.exception("forgetting failed")
        chore.is_done.set()

    def _reply(self, client: int, answer: wire.CostsEstimated | wire.Studied) -> None:
        if (connected := self._front_ends.get(client)) is not None:
            connected.send(answer)

    # what is told

    def _emit(self, event: BackendEvent) -> None:
        """What belongs to a turn, or to idle work, is told to whom it is done for."""
        if isinstance(event, (RestoreBegan, Prepared)):
            if (connected := self._front_ends.get(self._client)) is not None:
                connected.send(event)
            return
        self._front_ends.tell(event)


def _as_load_error(error: Exception) -> Exception:
    if isinstance(error, ChatcacheError):
        return error
    return UnavailableError(
        f"The engine could not start: {type(error).__name__}: {error}.",
        "The engine's log has the details.",
    )
