"""What an engine does next: one thing at a time, for all of its front ends.

Owns the order. Questions are cheap and come first; then turns, in the order of their arrival, but
so that who was answered last comes after who waits; then what front ends that leave are owed; then
studies, which a turn of anybody puts off; last idle work, which a turn of anybody ends. Knows
neither sockets nor models: a front end is a number.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from chatcache.backends import questions
from chatcache.backends.base import Prepare, TurnRequest


@dataclass(eq=False, slots=True)
class Turn:
    """A turn that waits or is answered. Set `stop` to end it."""

    client: int
    request: TurnRequest
    stop: threading.Event = field(default_factory=threading.Event)
    arrival: int = 0


@dataclass(frozen=True, slots=True)
class Question:
    """Something cheap that is answered between the steps of a turn."""

    client: int
    message: Any


@dataclass(eq=False, slots=True)
class Study:
    """A question for which something is computed, between turns. Set `stop` to give it up."""

    client: int
    call_id: int
    question: questions.Question
    stop: threading.Event = field(default_factory=threading.Event)


@dataclass(frozen=True, slots=True)
class Chore:
    """Something for nobody that cannot be done in the middle of a turn."""

    message: Any
    is_done: threading.Event = field(default_factory=threading.Event)


@dataclass(frozen=True, slots=True)
class Idle:
    """Idle work."""

    client: int
    request: Prepare


@dataclass(frozen=True, slots=True)
class Left:
    """A front end has left, or died. Its turns are over."""

    client: int


@dataclass(frozen=True, slots=True)
class End:
    """There is nothing more to be done, but what is to be kept."""

    reason: str


Step = Turn | Question | Study | Chore | Idle | Left | End


class Schedule:
    """Front ends' threads add to it, the thread that computes takes from it."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._turns: list[Turn] = []
        self._running: Turn | None = None
        self._questions: deque[Question] = deque()
        self._chores: deque[Chore] = deque()
        self._studies: deque[Study] = deque()
        self._studied: Study | None = None
        self._idle: dict[int, Prepare] = {}
        self._begun: tuple[int, str] | None = None  # the idle work in progress
        self._left: deque[int] = deque()
        self._end: End | None = None
        self._numbers = itertools.count(1)
        self._served: dict[int, int] = {}  # when each front end was answered last

    # by the threads of front ends

    def add_turn(self, turn: Turn) -> Prepare | None:
        """Returns the idle work of this front end that has not begun: it was for this turn, or for
        nothing any more."""
        with self._changed:
            dropped = self.want(turn.client, None)
            turn.arrival = next(self._numbers)
            self._turns.append(turn)
            self._changed.notify_all()
            return dropped

    def stop_turn(self, client: int, turn_id: str) -> Turn | None:
        """End a turn; returns it if it had not begun, for it will not."""
        with self._changed:
            if (running := self._running) is not None and _is(running, client, turn_id):
                running.stop.set()
            for turn in self._turns:
                if _is(turn, client, turn_id):
                    turn.stop.set()
                    self._turns.remove(turn)
                    return turn
            return None

    def add_question(self, question: Question) -> None:
        with self._changed:
            self._questions.append(question)
            self._changed.notify_all()

    def add_chore(self, chore: Chore) -> None:
        with self._changed:
            self._chores.append(chore)
            self._changed.notify_all()

    def add_study(self, study: Study) -> None:
        with self._changed:
            self._studies.append(study)
            self._changed.notify_all()

    def stop_study(self, client: int, call_id: int | None = None) -> None:
        """Give up a study of a front end, or all of them."""
        with self._changed:
            for study in [*self._studies, self._studied]:
                is_theirs = study is not None and study.client == client
                if study is not None and is_theirs and call_id in (None, study.call_id):
                    study.stop.set()
            self._studies = deque(study for study in self._studies if not study.stop.is_set())

    def want(self, client: int, request: Prepare | None) -> Prepare | None:
        """Put idle work, or none, in the place of what this front end wanted before; returns what
        will not be done for that."""
        with self._changed:
            dropped = self._idle.pop(client, None)
            if self._begun is not None and self._begun[0] == client:
                self._begun = None
            if request is not None:
                self._idle[client] = request
                self._changed.notify_all()
            return dropped

    def leave(self, client: int) -> list[Turn]:
        """End all that this front end wants; returns the turns that had not begun."""
        with self._changed:
            waiting = [turn for turn in self._turns if turn.client == client]
            self._turns = [turn for turn in self._turns if turn.client != client]
            if self._running is not None and self._running.client == client:
                self._running.stop.set()
            self.want(client, None)
            self.stop_study(client)
            self._left.append(client)
            self._changed.notify_all()
            return waiting

    def end(self, reason: str, *, stops_turn: bool = True) -> None:
        """Nothing is begun any more after the turn in progress, which is stopped or waited for."""
        with self._changed:
            if self._end is None:
                self._end = End(reason)
            if self._running is not None and stops_turn:
                self._running.stop.set()
            self._begun = None
            self._changed.notify_all()

    @property
    def is_ending(self) -> bool:
        return self._end is not None

    @property
    def is_answering(self) -> bool:
        return self._running is not None

    def waiting(self) -> list[tuple[Turn, Turn | None, int]]:
        """The turns that wait, each with the one that is answered now and the number of turns of
        other front ends before it."""
        with self._changed:
            order = list(self._order())
            running = self._running
            found = []
            for position, turn in enumerate(order):
                before = order[:position] if running is None else [running, *order[:position]]
                ahead = sum(other.client != turn.client for other in before)
                found.append((turn, running, ahead))
            return found

    # by the thread that computes

    def next(self, timeout: float | None) -> Step | None:
        """What to do now; None when `timeout` seconds have brought nothing."""
        deadline = None if timeout is None else time.monotonic() + timeout
        with self._changed:
            self._running = self._begun = self._studied = None
            while (step := self._taken()) is None:
                left = None if deadline is None else deadline - time.monotonic()
                if left is not None and left <= 0:
                    return None
                self._changed.wait(left)
            return step

    def answered(self) -> None:
        """The turn in progress has its answer: nobody waits for it any more."""
        with self._changed:
            self._running = None

    def questions(self) -> Iterator[Question]:
        """The questions that wait now."""
        while True:
            with self._changed:
                if not self._questions:
                    return
                question = self._questions.popleft()
            yield question

    def is_wanted(self, idle: Idle) -> bool:
        """Whether idle work that was begun is still of use, and nothing else is to be done."""
        with self._changed:
            is_begun = self._begun == (idle.client, idle.request.prepare_id)
            return is_begun and not self._turns and not self._studies

    def put_back(self, work: Study | Idle) -> bool:
        """Have work that was broken off done later, from its beginning; False when nobody wants it
        any more. Idle work that a turn has ended is not wanted."""
        with self._changed:
            if isinstance(work, Study):
                if not work.stop.is_set():
                    self._studies.appendleft(work)
                return not work.stop.is_set()
            is_begun = self._begun == (work.client, work.request.prepare_id)
            if is_begun and self._studies and not self._turns:
                self._idle.setdefault(work.client, work.request)
                return True
            return False

    def may_study(self, study: Study) -> bool:
        """Whether a study that was begun may go on: it is wanted, and nothing comes before it."""
        with self._changed:
            is_next = not (self._turns or self._chores or self._end)
            return is_next and not study.stop.is_set()

    def _taken(self) -> Step | None:
        if self._questions:
            return self._questions.popleft()
        if self._chores:
            return self._chores.popleft()
        if self._turns and self._end is None:
            turn = self._running = next(self._order())
            self._turns.remove(turn)
            self._served[turn.client] = next(self._numbers)
            return turn
        if self._left:
            client = self._left.popleft()
            self._served.pop(client, None)
            return Left(client)
        if self._end is not None:
            return self._end
        if self._studies:
            self._studied = self._studies.popleft()
            return self._studied
        for client, request in self._idle.items():
            del self._idle[client]
            self._begun = (client, request.prepare_id)
            return Idle(client, request)
        return None

    def _order(self) -> Iterator[Turn]:
        """The turns that wait, in the order in which they will be answered."""
        left, served = list(self._turns), dict(self._served)
        for number in itertools.count(1 << 62):
            if not left:
                return
            turn = min(left, key=lambda turn: (served.get(turn.client, 0), turn.arrival))
            left.remove(turn)
            served[turn.client] = number
            yield turn


def _is(turn: Turn, client: int, turn_id: str) -> bool:
    return (turn.client, turn.request.turn_id) == (client, turn_id)
