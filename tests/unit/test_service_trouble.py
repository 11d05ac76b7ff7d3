"""Full disks, backends without token ids, backends that hang: words first, figures if there are."""

from __future__ import annotations

import dataclasses
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
)
from chatcache.chat import turns
from chatcache.chat.pump import EventPump
from chatcache.chat.service import ChatService
from chatcache.chat.store import SessionStore
from chatcache.chat.views import AnswerSaved, UserMessageSaved
from chatcache.config import DATABASE_NAME
from chatcache.errors import ModelLoadError, StorageError
from chatcache.token_ids import NO_IDS
from tests.fakes import FakeBackend, fake_model_info


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
    monkeypatch.setattr(turns, "PARTIAL_SECONDS", 0.0)
    backend = FakeBackend([f"One {'x' * 50_000} three"])
    service = opened(path, backend)
    session = service.create_session("a").session_id
    events = service.send(session, "go")
    for event in events:
        if isinstance(event, TextDelta):
            fill_disk(service, is_full=True)
            break
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

    def generate(self, request: TurnRequest) -> Iterator[TurnEvent]:
        for event in super().generate(request):
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
    known, nothing = offline.costs([session, fresh])
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


def test_a_generator_that_raises_is_a_failed_turn() -> None:
    def produce() -> Iterator[TurnEvent]:
        yield TextDelta("t", "hi", False, 1)
        raise ModelLoadError("Broken.")

    events = list(EventPump("t", produce).events(lambda: None))
    assert isinstance(events[0], TextDelta)
    assert isinstance(events[1], TurnFailed)
    assert isinstance(events[1].error, ModelLoadError)


def test_a_backend_that_does_not_end_is_not_waited_for_forever() -> None:
    release = threading.Event()
    idle = threading.Event()

    def produce() -> Iterator[TurnEvent]:
        yield TextDelta("t", "hi", False, 1)
        release.wait(30)

    pump = EventPump("t", produce)
    assert isinstance(next(pump.events(lambda: None)), TextDelta)
    assert pump.drain(0.15, idle.set) is None
    assert idle.is_set()
    release.set()


def test_a_turn_that_is_never_begun_says_nothing(path: Path) -> None:
    backend = FakeBackend()
    service = opened(path, backend)
    session = service.create_session("a").session_id
    events = service.send(session, "hello")
    assert service.transcript(session) == []
    assert isinstance(next(events), UserMessageSaved)
    events.close()  # type: ignore[attr-defined]
    assert [m.text for m in service.transcript(session)] == ["hello"]
    assert backend.requests == []
    service.close()
