"""Export and import: the same conversation on another machine, or a clear refusal."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from chatcache.chat.service import ChatService
from chatcache.chat.store import SessionStore
from chatcache.errors import ChatcacheError, DamageError, UsageError
from tests.fakes import FakeBackend

Document = dict[str, Any]


@pytest.fixture
def here(tmp_path: Path) -> Iterator[ChatService]:
    backend = FakeBackend(reasoning="Well.", starts_ready=True)
    backend.start()
    service = ChatService(SessionStore(tmp_path / "here.sqlite3"), backend)
    yield service
    service.close()


@pytest.fixture
def there(tmp_path: Path) -> Iterator[ChatService]:
    backend = FakeBackend(starts_ready=True)
    backend.start()
    service = ChatService(SessionStore(tmp_path / "there.sqlite3"), backend)
    yield service
    service.close()


@pytest.fixture
def document(here: ChatService) -> Document:
    session = here.create_session("trip 🚲", "Be kind.").session_id
    for text in ("one\x1b[2J", "two"):
        list(here.send(session, text))
    exported: Document = json.loads(json.dumps(here.export_session(session)))
    return exported


def test_a_session_moves_with_its_token_ids(
    here: ChatService, there: ChatService, document: Document
) -> None:
    source = here.last_session()
    copy = there.import_session(document)
    assert source is not None
    assert (copy.name, copy.num_turns, copy.num_tokens) == (
        "trip 🚲",
        source.num_turns,
        source.num_tokens,
    )
    assert copy.tip == source.tip
    moved = there.session_journal(copy.session_id)
    original = here.session_journal(source.session_id)
    assert moved is not None
    assert original is not None
    assert moved.ids == original.ids
    assert there.verify() == []
    again = there.export_session(copy.session_id)
    assert again["messages"] == document["messages"]


def test_importing_twice_shares_the_words(there: ChatService, document: Document) -> None:
    first = there.import_session(document)
    second = there.import_session(document)
    assert first.session_id != second.session_id
    assert first.tip == second.tip
    assert second.name == f"{first.name} (2)"  # so that a name means one of them
    there.delete(first.session_id)
    assert len(there.transcript(second.session_id)) == 5
    there.delete(second.session_id)
    with there.store.database.reading() as connection:
        assert connection.execute("SELECT count(*) FROM nodes").fetchone() == (0,)


def alter_text(document: Document) -> None:
    document["messages"][1]["text"] += "!"


def alter_time(document: Document) -> None:
    document["messages"][2]["created_ms"] += 1


def drop_message(document: Document) -> None:
    del document["messages"][0]


def skip_ids(document: Document) -> None:
    entry = next(iter(document["messages"][1]["journals"].values()))
    entry["keep"] = 1


@pytest.mark.parametrize("alter", [alter_text, alter_time, drop_message, skip_ids])
def test_altered_words_are_refused(
    there: ChatService, document: Document, alter: Callable[[Document], None]
) -> None:
    alter(document)
    with pytest.raises(DamageError):
        there.import_session(document)
    assert there.list_sessions() == []
    assert there.verify() == []


@pytest.mark.parametrize(
    "field",
    [
        {"role": "tool"},
        {"text": None},
        {"text": "\ud800"},
        {"created_ms": "now"},
        {"created_ms": True},
        {"created_ms": -1},
        {"created_ms": 1 << 70},
        {"finish_reason": "bored"},
        {"reasoning": 5},
        {"role": "system"},
        {"role": "assistant"},
        {"journals": []},
        {"journals": {"t": {"keep": -1, "new_ids": []}}},
        {"journals": {"t": {"keep": 0, "new_ids": [1 << 31]}}},
        {"journals": {"t": {"keep": 0, "new_ids": "abc"}}},
        {"journals": {"t": 3}},
        {"journals": {"\ud800": {"keep": 0, "new_ids": [1]}}},
    ],
)
def test_malformed_messages_are_refused(
    there: ChatService, document: Document, field: dict[str, object]
) -> None:
    document["messages"][3] |= field
    with pytest.raises(ChatcacheError) as caught:
        there.import_session(document)
    assert isinstance(caught.value, UsageError | DamageError)
    assert there.list_sessions() == []


@pytest.mark.parametrize(
    "document",
    [
        None,
        [],
        "text",
        {},
        {"format": "chatcache-session"},
        {"format": "chatcache-session", "version": 2, "messages": []},
        {"format": "chatcache-session", "version": 1, "messages": {}},
        {"format": "chatcache-session", "version": 1, "messages": [1]},
    ],
)
def test_other_documents_are_refused(there: ChatService, document: object) -> None:
    with pytest.raises(UsageError):
        there.import_session(document)
    assert there.list_sessions() == []


def test_a_name_that_cannot_be_used_is_replaced(there: ChatService) -> None:
    empty = {"format": "chatcache-session", "version": 1, "messages": []}
    assert there.import_session({**empty, "session": "\x07"}).name == "imported"
    assert there.import_session({**empty, "session": "a\nb" * 200}).name.startswith("a ba b")


def branched(here: ChatService) -> str:
    """A session whose second turn was answered twice."""
    session = here.create_session("branched", "Be kind.").session_id
    for text in ("one", "two"):
        list(here.send(session, text))
    list(here.regenerate(session))
    return session


def whole(service: ChatService, session_id: str) -> Document:
    exported: Document = json.loads(json.dumps(service.export_session(session_id, is_whole=True)))
    return exported


def test_a_whole_export_has_all_branches(here: ChatService, there: ChatService) -> None:
    session = branched(here)
    assert here.num_beside(session) > 0
    document = whole(here, session)
    assert len(document["beside"]) == here.num_beside(session)
    assert not there.is_here(document)
    copy = there.import_session(document)
    assert there.is_here(document)
    assert [m.text for m in there.transcript(copy.session_id)] == [
        m.text for m in here.transcript(session)
    ]
    assert there.verify() == []
    again = whole(there, copy.session_id)
    assert (again["messages"], again["beside"]) == (document["messages"], document["beside"])
    path_alone = here.export_session(session)
    assert "beside" not in path_alone
    there.delete(copy.session_id)
    with there.store.database.reading() as connection:
        assert connection.execute("SELECT count(*) FROM nodes").fetchone() == (0,)


@pytest.mark.parametrize("parent_id", ["b2:elsewhere", 7, None])
def test_a_branch_that_leads_nowhere_is_refused(
    here: ChatService, there: ChatService, parent_id: object
) -> None:
    document = whole(here, branched(here))
    document["beside"][0]["parent_id"] = parent_id
    with pytest.raises(ChatcacheError):
        there.import_session(document)
    assert there.list_sessions() == []


def test_words_beside_the_path_that_were_altered_are_noticed(
    here: ChatService, there: ChatService
) -> None:
    document = whole(here, branched(here))
    document["beside"][-1]["text"] += "!"
    with pytest.raises(DamageError):
        there.import_session(document)
