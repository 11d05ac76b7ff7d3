"""The chat service on a server: every action on the tree, with what the server gets to see."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from chatcache.backends.remote.backend import RemoteBackend
from chatcache.chat.bill import PriceList
from chatcache.chat.figures import decode, figures_of
from chatcache.chat.service import ChatService
from chatcache.chat.store import SessionStore
from chatcache.chat.views import AnswerSaved, ChatEvent
from chatcache.errors import UnavailableError
from chatcache.frontend import accounts, figures
from chatcache.remotes import Prices, RemoteModel, RemoteProfile
from chatcache.token_ids import NO_IDS
from tests.fake_server import FakeServer, Status, Stream


@pytest.fixture
def server() -> Iterator[FakeServer]:
    with FakeServer() as server:
        yield server


@pytest.fixture
def service(server: FakeServer, tmp_path: Path) -> Iterator[ChatService]:
    profile = RemoteProfile("p", server.base_url, prices=Prices(1.0, 0.5, 2.0))
    backend = RemoteBackend(RemoteModel(profile, "tiny"))
    backend.start()
    with ChatService(SessionStore(tmp_path / "chats.db"), backend) as service:
        yield service


def answer(events: Iterator[ChatEvent]) -> AnswerSaved:
    last = list(events)[-1]
    assert isinstance(last, AnswerSaved)
    return last


def sent(server: FakeServer) -> list[str]:
    """What the server got last, without who said it."""
    return [one["content"] for one in server.chats[-1].body["messages"]]


def test_every_way_to_go_on_sends_the_path_and_nothing_else(
    service: ChatService, server: FakeServer
) -> None:
    session = service.create_session(system="Be brief.").session_id
    answer(service.send(session, "one"))
    second = answer(service.send(session, "two"))
    history = ["Be brief.", "one", "You said: one"]
    assert sent(server) == [*history, "two"]
    answer(service.regenerate(session))
    assert sent(server) == [*history, "two"]
    answer(service.edit(session, 2, "too"))
    assert sent(server) == [*history, "too"]
    forked = service.fork(session, at_turn=1)
    answer(service.send(forked.session_id, "other"))
    assert sent(server) == [*history, "other"]
    service.set_system(session, "Be long.")
    answer(service.send(session, "three"))
    assert sent(server) == ["Be long.", *history[1:], "too", "You said: too", "three"]
    unsaved = answer(service.send(session, "secret", save=False))
    assert unsaved.node_id is None
    answer(service.send(session, "four"))
    assert "secret" not in sent(server)
    assert second.result.cache.reason == "remote"


def test_an_answer_that_broke_off_is_kept_and_goes_on(
    service: ChatService, server: FakeServer
) -> None:
    session = service.create_session().session_id
    server.plan(Stream("The beginning of it", finish=None, ends="close"), Stream(" goes on."))
    with pytest.raises(UnavailableError, match="broke off"):
        answer(service.send(session, "one"))
    last = service.transcript(session)[-1]
    assert (last.text, last.finish_reason) == ("The beginning of it", "stopped")
    whole = answer(service.continue_answer(session))
    assert whole.result.text == "The beginning of it goes on."
    assert sent(server) == ["one", "The beginning of it"]
    answer(service.send(session, "two"))
    assert sent(server) == ["one", "The beginning of it goes on.", "two"]


def test_a_refused_question_waits_for_the_next_one(
    service: ChatService, server: FakeServer
) -> None:
    session = service.create_session().session_id
    server.plan(Status(500, "oh dear"))
    with pytest.raises(UnavailableError, match="oh dear"):
        answer(service.send(session, "one"))
    answer(service.regenerate(session))
    assert sent(server) == ["one"]


def test_what_nobody_knows_is_not_said(service: ChatService) -> None:
    session = service.create_session().session_id
    answer(service.send(session, "one"))
    assert service.session_journal(session).ids == NO_IDS  # type: ignore[union-attr]
    assert next(iter(service.fork_points(session))).cost is None
    assert not service.idle.prepare("draft", session, "some words and more. ")
    assert not service.spill()
    assert service.verify() == []


def test_the_figures_of_a_kept_answer_are_those_it_was_given_with(
    service: ChatService, server: FakeServer
) -> None:
    session = service.create_session().session_id
    answer(service.send(session, "one"))
    given = figures_of(answer(service.send(session, "two")).result)
    kept = decode(service.transcript(session)[-1].result_json, "stop")
    assert kept is not None
    assert (kept.usage.server_cached_tokens, kept.price) == (
        given.usage.server_cached_tokens,
        given.price,
    )
    assert figures.footer(given).startswith("○ server · 8 prompt, 2 cached · TTFT ")
    assert figures.footer(given).endswith("/s · $0.000013 (saved $0.0000010)")
    assert figures.footer(kept) == figures.footer(given)
    told = accounts.stats(accounts.gather(service, service.find_session(session), PriceList()))
    assert "10 prompt tokens at servers, 2 of them cached there" in told
    assert "$0.000021" in told
    assert "reused" not in told


def test_a_server_that_tells_nothing_has_a_short_footer(
    service: ChatService, server: FakeServer
) -> None:
    server.style = "bare"
    session = service.create_session().session_id
    given = figures_of(answer(service.send(session, "one")).result)
    assert figures.footer(given).split(" · ")[0] == "○ server"
    assert "tok" not in figures.footer(given)
    assert "cost unknown" in figures.footer(given)
