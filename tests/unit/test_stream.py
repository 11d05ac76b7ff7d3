"""A turn's handle: what is put comes out in order, and a stop is never lost."""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path

import pytest

from chatcache.backends.stream import EventStream
from chatcache.chat.service import ChatService
from chatcache.chat.store import SessionStore
from chatcache.chat.views import AnswerSaved, UserMessageSaved
from tests.fakes import FakeBackend


class Stops:
    """An answerer that counts how often it is told to end, and ends."""

    def __init__(self) -> None:
        self.num_told = 0
        self.stream: EventStream[str] = EventStream(self._end)

    def _end(self) -> None:
        self.num_told += 1
        self.stream.end("stopped")


def test_events_come_in_order_and_after_the_last_one_nothing() -> None:
    answerer = Stops()
    answerer.stream.put("a")
    answerer.stream.end("b")
    answerer.stream.put("late")
    assert list(answerer.stream) == ["a", "b"]
    assert answerer.stream.get() is None
    answerer.stream.stop()
    assert answerer.stream.get() is None
    assert answerer.num_told == 0


def test_nothing_yet_is_not_the_end() -> None:
    answerer = Stops()
    with pytest.raises(TimeoutError):
        answerer.stream.get(0.01)
    answerer.stream.put("a")
    assert answerer.stream.get(0.01) == "a"


def test_a_stop_before_anything_is_read_is_told_once() -> None:
    answerer = Stops()
    answerer.stream.put("a")
    answerer.stream.stop()
    answerer.stream.stop()
    assert list(answerer.stream) == ["a", "stopped"]
    assert answerer.num_told == 1


def test_a_stop_wakes_the_reader() -> None:
    answerer = Stops()
    threading.Timer(0.05, answerer.stream.stop).start()
    assert answerer.stream.get(20) == "stopped"


def test_a_signal_handler_may_stop() -> None:
    answerer = Stops()
    before = signal.signal(signal.SIGUSR1, lambda *_: answerer.stream.stop())
    try:
        threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGUSR1)).start()
        assert answerer.stream.get(20) == "stopped"
    finally:
        signal.signal(signal.SIGUSR1, before)


def test_who_leaves_the_loop_ends_the_turn() -> None:
    answerer = Stops()
    answerer.stream.put("a")
    for _ in answerer.stream:
        break
    assert answerer.num_told == 1


def test_a_turn_of_a_chat_that_is_stopped_before_it_is_read_asks_nothing(tmp_path: Path) -> None:
    backend = FakeBackend(starts_ready=True)
    backend.start()
    with ChatService(SessionStore(tmp_path / "chats.db"), backend) as service:
        turn = service.send(service.create_session("a").session_id, "hello")
        turn.stop()
        events = list(turn)
        assert isinstance(events[0], UserMessageSaved)
        assert isinstance(events[-1], AnswerSaved)
        assert events[-1].result.finish_reason == "stopped"
        assert backend.requests == []
        turn.stop()
        assert turn.get() is None
