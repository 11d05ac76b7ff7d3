"""The store: what is kept, found, shared, and deleted."""

from __future__ import annotations

import os
import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from chatcache.chat import verify
from chatcache.chat.conversation import Message, grow
from chatcache.chat.journal_table import JournalEntry, Namespace
from chatcache.chat.node_table import StoredNode
from chatcache.chat.search import search
from chatcache.chat.store import Origin, SessionStore
from chatcache.config import DATABASE_NAME
from chatcache.errors import DamageError, NotFoundError, StorageError, UsageError
from chatcache.token_ids import NO_IDS, TokenIds

NAMESPACE = Namespace("ns", "tok", {"weights": "w"})


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "data" / DATABASE_NAME


@pytest.fixture
def store(path: Path) -> Iterator[SessionStore]:
    store = SessionStore(path)
    yield store
    store.close()


def say(store: SessionStore, session_id: str, text: str) -> StoredNode:
    """A turn: a question and its answer."""
    tip = store.sessions.tip(session_id)
    parent = store.nodes.get(tip) if tip is not None else None
    question = store.add_user(session_id, parent, Message("user", text, created_ms=1), tip)
    journal = store.journals.journal(tip, "tok")
    new_ids = TokenIds(ord(char) for char in text)
    store.plan_turn(question, "tok", JournalEntry(len(journal), new_ids))
    answer = Message("assistant", text.upper(), None, "model", "stop", 2)
    origin = Origin(NAMESPACE, "local", "{}", journal + new_ids, TokenIds((1, 2)))
    return store.add_answer(session_id, question, answer, question.seq, origin)


def texts(store: SessionStore, session_id: str) -> list[str]:
    return [stored.node.text for stored in store.nodes.path(store.sessions.tip(session_id))]


def num_nodes(store: SessionStore) -> int:
    with store.database.reading() as connection:
        return int(connection.execute("SELECT count(*) FROM nodes").fetchone()[0])


@pytest.mark.skipif(os.name != "posix", reason="POSIX permissions")
def test_the_words_are_private(store: SessionStore, path: Path) -> None:
    say(store, store.create("a").session_id, "hello")
    assert path.parent.stat().st_mode & 0o777 == 0o700
    assert {file.stat().st_mode & 0o777 for file in path.parent.iterdir()} == {0o600}


def test_a_loose_file_is_tightened(path: Path) -> None:
    SessionStore(path).close()
    path.chmod(0o644)
    SessionStore(path).close()
    assert path.stat().st_mode & 0o777 == 0o600


def test_what_was_said_is_there_after_reopening(path: Path) -> None:
    store = SessionStore(path)
    session_id = store.create("a", Message("system", "Be kind.")).session_id
    say(store, session_id, "one")
    say(store, session_id, "two")
    store.close()
    again = SessionStore(path)
    assert texts(again, session_id) == ["Be kind.", "one", "ONE", "two", "TWO"]
    (summary,) = again.list()
    assert (summary.name, summary.num_turns, summary.num_tokens, summary.model) == (
        "a",
        2,
        10,
        "model",
    )
    assert again.journals.journal(again.sessions.tip(session_id), "tok") == TokenIds(
        (
            *map(ord, "one"),
            1,
            2,
            *map(ord, "two"),
            1,
            2,
        )
    )
    assert again.journals.journal(again.sessions.tip(session_id), "another") == NO_IDS
    assert verify.problems(again.database) == []
    again.close()


def test_sessions_are_found_by_name_id_and_prefix(store: SessionStore) -> None:
    first = store.create("plans").session_id
    second = store.create("plans").session_id
    assert store.find("plans").session_id == second
    say(store, first, "used now")
    assert store.find("plans").session_id == first
    assert store.find(second).session_id == second
    assert store.find(second[:-1]).session_id == second
    with pytest.raises(NotFoundError) as caught:
        store.find("plan")
    assert "'plans'" in caught.value.hint
    for unknown in ("s_", "", "s_zz", "\ud800", "a\x00b"):
        with pytest.raises(NotFoundError):
            store.find(unknown)
    assert store.create("two\nlines").session_id == store.find("two\nlines").session_id


def test_a_prefix_of_several_ids_is_refused(store: SessionStore) -> None:
    ids = {store.create(f"n{index}").session_id[:3] for index in range(40)}
    shared = next(
        prefix for prefix in ids if sum(s.session_id.startswith(prefix) for s in store.list()) > 1
    )
    with pytest.raises(UsageError, match="several"):
        store.find(shared)


def test_the_list_has_the_last_used_first(store: SessionStore) -> None:
    a, b, c = (store.create(name).session_id for name in "abc")
    assert [one.name for one in store.list()] == ["c", "b", "a"]
    say(store, a, "x")
    say(store, b, "y")
    assert [one.session_id for one in store.list()] == [b, a, c]


