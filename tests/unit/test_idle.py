"""Idle work above the engine: what is asked for, when, and what the front end hears of it."""

from __future__ import annotations

import queue
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from chatcache.backends.base import (
    BackendEvent,
    CacheEvent,
    ChatMessage,
    CostEstimate,
    IdleKind,
    Prepare,
    Prepared,
    TurnFinished,
    TurnRequest,
)
from chatcache.backends.local.engine.client import LocalBackend
from chatcache.backends.local.engine.settings import EngineSettings
from chatcache.backends.local.run.idle import AheadBook
from chatcache.chat.finished import MAX_DRAFT_CHARACTERS, stable_part
from chatcache.chat.idle import IdleOptions
from chatcache.chat.service import ChatService
from chatcache.chat.store import SessionStore
from chatcache.chat.tasks import TurnOptions
from chatcache.compose import idle_options
from chatcache.config import DATABASE_NAME, load_settings
from chatcache.token_ids import TokenIds
from tests.fakes import FakeBackend, fake_model_info

ENGINE = Path(__file__).parents[1] / "fake_engine.py"
SECONDS = 30.0  # no test waits this long unless it fails


# Which part of a draft is certain


@pytest.mark.parametrize(
    ("draft", "stable"),
    [
        ("", ""),
        ("Hel", ""),
        ("Hello", ""),
        ("Hello ", "Hello"),
        ("Hello wor", "Hello"),
        ("Hello  \n\n wor", "Hello"),
        ("\n\nHello\nworld\n", "Hello\nworld"),
        ("  Hello wor", "  Hello"),
        ("   ", ""),
        ("a\x00b c", "a\ufffdb"),
        ("x" * (MAX_DRAFT_CHARACTERS + 1) + " ", ""),
    ],
)
def test_the_finished_words_of_a_draft_are_certain(draft: str, stable: str) -> None:
    assert stable_part(draft) == stable


# What was of use


def test_each_token_computed_ahead_counts_once() -> None:
    book = AheadBook()
    book.note(TokenIds([1, 2, 3, 4]), 2, 4)
    book.note(TokenIds([1, 2, 3, 4, 5, 6]), 4, 6)
    book.note(TokenIds([1, 2, 9, 9]), 2, 4)
    assert book.take_used(TokenIds([1, 2, 3, 4, 5, 7, 8]), 6) == 3
    assert book.take_used(TokenIds([1, 2, 3, 4, 5, 7, 8]), 6) == 0
    assert book.take_used(TokenIds([1, 2, 9, 9, 9]), 4) == 2


def test_what_was_not_reused_was_of_no_use() -> None:
    book = AheadBook()
    book.note(TokenIds([1, 2, 3, 4]), 2, 4)
    book.note(TokenIds([1, 2, 3, 4]), 2, 2)
    assert book.take_used(TokenIds([1, 2, 3, 4]), 2) == 0
    assert book.take_used(TokenIds([1, 2, 3, 4]), 3) == 1


# The service


@pytest.fixture
def backend() -> FakeBackend:
    return FakeBackend(starts_ready=True)


@pytest.fixture
def service(backend: FakeBackend, tmp_path: Path) -> Iterator[ChatService]:
    backend.start()
    with ChatService(SessionStore(tmp_path / DATABASE_NAME), backend) as service:
        yield service


def test_the_next_turn_is_asked_as_it_will_be(service: ChatService, backend: FakeBackend) -> None:
    session = service.create_session("a", "Be brief.").session_id
    list(service.send(session, "Hello"))
    assert service.idle.prepare("next_turn", session)
    assert service.idle.prepare("draft", session, "And then what hap", think=True)
    assert service.idle.prepare("restore", session)
    list(service.send(session, "And then what happened?", TurnOptions(think=True)))
    asked, sent = backend.prepares, backend.requests[-1]
    assert [one.kind for one in asked] == ["next_turn", "draft", "restore"]
    assert [one.turn.messages[-1].text for one in asked] == ["", "And then what", ""]
    for one in asked:
        assert one.turn.messages[:-1] == sent.messages[:-1]
        assert one.turn.journal == sent.journal
        assert one.turn.previous is None
    assert asked[1].turn.think is sent.think is True


def test_a_draft_behind_an_unanswered_question_is_joined_to_it(
    service: ChatService, backend: FakeBackend
) -> None:
    session = service.create_session("a").session_id
    turn = service.send(session, "One")
    turn.get()
    turn.close()
    assert not service.idle.prepare("next_turn", session)
    service.idle.prepare("draft", session, "Two three")
    assert backend.prepares[-1].turn.messages == (ChatMessage("user", "One\n\nTwo"),)


def test_what_cannot_be_foreseen_is_not_prepared(
    service: ChatService, backend: FakeBackend
) -> None:
    empty = service.create_session("a").session_id
    assert not service.idle.prepare("next_turn", empty)
    assert not service.idle.prepare("restore", empty)
    assert not service.idle.prepare("draft", empty, "Hel")
    assert service.idle.prepare("draft", "", "Hello there", system="Be brief.")
    assert [message.role for message in backend.prepares[-1].turn.messages] == ["system", "user"]
    service.delete(empty)
    assert not service.idle.prepare("draft", empty, "Hello there")


