"""Full disks, backends without token ids, backends that hang: words first, figures if there are."""

from __future__ import annotations

import dataclasses
import json
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from chatcache.backends.base import (
    CostEstimate,
    TextDelta,
    TurnEvent,
    TurnFailed,
    TurnFinished,
    TurnPlanned,
    TurnRequest,
    TurnStream,
)
from chatcache.chat import answer_keeper, chat_turn
from chatcache.chat.costs import CostBook
from chatcache.chat.service import ChatService
from chatcache.chat.store import SessionStore
from chatcache.chat.views import AnswerSaved, UserMessageSaved
from chatcache.config import DATABASE_NAME
from chatcache.errors import EngineDiedError, StorageError
from chatcache.token_ids import NO_IDS, TokenIds
from tests.fakes import FakeBackend, fake_model_info
from tests.toymodel import ToyTurn


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / DATABASE_NAME


def opened(path: Path, backend: FakeBackend) -> ChatService:
    backend.start()
    backend.wait_ready(5)
    return ChatService(SessionStore(path), backend)


def fill_disk(service: ChatService, *, is_full: bool) -> None:
    """From now on the file must not grow (or may again)."""
    with service.store.database.reading() as connection:
        pages = connection.execute("PRAGMA page_count").fetchone()[0]
        limit = pages if is_full else pages + 100_000
        connection.execute(f"PRAGMA max_page_count = {limit}")


def test_a_message_that_cannot_be_kept_is_not_sent(path: Path) -> None:
    backend = FakeBackend()
    service = opened(path, backend)
    session = service.create_session("a").session_id
    fill_disk(service, is_full=True)
    with pytest.raises(StorageError, match="disk is full"):
        list(service.send(session, "x" * 100_000))
    assert backend.requests == []
    assert service.transcript(session) == []
    fill_disk(service, is_full=False)
    list(service.send(session, "hello"))
    assert service.verify() == []
    service.close()