def test_ten_thousand_sessions_are_listed_by_one_query(store: SessionStore) -> None:
    with store.database.writing() as connection:
        connection.executemany(
            "INSERT INTO sessions (session_id, name, created_ms, updated_us) VALUES (?, ?, 0, ?)",
            [(f"s_{number:012x}", f"name {number}", number) for number in range(10_000)],
        )
    queries: list[str] = []
    with store.database.reading() as connection:
        connection.set_trace_callback(queries.append)
        assert len(store.list()) == 10_000
        connection.set_trace_callback(None)
    assert len(queries) == 1


def test_a_fork_is_one_row(store: SessionStore) -> None:
    source = store.create("a").session_id
    say(store, source, "one")
    say(store, source, "two")
    before = store.list()
    count = num_nodes(store)
    row = store.sessions.row(source)
    fork = store.fork(row, store.nodes.at_turn(row.tip, 1), None)
    assert num_nodes(store) == count
    assert fork.name == "a (fork)"
    assert texts(store, fork.session_id) == ["one", "ONE"]
    assert [one for one in store.list() if one.session_id == source] == before
    say(store, fork.session_id, "three")
    assert texts(store, source) == ["one", "ONE", "two", "TWO"]


@pytest.mark.parametrize("num_turns", [1, 2, 7, 64, 100])
def test_every_turn_is_found(store: SessionStore, num_turns: int) -> None:
    session_id = store.create("a", Message("system", "s")).session_id
    tip = None
    with store.database.writing():
        for number in range(num_turns):
            tip = say(store, session_id, str(number)).seq
    for turn in range(num_turns + 1):
        seq = store.nodes.at_turn(tip, turn)
        assert seq is not None
        assert store.nodes.get(seq).node.turn == turn
        expected = "s" if turn == 0 else str(turn - 1)
        assert store.nodes.get(seq).node.text == expected
        if turn:
            assert tip is not None
            assert store.nodes.question(tip, turn).node.text == str(turn - 1)
    assert verify.problems(store.database) == []


def test_a_turn_is_found_in_few_steps(store: SessionStore) -> None:
    session_id = store.create("a").session_id
    words = [Message("user", str(number)) for number in range(2000)]
    with store.database.writing():
        tip = store.nodes.insert_below(grow(None, words), None, session_id)[-1].seq
    queries: list[str] = []
    with store.database.reading() as connection:
        connection.set_trace_callback(queries.append)
        assert store.nodes.at_turn(tip, 3) is not None
        connection.set_trace_callback(None)
    assert len(queries) < 50


def test_deleting_takes_only_what_nobody_else_reaches(store: SessionStore) -> None:
    a = store.create("a").session_id
    say(store, a, "one")
    row = store.sessions.row(a)
    b = store.fork(row, row.tip, "b").session_id
    say(store, a, "only in a")
    say(store, b, "only in b")
    store.delete(a)
    assert texts(store, b) == ["one", "ONE", "only in b", "ONLY IN B"]
    assert num_nodes(store) == 4
    assert verify.problems(store.database) == []
    store.delete(b)
    with store.database.reading() as connection:
        for table in ("nodes", "journals", "answers", "sessions", "partials"):
            assert connection.execute(f"SELECT count(*) FROM {table}").fetchone() == (0,)
    assert search(store.database, "only") == []


def test_variants_of_a_living_session_survive_the_end_of_its_fork(store: SessionStore) -> None:
    a = store.create("a").session_id
    first = say(store, a, "one")
    question = store.nodes.question(first.seq, 1)
    second = Message("assistant", "another", None, "model", "stop", 3)
    store.add_answer(a, question, second, first.seq, None)
    fork = store.fork(store.sessions.row(a), first.seq, "b").session_id
    store.delete(fork)
    assert [one.node.text for one in store.nodes.siblings(first)] == ["ONE", "another"]


def test_a_branch_that_outlives_its_session_has_a_new_owner(store: SessionStore) -> None:
    a = store.create("a").session_id
    say(store, a, "shared")
    row = store.sessions.row(a)
    b = store.fork(row, row.tip, "b").session_id
    said_in_b = say(store, b, "said in b")
    store.sessions.move_tip(a, row.tip, said_in_b.seq)
    store.delete(b)
    assert texts(store, a)[-1] == "SAID IN B"
    assert search(store.database, "said")[0].session_id == a
    store.sessions.move_tip(a, said_in_b.seq, row.tip)
    assert verify.problems(store.database) == []
    store.delete(a)
    assert num_nodes(store) == 0


def test_deleting_leaves_no_readable_words_in_the_file(store: SessionStore, path: Path) -> None:
    session_id = store.create("a").session_id
    say(store, session_id, "confidential-" * 50)
    say(store, store.create("b").session_id, "everyday words")
    store.delete(session_id)
    store.close()
    assert b"confidential" not in path.read_bytes().lower()
    assert b"everyday" in path.read_bytes()
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_a_name_of_ones_own_is_not_replaced(store: SessionStore) -> None:
    named, unnamed = store.create("mine").session_id, store.create().session_id
    say(store, named, "first words")
    say(store, unnamed, "first words")
    say(store, unnamed, "second words")
    assert store.sessions.row(named).name == "mine"
    assert store.sessions.row(unnamed).name == "first words"
    other = store.create().session_id
    say(store, other, "first words")
    assert store.sessions.row(other).name == "first words (2)"