def test_another_window_does_not_change_what_is_prepared(
    service: ChatService, backend: FakeBackend, tmp_path: Path
) -> None:
    session = service.create_session("a").session_id
    list(service.send(session, "One"))
    with ChatService(SessionStore(tmp_path / DATABASE_NAME), FakeBackend()) as other:
        other.idle.prepare("draft", session, "not ready yet")
        assert service.idle.prepare("draft", session, "Two three")
    assert backend.prepares[-1].turn.messages[0].text == "One"


@pytest.mark.parametrize("kind", ["next_turn", "draft", "restore"])
def test_each_kind_can_be_switched_off(tmp_path: Path, kind: IdleKind) -> None:
    backend = FakeBackend(starts_ready=True)
    backend.start()
    options = IdleOptions(**{kind: False})
    with ChatService(SessionStore(tmp_path / DATABASE_NAME), backend, idle=options) as service:
        session = service.create_session("a").session_id
        list(service.send(session, "Hello"))
        for one in ("next_turn", "draft", "restore"):
            assert service.idle.is_on(one) is (one != kind)
            assert service.idle.prepare(one, session, "Hello there") is (one != kind)
    assert kind not in [one.kind for one in backend.prepares]


def test_no_idle_work_without_a_model_or_on_a_server(tmp_path: Path) -> None:
    store = SessionStore(tmp_path / DATABASE_NAME)
    with ChatService(store, None) as alone:
        assert not alone.idle.prepare("draft", "", "Hello there")
        alone.idle.cancel()
    remote = FakeBackend(info=fake_model_info(backend="remote"), starts_ready=True)
    remote.start()
    with ChatService(SessionStore(tmp_path / DATABASE_NAME), remote) as service:
        assert not service.idle.prepare("draft", "", "Hello there")
    assert remote.prepares == []


def test_the_settings_switch_it_off(home: Path) -> None:
    assert idle_options(load_settings()) == IdleOptions()
    (home / "config.toml").write_text("[cache]\nidle_draft = false\nidle_restore = false\n")
    assert idle_options(load_settings()) == IdleOptions(draft=False, restore=False)


# The engine process


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[LocalBackend]:
    settings = EngineSettings("echo", tmp_path, tmp_path / "logs" / "engine.log")
    backend = LocalBackend(settings, command=(sys.executable, "-P", str(ENGINE)))
    yield backend
    backend.close()


@pytest.fixture
def heard(engine: LocalBackend) -> Callable[[type], BackendEvent]:
    """Waits for the next event of a kind."""
    events: queue.SimpleQueue[BackendEvent] = queue.SimpleQueue()
    engine.subscribe(events.put)

    def wait_for(kind: type) -> BackendEvent:
        while not isinstance(event := events.get(timeout=SECONDS), kind):
            pass
        return event

    return wait_for


def work(text: str, prepare_id: str = "p1") -> Prepare:
    return Prepare(prepare_id, "draft", TurnRequest("t0", (ChatMessage("user", text),)))


def test_no_idle_work_before_the_model_is_ready(engine: LocalBackend) -> None:
    assert not engine.prepare(work("hello"))
    engine.cancel_prepare()
    engine.wait_ready(SECONDS)
    assert engine.prepare(work("hello"))
    engine.close()
    assert not engine.prepare(work("hello"))


def test_idle_work_ends_with_what_came_of_it(
    engine: LocalBackend, heard: Callable[[type], BackendEvent]
) -> None:
    engine.wait_ready(SECONDS)
    engine.prepare(work("hello"))
    assert heard(Prepared) == Prepared("p1", "draft", 3, 0, 0.0, False)
    engine.prepare(work("raise", "p2"))
    assert heard(Prepared) == Prepared("p2", "draft", was_cancelled=True)


def test_a_turn_a_question_and_other_work_reach_an_engine_that_works(
    engine: LocalBackend, heard: Callable[[type], BackendEvent]
) -> None:
    engine.wait_ready(SECONDS)
    engine.prepare(work("until cancelled"))
    heard(CacheEvent)
    assert engine.estimate([TokenIds((1, 2))]) == [CostEstimate(0, 0, 2, None)]
    engine.prepare(work("until cancelled", "p2"))
    assert heard(Prepared) == Prepared("p1", "draft", 3, 0, 0.0, True)
    heard(CacheEvent)
    turn = TurnRequest("t1", (ChatMessage("user", "hello"),))
    assert isinstance(list(engine.ask(turn))[-1], TurnFinished)
    assert heard(Prepared) == Prepared("p2", "draft", 3, 0, 0.0, True)
    engine.prepare(work("until cancelled", "p3"))
    heard(CacheEvent)
    engine.cancel_prepare()
    assert heard(Prepared) == Prepared("p3", "draft", 3, 0, 0.0, True)


def test_closing_ends_idle_work(
    engine: LocalBackend, heard: Callable[[type], BackendEvent]
) -> None:
    engine.wait_ready(SECONDS)
    engine.prepare(work("until cancelled"))
    heard(CacheEvent)
    engine.close()
    assert not engine.prepare(work("hello"))
