"""Data directories that cannot be used: each is said in a sentence, and left as it is."""

from __future__ import annotations

import os
import shutil
import sqlite3
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path

import pytest

from chatcache import cli
from chatcache.chat import schema
from chatcache.chat.conversation import Message
from chatcache.chat.journal_table import Namespace
from chatcache.chat.store import Origin, SessionStore
from chatcache.config import DATABASE_NAME
from chatcache.errors import DamagedStorageError, StorageError
from chatcache.token_ids import NO_IDS


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / DATABASE_NAME


def refusal(path: Path) -> StorageError:
    with pytest.raises(StorageError) as caught:
        SessionStore(path)
    assert caught.value.message.endswith(".")
    assert caught.value.hint.endswith(".")
    return caught.value


def test_a_file_that_is_no_database(path: Path) -> None:
    path.write_bytes(b"Dear diary, " * 1000)
    assert "is not a database" in refusal(path).message
    assert path.read_bytes() == b"Dear diary, " * 1000


def test_a_database_of_another_program(path: Path) -> None:
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE recipes (name TEXT)")
    connection.commit()
    connection.close()
    before = path.read_bytes()
    assert "another program" in refusal(path).message
    assert path.read_bytes() == before


def test_a_database_of_a_newer_chatcache(path: Path) -> None:
    SessionStore(path).close()
    connection = sqlite3.connect(path)
    connection.execute(f"PRAGMA user_version = {schema.VERSION + 1}")
    connection.close()
    before = path.read_bytes()
    assert "newer chatcache" in refusal(path).message
    assert path.read_bytes() == before


def test_an_empty_file_is_a_new_database(path: Path) -> None:
    path.touch()
    SessionStore(path).close()
    assert path.stat().st_size > 0


def test_a_truncated_file_with_a_log_beside_it_is_not_started_anew(path: Path) -> None:
    path.touch()
    log = path.with_name(path.name + "-wal")
    log.write_bytes(b"words")
    assert "truncated" in refusal(path).message
    assert log.read_bytes() == b"words"


@pytest.mark.parametrize("keep", [0.3, 0.6, 0.9])
def test_a_cut_off_database_is_not_overwritten(path: Path, keep: float) -> None:
    store = SessionStore(path)
    for number in range(50):
        store.create(f"session {number}")
    store.close()
    whole = path.read_bytes()
    cut = whole[: int(len(whole) * keep)]
    path.write_bytes(cut)
    with pytest.raises(StorageError):
        SessionStore(path).list()
    assert path.read_bytes()[:100] == cut[:100]


@pytest.mark.parametrize("word", [b"ON nodes(parent)", b"CREATE TABLE nodes"])
def test_damage_that_sqlite_cannot_even_quote(path: Path, word: bytes) -> None:
    SessionStore(path).close()
    damaged = path.read_bytes().replace(word, word.replace(b"nodes", b"nod\xa8s"))
    path.write_bytes(damaged)
    error = refusal(path)
    assert isinstance(error, DamagedStorageError)
    assert "is damaged" in error.message
    assert path.read_bytes()[100:] == damaged[100:]


@pytest.mark.parametrize("column", ["name", "session_id", "forked_from"])
def test_a_column_that_is_no_text(path: Path, column: str) -> None:
    store = SessionStore(path)
    store.create("a")
    store.close()
    connection = sqlite3.connect(path)
    connection.execute(f"UPDATE sessions SET {column} = CAST(X'41A8' AS TEXT)")
    connection.commit()
    connection.close()
    store = SessionStore(path)
    with pytest.raises(DamagedStorageError, match="is damaged"):
        store.list()
    store.close()


