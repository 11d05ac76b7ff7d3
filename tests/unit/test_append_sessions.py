"""The mode of a session: where it is kept, who inherits it, and what a turn is asked with."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

from chatcache import cli
from chatcache.backends.base import TurnRequest
from chatcache.chat import schema
from chatcache.chat.service import ChatService
from chatcache.chat.store import SessionStore
from chatcache.chat.views import AnswerSaved, ChatEvent
from chatcache.config import DATABASE_NAME
from chatcache.errors import NotFoundError
from chatcache.token_ids import NO_IDS
from tests.fakes import FakeBackend


@pytest.fixture
def backend() -> FakeBackend:
    backend = FakeBackend(["One.", "Two.", "Three.", "Four."], starts_ready=True)
    backend.start()
    return backend


@pytest.fixture
def service(tmp_path: Path, backend: FakeBackend) -> Iterator[ChatService]:
    with ChatService(SessionStore(tmp_path / DATABASE_NAME), backend) as service:
        yield service


def finish(events: Iterator[ChatEvent]) -> AnswerSaved:
    *_, last = events
    assert isinstance(last, AnswerSaved)
    return last


def last_request(backend: FakeBackend) -> TurnRequest:
    return backend.requests[-1]


def begin(service: ChatService, *texts: str) -> str:
    session_id = service.create_session("chat", "Be brief.").session_id
    service.set_history_mode(session_id, "append")
    for text in texts:
        finish(service.send(session_id, text))
    return session_id


def mode_of(service: ChatService, reference: str) -> str:
    return service.find_session(reference).history_mode


def test_a_session_is_canonical_until_it_is_told(
    service: ChatService, backend: FakeBackend
) -> None:
    session_id = service.create_session("chat").session_id
    finish(service.send(session_id, "one"))
    assert (last_request(backend).history_mode, last_request(backend).num_read) == ("canonical", 0)
    service.set_history_mode(session_id, "append")
    finish(service.send(session_id, "two"))
    request = last_request(backend)
    assert (request.history_mode, request.num_read) == ("append", 2)
    assert request.journal == service.store.journals.journal(
        service.store.nodes.path(service.store.sessions.tip(session_id))[1].seq,
        backend.info.tokenizer_id,
    )
    service.set_history_mode(session_id, "canonical")
    finish(service.send(session_id, "three"))
    assert last_request(backend).history_mode == "canonical"


def test_an_unknown_session_has_no_mode(service: ChatService) -> None:
    with pytest.raises(NotFoundError):
        service.set_history_mode("s_000000000000", "append")


def test_a_fork_and_the_branch_before_an_edit_inherit_the_mode(
    service: ChatService, backend: FakeBackend
) -> None:
    session_id = begin(service, "one", "two")
    fork = service.fork(session_id, at_turn=1)
    assert mode_of(service, fork.session_id) == "append"
    finish(service.send(fork.session_id, "other"))
    assert (last_request(backend).history_mode, last_request(backend).num_read) == ("append", 3)
    finish(service.edit(session_id, 2, "changed"))
    assert (last_request(backend).history_mode, last_request(backend).num_read) == ("append", 3)
    assert mode_of(service, "chat (before edit)") == "append"


def test_the_line_of_another_window_inherits_the_mode(service: ChatService, tmp_path: Path) -> None:
    session_id = begin(service, "one")
    other = FakeBackend(["Other."], starts_ready=True)
    other.start()
    with ChatService(SessionStore(tmp_path / DATABASE_NAME), other) as window:
        window.transcript(session_id)
        finish(service.send(session_id, "two"))
        finish(window.send(session_id, "three"))
    assert mode_of(service, "chat (other window)") == "append"


def test_regenerating_goes_on_from_the_answer_before(
    service: ChatService, backend: FakeBackend
) -> None:
    session_id = begin(service, "one", "two")
    first = last_request(backend)
    finish(service.regenerate(session_id))
    again = last_request(backend)
    assert (again.journal, again.num_read) == (first.journal, first.num_read)


def test_continuing_covers_the_answer_itself(service: ChatService, backend: FakeBackend) -> None:
    session_id = begin(service, "one")
    gate = backend.gate("delta:1")
    backend._answers = ["Two and three and four."]
    events = service.send(session_id, "two")
    for event in events:
        if type(event).__name__ == "TextDelta":
            service.stop()
            gate.open()
    finish(service.continue_answer(session_id))
    request = last_request(backend)
    assert request.continue_answer
    assert request.num_read == len(request.messages) == 5


def test_a_question_without_an_answer_is_written_anew(
    service: ChatService, backend: FakeBackend
) -> None:
    """Its prompt was read, but the next prompt says both questions in one message."""
    session_id = begin(service, "one")
    answered = service.session_journal(session_id)
    backend.fail_at = "answer"
    with pytest.raises(Exception, match="failed"):
        finish(service.send(session_id, "two"))
    backend.fail_at = None
    finish(service.send(session_id, "three"))
    request = last_request(backend)
    assert answered is not None
    assert (request.journal, request.num_read) == (answered.ids, 3)
    assert request.messages[-1].text == "two\n\nthree"


def test_the_journal_is_what_was_read_even_where_it_leaves_its_parents(
    service: ChatService, backend: FakeBackend
) -> None:
    """The question before was read and not answered: its journal is no beginning of this one's."""
    session_id = begin(service, "one")
    backend.fail_at = "answer"
    with pytest.raises(Exception, match="failed"):
        finish(service.send(session_id, "two"))
    backend.fail_at = None
    saved = finish(service.send(session_id, "three"))
    journal = service.session_journal(session_id)
    assert journal is not None
    prompt = backend.render(last_request(backend).messages)
    assert list(journal.ids[: len(prompt)]) == prompt
    assert len(journal.ids) == len(prompt) + saved.result.usage.completion_tokens