def test_search_finds_names_and_words_and_no_syntax(store: SessionStore) -> None:
    a = store.create("garden plans").session_id
    say(store, a, 'Which "trees" grow NEAR water? (willows)')
    hits = search(store.database, "tree")
    assert {(hit.session_id, hit.turn) for hit in hits} == {(a, 1)}
    assert "trees" in hits[0].snippet.casefold()
    assert search(store.database, "gard")[0].node_id is None
    for text in ('"', "NEAR(", "* OR", "a:b", "-", "", "(willows"):
        search(store.database, text)
    assert search(store.database, "willows missing") == []
    store.sessions.rename(a, "house")
    assert search(store.database, "garden") == []


def test_two_megabytes_are_a_message_like_any_other(store: SessionStore) -> None:
    text = "Ünïcödé 🦉 \x1b[0m\t" * 100_000
    session_id = store.create().session_id
    tip = store.add_user(session_id, None, Message("user", text), None)
    assert store.nodes.get(tip.seq).node.text == text
    assert len(store.list()[0].preview) <= 120
    assert verify.problems(store.database) == []


def test_a_journal_is_written_once(store: SessionStore) -> None:
    session_id = store.create().session_id
    question = store.add_user(session_id, None, Message("user", "q"), None)
    store.plan_turn(question, "tok", JournalEntry(0, TokenIds((1, 2))))
    store.plan_turn(question, "tok", JournalEntry(0, TokenIds((3,))))
    assert store.journals.journal(question.seq, "tok") == TokenIds((1, 2))


def test_a_damaged_journal_is_believed_up_to_the_damage(store: SessionStore) -> None:
    session_id = store.create("a").session_id
    say(store, session_id, "one")
    tip = say(store, session_id, "two")
    with store.database.writing() as connection:
        connection.execute(
            "UPDATE journals SET new_ids = ? WHERE node = ?", (TokenIds((9, 9)).packed, tip.seq)
        )
    assert store.journals.journal(tip.seq, "tok") == TokenIds(
        (*map(ord, "one"), 1, 2, *map(ord, "two"))
    )
    (problem,) = verify.problems(store.database)
    assert tip.node.node_id in problem


def test_verify_names_altered_words_and_dangling_rows(store: SessionStore, path: Path) -> None:
    session_id = store.create("a").session_id
    tip = say(store, session_id, "one")
    other = store.create("b").session_id
    store.close()
    connection = sqlite3.connect(path)
    connection.execute("UPDATE nodes SET text = 'TWO' WHERE seq = ?", (tip.seq,))
    connection.execute("UPDATE sessions SET tip = 4711 WHERE session_id = ?", (other,))
    connection.execute("UPDATE nodes SET parent = 4712 WHERE role = 'user'")
    connection.commit()
    connection.close()
    again = SessionStore(path)
    found = " ".join(verify.problems(again.database))
    assert f"Message {tip.node.node_id} (turn 1) does not have the words" in found
    assert f"Session {other} points at a message that does not exist." in found
    assert "has a parent that does not exist." in found
    assert "search index node_words" in found
    for broken in (other, session_id):
        with pytest.raises(DamageError):
            texts(again, broken)
    again.close()


def test_a_failed_step_leaves_nothing_behind(store: SessionStore) -> None:
    session_id = store.create("a").session_id

    def fail_halfway() -> None:
        with store.database.writing():
            store.add_user(session_id, None, Message("user", "lost"), None)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail_halfway()
    assert store.sessions.tip(session_id) is None
    assert num_nodes(store) == 0
    say(store, session_id, "next")


def test_a_full_disk_is_said_and_nothing_is_half_written(store: SessionStore) -> None:
    session_id = store.create("a").session_id
    say(store, session_id, "before")
    with store.database.reading() as connection:
        pages = connection.execute("PRAGMA page_count").fetchone()[0]
        connection.execute(f"PRAGMA max_page_count = {pages}")
    tip = store.sessions.tip(session_id)
    with pytest.raises(StorageError, match="disk is full"):
        store.add_user(session_id, None, Message("user", "x" * 1_000_000), tip)
    assert texts(store, session_id) == ["before", "BEFORE"]
    with store.database.reading() as connection:
        connection.execute("PRAGMA max_page_count = 1000000")
    say(store, session_id, "after")
    assert verify.problems(store.database) == []


def test_threads_share_a_store(store: SessionStore) -> None:
    errors: list[BaseException] = []

    def work(name: str) -> None:
        try:
            session_id = store.create(name).session_id
            for number in range(10):
                say(store, session_id, f"{name} {number}")
                store.list()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(f"t{index}",)) for index in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert sorted(one.num_turns for one in store.list()) == [10] * 4
    assert verify.problems(store.database) == []