@pytest.mark.parametrize(
    "damage",
    [
        "UPDATE sessions SET tip = 4711",
        "UPDATE namespaces SET fields = '{'",
        "UPDATE namespaces SET fields = 7",
        "DELETE FROM nodes WHERE parent IS NULL",
        "DELETE FROM node_words_data",
        "DELETE FROM node_parts_data",
        "DELETE FROM node_words_idx",
    ],
)
def test_no_damage_is_a_bug_of_the_program(
    path: Path, damage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """What a damaged file says is not to be believed, and is no reason for a traceback."""
    store = SessionStore(path)
    session_id = store.create("a").session_id
    asked = store.add_user(session_id, None, Message("user", "one"), None)
    origin = Origin(Namespace("ns", "tok", {"a": "b"}), "local", "{}", NO_IDS, NO_IDS, 3)
    store.add_answer(session_id, asked, Message("assistant", "ONE"), asked.seq, origin)
    store.close()
    connection = sqlite3.connect(path)
    connection.execute(damage)
    connection.commit()
    connection.close()
    places = ["--data-dir", str(path.parent), "--cache-dir", str(path.parent / "cache")]
    places += ["--config", str(path.parent / "config.toml")]
    path.with_name("config.toml").touch()
    for words in (
        ["sessions", "list", "--json"],
        ["sessions", "show", "a", "--json"],
        ["sessions", "tree", "a"],
        ["sessions", "search", "one"],
        ["sessions", "export", "a"],
        ["sessions", "rename", "a", "b"],
        ["sessions", "delete", "b", "--yes"],
    ):
        code = cli.main([*words, *places])
        assert code in (0, 3, 5), (words, capsys.readouterr().err)


@pytest.mark.parametrize("is_replaced", [False, True])
def test_words_are_not_written_to_a_file_that_was_removed(path: Path, is_replaced: bool) -> None:
    path = path.parent / "data" / path.name
    store = SessionStore(path)
    store.create("kept")
    path.parent.rename(path.parent.with_name("elsewhere"))
    if is_replaced:
        SessionStore(path).close()
    with pytest.raises(StorageError, match="removed or replaced"):
        store.create("lost")
    assert [one.name for one in store.list()] == ["kept"]
    store.close()


def test_a_directory_in_the_place_of_the_file(path: Path) -> None:
    path.mkdir()
    assert "not a file" in refusal(path).message


def test_a_file_in_the_place_of_the_directory(tmp_path: Path) -> None:
    (tmp_path / "data").write_text("x")
    assert "not a directory" in refusal(tmp_path / "data" / DATABASE_NAME).message
    assert "not a directory" in refusal(tmp_path / "data" / "deep" / DATABASE_NAME).message


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may write anywhere")
def test_a_directory_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir(mode=0o500)
    assert "permission denied" in refusal(tmp_path / "data" / DATABASE_NAME).message


@pytest.mark.parametrize(
    ("name", "word"),
    [
        ("SQLITE_READONLY", "read-only"),
        ("SQLITE_CANTOPEN", "read-only"),
        ("SQLITE_BUSY", "locked"),
        ("SQLITE_CORRUPT", "damaged"),
        ("SQLITE_IOERR", "cannot be used"),
    ],
)
def test_what_sqlite_reports_is_told_in_a_sentence(path: Path, name: str, word: str) -> None:
    store = SessionStore(path)

    def fail() -> None:
        with store.database.reading():
            error = sqlite3.OperationalError("as reported")
            error.sqlite_errorname = name
            error.sqlite_errorcode = getattr(sqlite3, name)
            raise error

    with pytest.raises(StorageError, match=word):
        fail()
    store.close()


def test_a_failed_migration_leaves_the_old_version(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    SessionStore(path).close()
    broken = (*schema.MIGRATIONS, ("CREATE TABLE extra (a)", "SELECT nonsense FROM nowhere"))
    monkeypatch.setattr(schema, "MIGRATIONS", broken)
    monkeypatch.setattr(schema, "VERSION", len(broken))
    refusal(path)
    monkeypatch.undo()
    store = SessionStore(path)
    with store.database.reading() as connection:
        assert connection.execute("PRAGMA user_version").fetchone() == (schema.VERSION,)
        tables = connection.execute("SELECT name FROM sqlite_master").fetchall()
    store.close()
    assert ("extra",) not in tables


def test_a_migration_keeps_what_was_said(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = SessionStore(path)
    store.create("kept")
    store.close()
    newer = (*schema.MIGRATIONS, ("ALTER TABLE sessions ADD COLUMN colour TEXT",))
    monkeypatch.setattr(schema, "MIGRATIONS", newer)
    monkeypatch.setattr(schema, "VERSION", len(newer))
    store = SessionStore(path)
    assert [one.name for one in store.list()] == ["kept"]
    store.close()


def test_words_are_flushed_and_forks_are_not(path: Path) -> None:
    store = SessionStore(path)
    synchronous: list[Callable[[], int]] = []
    with store.database.reading() as connection:
        pragma = "PRAGMA synchronous"
        synchronous.append(lambda: int(connection.execute(pragma).fetchone()[0]))
    row = store.create("a")
    assert synchronous[0]() == 2
    store.fork(row, None, None)
    assert synchronous[0]() == 1
    with store.database.reading() as connection:
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
        assert connection.execute("PRAGMA foreign_keys").fetchone() == (1,)
    store.close()


@pytest.mark.parametrize(("num_free", "expected"), [(0, "disk is full"), (1 << 30, "I/O error")])
def test_a_disk_so_full_that_nothing_can_be_shared(
    path: Path, monkeypatch: pytest.MonkeyPatch, num_free: int, expected: str
) -> None:
    store = SessionStore(path)
    usage = namedtuple("usage", "free")(num_free)
    monkeypatch.setattr(shutil, "disk_usage", lambda place: usage)
    error = sqlite3.OperationalError("disk I/O error")
    error.sqlite_errorname = "SQLITE_IOERR_SHMSIZE"
    error.sqlite_errorcode = sqlite3.SQLITE_IOERR_SHMSIZE
    with pytest.raises(StorageError, match=expected), store.database.reading():
        raise error
    store.close()
