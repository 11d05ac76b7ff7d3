"""Two windows on one database: no line of a conversation is ever lost to the other one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from chatcache.backends.base import TextDelta
from chatcache.chat.chat_turn import ChatTurn
from chatcache.chat.service import ChatService
from chatcache.chat.store import SessionStore
from chatcache.config import DATABASE_NAME
from chatcache.errors import NotFoundError
from tests.fakes import FakeBackend


@pytest.fixture
def windows(tmp_path: Path) -> Iterator[tuple[ChatService, ChatService]]:
    opened = []
    for _ in range(2):
        backend = FakeBackend(starts_ready=True)
        backend.start()
        opened.append(ChatService(SessionStore(tmp_path / DATABASE_NAME), backend))
    yield opened[0], opened[1]
    for service in opened:
        service.close()


def said(service: ChatService, name: str) -> list[str]:
    session = service.find_session(name)
    return [
        message.text for message in service.transcript(session.session_id) if message.role == "user"
    ]


def names(service: ChatService) -> list[str]:
    return [one.name for one in service.list_sessions()]


def upto_first_word(turn: ChatTurn) -> ChatTurn:
    """Run a turn until it is in the middle of its answer."""
    while not isinstance(turn.get(), TextDelta):
        pass
    return turn


def test_a_turn_goes_on_from_what_its_window_shows(
    windows: tuple[ChatService, ChatService],
) -> None:
    left, right = windows
    session = left.create_session("a").session_id
    list(left.send(session, "start"))
    right.transcript(session)
    list(left.send(session, "from the left"))
    list(right.send(session, "from the right"))
    assert said(right, "a") == ["start", "from the right"]
    assert said(right, "a (other window)") == ["start", "from the left"]
    assert names(right)[0] == "a"
    list(left.send(session, "left again"))
    assert said(left, "a") == ["start", "from the left", "left again"]
    assert said(left, "a (other window)") == ["start", "from the right"]
    assert left.verify() == []


def test_a_window_that_looks_again_follows_the_other(
    windows: tuple[ChatService, ChatService],
) -> None:
    left, right = windows
    session = left.create_session("a").session_id
    list(left.send(session, "one"))
    right.transcript(session)
    list(left.send(session, "two"))
    right.transcript(session)
    list(right.send(session, "three"))
    assert said(left, "a") == ["one", "two", "three"]
    assert names(left) == ["a"]


def test_both_answer_at_the_same_time(windows: tuple[ChatService, ChatService]) -> None:
    left, right = windows
    session = left.create_session("a").session_id
    list(left.send(session, "start"))
    right.transcript(session)
    one = upto_first_word(left.send(session, "from the left"))
    other = upto_first_word(right.send(session, "from the right"))
    list(one)
    list(other)
    assert said(right, "a") == ["start", "from the right"]
    assert said(right, "a (other window)") == ["start", "from the left"]
    assert sorted(names(right)) == ["a", "a (other window)"]
    for name in names(right):
        assert right.transcript(right.find_session(name).session_id)[-1].role == "assistant"
    assert right.verify() == []


def test_the_last_of_two_first_messages_names_nothing_away(
    windows: tuple[ChatService, ChatService],
) -> None:
    left, right = windows
    session = left.create_session("a").session_id
    right.transcript(session)
    list(left.send(session, "one"))
    list(right.send(session, "two"))
    everything = [message for name in names(left) for message in said(left, name)]
    assert {"one", "two"} <= set(everything)


def test_a_session_deleted_in_mid_answer_is_said(
    windows: tuple[ChatService, ChatService],
) -> None:
    left, right = windows
    session = left.create_session("a").session_id
    events = upto_first_word(left.send(session, "hello"))
    right.delete(session)
    with pytest.raises(NotFoundError):
        list(events)
    with pytest.raises(NotFoundError):
        left.send(session, "hello?")
    assert left.verify() == []
    assert left.list_sessions() == []


def test_variants_of_one_window_are_there_in_the_other(
    windows: tuple[ChatService, ChatService],
) -> None:
    left, right = windows
    session = left.create_session("a").session_id
    list(left.send(session, "one"))
    list(right.regenerate(session))
    assert right.transcript(session)[-1].num_siblings == 2
    assert left.transcript(session)[-1].num_siblings == 2
    assert names(left) == ["a"]