def test_a_disk_that_fills_up_in_mid_answer_keeps_what_was_written(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(answer_keeper, "PARTIAL_SECONDS", 0.0)
    backend = FakeBackend([f"One {'x' * 50_000} three"])
    service = opened(path, backend)
    session = service.create_session("a").session_id
    events = service.send(session, "go")
    while not isinstance(events.get(), TextDelta):
        pass
    fill_disk(service, is_full=True)
    with pytest.raises(StorageError, match="disk is full"):
        list(events)
    fill_disk(service, is_full=False)
    service.close()
    service = opened(path, FakeBackend())
    assert [m.text for m in service.transcript(session)] == ["go", "One "]
    assert service.verify() == []
    service.close()


class RemoteBackend(FakeBackend):
    """A server: it answers, and tells no token ids."""

    def events(self, turn: ToyTurn) -> Iterator[TurnEvent]:
        for event in super().events(turn):
            if isinstance(event, TurnPlanned):
                event = dataclasses.replace(event, keep=0, new_ids=NO_IDS)
            elif isinstance(event, TurnFinished):
                bare = dataclasses.replace(event.result, answer_ids=NO_IDS)
                event = TurnFinished(event.turn_id, bare)
            yield event


def test_a_backend_without_token_ids_is_counted_by_its_usage(path: Path) -> None:
    info = fake_model_info("served", backend="remote", tokenizer_id="", namespace="remote:served")
    service = opened(path, RemoteBackend(info=info))
    session = service.create_session("a").session_id
    for text in ("one", "two"):
        *_, saved = service.send(session, text)
    assert isinstance(saved, AnswerSaved)
    assert saved.backend == "remote"
    usage = saved.result.usage
    assert service.list_sessions()[0].num_tokens == usage.prompt_tokens + usage.completion_tokens
    journal = service.session_journal(session)
    assert journal is not None
    assert journal.ids == NO_IDS
    assert service.verify() == []
    service.close()


def test_costs_without_an_engine_come_from_the_disk(path: Path) -> None:
    service = opened(path, FakeBackend())
    session = service.create_session("a").session_id
    list(service.send(session, "one"))
    fresh = service.create_session("b").session_id
    service.close()
    asked: list[tuple[str, list[int]]] = []

    def look(namespace: str, journals: object) -> list[CostEstimate] | None:
        assert isinstance(journals, list)
        asked.append((namespace, [len(journal) for journal in journals]))
        return [CostEstimate(0, len(journal), 0, None) for journal in journals]

    offline = ChatService(SessionStore(path), None, offline_cost=look)
    tokens = offline.find_session("a").num_tokens
    fork = offline.fork(session)
    assert fork.cost == CostEstimate(0, tokens, 0, None)
    assert asked == [("ns-fake", [tokens])]
    tips = [offline.store.sessions.tip(session_id) for session_id in (session, fresh)]
    known, nothing = CostBook(offline.store, None, look).of_tips(tips)
    assert known == fork.cost
    assert nothing is not None
    assert nothing.recompute_tokens == 0
    assert offline.fork_points(session)[0].cost == fork.cost
    offline.close()
    blind = ChatService(SessionStore(path), None, offline_cost=lambda *_: None)
    assert blind.fork(session).cost is None
    assert blind.fork_points(session)[0].cost is None
    blind.close()


def test_closing_ends_the_turn_and_keeps_its_words(path: Path) -> None:
    backend = FakeBackend(["One two three."])
    gate = backend.gate("delta:1")
    service = opened(path, backend)
    session = service.create_session("a").session_id
    thread = threading.Thread(target=lambda: list(service.send(session, "go")))
    thread.start()
    assert gate.arrived.wait(5)
    service.close()
    thread.join(5)
    service = opened(path, FakeBackend())
    last = service.transcript(session)[-1]
    assert (last.text, last.finish_reason) == ("One ", "stopped")
    assert last.result_json is not None
    service.close()


def test_a_closed_store_says_so(path: Path) -> None:
    service = opened(path, FakeBackend())
    service.close()
    service.close()
    with pytest.raises(StorageError, match="closed"):
        service.list_sessions()


class HangingBackend(FakeBackend):
    """It begins to answer, and then neither goes on nor hears a stop."""

    def ask(self, request: TurnRequest) -> TurnStream:
        stream = TurnStream(lambda: None)
        stream.put(TurnPlanned(request.turn_id, 0, TokenIds((1, 2, 3)), 0, 0, 3, "cold_start", ""))
        stream.put(TextDelta(request.turn_id, "hi", False, 1))
        return stream


def test_a_backend_that_does_not_end_is_not_waited_for_forever(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chat_turn, "DRAIN_SECONDS", 0.15)
    service = opened(path, HangingBackend())
    session = service.create_session("a").session_id
    turn = service.send(session, "hello")
    while not isinstance(turn.get(), TextDelta):
        pass
    with pytest.raises(TimeoutError):
        turn.get(0.0)
    turn.close()
    assert [m.text for m in service.transcript(session)] == ["hello", "hi"]
    assert turn.get() is None
    service.close()


def test_what_a_dead_engine_had_said_is_kept_with_its_figures(path: Path) -> None:
    class DyingBackend(HangingBackend):
        def ask(self, request: TurnRequest) -> TurnStream:
            stream = super().ask(request)
            stream.end(TurnFailed(request.turn_id, EngineDiedError("Gone.")))
            return stream

    service = opened(path, DyingBackend())
    session = service.create_session("a").session_id
    with pytest.raises(EngineDiedError):
        list(service.send(session, "hello"))
    last = service.transcript(session)[-1]
    assert (last.text, last.finish_reason) == ("hi", "stopped")
    usage = json.loads(last.result_json or "")["usage"]
    assert (usage["prompt_tokens"], usage["completion_tokens"]) == (3, 1)
    journal = service.session_journal(session)
    assert journal is not None
    assert journal.ids == TokenIds((1, 2, 3))
    service.close()


def test_a_turn_that_is_never_begun_says_nothing(path: Path) -> None:
    backend = FakeBackend()
    service = opened(path, backend)
    session = service.create_session("a").session_id
    turn = service.send(session, "hello")
    assert service.transcript(session) == []
    assert isinstance(turn.get(), UserMessageSaved)
    turn.close()
    assert [m.text for m in service.transcript(session)] == ["hello"]
    assert backend.requests == []
    service.close()