def test_another_system_prompt_begins_a_new_journal(
    service: ChatService, backend: FakeBackend
) -> None:
    session_id = begin(service, "one")
    service.set_system(session_id, "Be long.")
    finish(service.send(session_id, "two"))
    assert (last_request(backend).journal, last_request(backend).num_read) == (NO_IDS, 0)
    finish(service.send(session_id, "three"))
    assert last_request(backend).num_read == 5


def test_a_turn_that_is_not_kept_has_the_mode_of_its_session(
    service: ChatService, backend: FakeBackend
) -> None:
    session_id = begin(service, "one")
    finish(service.send(session_id, "two", save=False))
    assert (last_request(backend).history_mode, last_request(backend).num_read) == ("append", 3)
    finish(service.send("", "alone", save=False))
    assert last_request(backend).history_mode == "canonical"


def test_the_mode_travels_with_an_exported_session(service: ChatService) -> None:
    document = service.export_session(begin(service, "one"))
    assert service.import_session(document).history_mode == "append"
    del document["history_mode"]  # as an older chatcache wrote it
    assert service.import_session(document).history_mode == "canonical"


# the database


def test_a_database_of_the_first_version_is_brought_up_to_date(tmp_path: Path) -> None:
    path = tmp_path / DATABASE_NAME
    connection = sqlite3.connect(path)
    for statement in schema.MIGRATIONS[0]:
        connection.execute(statement)
    connection.execute(f"PRAGMA application_id = {schema.APPLICATION_ID}")
    connection.execute("PRAGMA user_version = 1")
    connection.execute(
        "INSERT INTO sessions (session_id, name, created_ms, updated_us)"
        " VALUES ('s_0123456789ab', 'old chat', 1, 1)"
    )
    connection.commit()
    connection.close()
    store = SessionStore(path)
    try:
        (session,) = store.list()
        assert (session.name, session.history_mode) == ("old chat", "canonical")
        store.sessions.set_history_mode(session.session_id, "append")
        assert store.find("old chat").history_mode == "append"
    finally:
        store.close()


# the shell


def test_the_mode_is_shown_and_set_in_the_shell(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = SessionStore(home / "data" / DATABASE_NAME)
    store.create("talk")
    store.close()

    def run(*words: str) -> tuple[int, str]:
        capsys.readouterr()
        return cli.main(["sessions", *words]), capsys.readouterr().out

    assert run("mode", "talk")[1].startswith("canonical:")
    assert run("mode", "talk", "append")[1].startswith("append:")
    code, out = run("mode", "talk", "--json")
    assert (code, json.loads(out)["history_mode"]) == (0, "append")
    assert json.loads(run("show", "talk", "--json")[1])["history_mode"] == "append"
    assert "append: what was read stays" in run("show", "talk")[1]
    assert run("mode", "talk", "sideways")[0] == 2
    assert run("mode", "nobody", "append")[0] == 3
