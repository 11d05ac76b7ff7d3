"""Deleting a session tells whoever keeps K and V which journals are gone, and which stay."""

from __future__ import annotations

from pathlib import Path

from chatcache.backends.base import PrefillProgress
from chatcache.chat.forget import Journals
from chatcache.chat.service import ChatService
from chatcache.chat.store import SessionStore
from chatcache.token_ids import TokenIds
from tests.fakes import FakeBackend, encode


def test_what_was_read_for_a_question_without_an_answer_is_forgotten_too(tmp_path: Path) -> None:
    backend = FakeBackend(starts_ready=True)
    backend.start()
    told: list[tuple[Journals, Journals]] = []
    service = ChatService(
        SessionStore(tmp_path / "words.sqlite3"),
        backend,
        forget_kv=lambda namespace, gone, kept: told.append((gone, kept)),
    )
    other = service.create_session("other").session_id
    list(service.send(other, "hello"))
    session = service.create_session("stopped").session_id
    backend.gate("prefill")
    for event in service.send(session, "a secret"):
        if isinstance(event, PrefillProgress):
            service.stop()
    assert [one.role for one in service.transcript(session)] == ["user"]
    service.delete(session)
    ((gone, kept),) = told
    assert [contains(journal, "a secret") for journal in gone] == [True]
    assert [contains(journal, "hello") for journal in kept] == [True]
    service.close()


def contains(journal: TokenIds, text: str) -> bool:
    wanted = TokenIds(encode(text))
    starts = range(len(journal) - len(wanted) + 1)
    return any(journal[at : at + len(wanted)] == wanted for at in starts)
