"""Directories on file systems that can less than a local disk: they are used as far as it goes.

What the operating system says is put in its place; SQLite and its files are real."""

from __future__ import annotations

import errno
import os
import shutil
import sqlite3
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from chatcache import atomic_write, os_failures, sqlite_file
from chatcache.atomic_write import write_atomically
from chatcache.cache.files.index import FILE_NAME, IndexRow
from chatcache.cache.files.segfile import (
    SegmentDamagedError,
    SegmentFile,
    SegmentMissingError,
)
from chatcache.cache.files.store import SegmentStore
from chatcache.chat import database
from chatcache.chat.store import SessionStore
from chatcache.config import DATABASE_NAME
from chatcache.configfile import set_value, write_default
from chatcache.errors import StorageError
from tests.kvfakes import Bench, ids_of


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / DATABASE_NAME


def names_in(path: Path) -> list[str]:
    store = SessionStore(path)
    names = [session.name for session in store.list()]
    store.close()
    return sorted(names)


def os_error(number: int) -> OSError:
    return OSError(number, os.strerror(number))


def mode_of(store: SessionStore) -> str:
    with store.database.reading() as connection:
        return str(connection.execute("PRAGMA journal_mode").fetchone()[0])


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere nobody tells where an open file is")
@pytest.mark.parametrize("has_log", [True, False])
def test_inode_numbers_that_change_are_no_other_file(
    path: Path, monkeypatch: pytest.MonkeyPatch, has_log: bool
) -> None:
    monkeypatch.setattr(sqlite_file, "_can_share", lambda path: has_log)
    numbers = iter(range(1000))
    monkeypatch.setattr(database, "_identity", lambda path: (1, next(numbers)))
    store = SessionStore(path)
    store.create("a")
    store.create("b")
    store.close()
    assert names_in(path) == ["a", "b"]


def test_a_file_whose_numbers_change_and_that_was_replaced_is_another(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = SessionStore(path)
    store.create("a")
    other = path.with_name("other")
    shutil.copyfile(path, other)
    other.replace(path)
    with pytest.raises(StorageError, match="removed or replaced"):
        store.create("b")
    store.close()


def test_a_file_system_that_keeps_no_permissions_is_used(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path.touch(mode=0o666)
    path.chmod(0o666)

    def refuse(*args: object, **rest: object) -> None:
        raise os_error(errno.EPERM)

    for name in ("chmod", "fchmod", "utime"):
        monkeypatch.setattr(os, name, refuse)
    monkeypatch.setattr(Path, "chmod", refuse)
    store = SessionStore(path)
    assert not store.database.is_private
    assert "keeps no permissions" in "".join(store.untold())
    assert store.untold() == ()
    store.create("a")
    store.close()
    config = path.with_name("config.toml")
    assert write_default(config)
    set_value(config, "ui.motion", "false")
    assert "motion = false" in config.read_text()
    bench = Bench(path.parent)
    bench.turn("You. ", "Hello! ", "Hi! ")
    bench.close()
    assert len(bench.files()) > 0


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOTSUP])
def test_a_file_system_without_flushing_is_used(
    path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def refuse(fd: int) -> None:
        raise os_error(number)

    monkeypatch.setattr(atomic_write.os, "fsync", refuse)
    write_atomically(path, b"a", is_durable=True)
    assert path.read_bytes() == b"a"


def test_without_shared_memory_there_is_no_log(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite_file, "_can_share", lambda path: False)
    store, other = SessionStore(path), SessionStore(path)
    assert mode_of(store) == "delete"
    store.create("a")
    row = other.create("b")
    with store.database.reading() as connection:
        store.fork(row, None, None)
        assert connection.execute("PRAGMA synchronous").fetchone() == (2,)
    store.close()
    other.close()
    assert not [name for name in path.parent.iterdir() if "-" in name.name]
    monkeypatch.undo()
    assert len(names_in(path)) == 3
    store = SessionStore(path)
    assert mode_of(store) == "wal"
    store.close()


def test_a_log_from_elsewhere_is_read_without_shared_memory(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was copied with its log, out of a killed program, to where no memory can be shared."""
    store = SessionStore(path)
    store.create("a")
    place = path.parent / "mount"
    place.mkdir()
    log = f"{path.name}-wal"
    for name in (path.name, log):
        shutil.copyfile(path.with_name(name), place / name)
    store.close()
    (place / f"{path.name}-shm").symlink_to("/no/such/place")  # so that none can be made
    monkeypatch.setattr(sqlite_file, "_can_share", lambda path: False)
    assert names_in(place / path.name) == ["a"]
    assert not (place / log).exists()


@pytest.fixture
def no_locks(monkeypatch: pytest.MonkeyPatch) -> None:
    """What SQLite and the operating system say where files cannot be locked."""

    def refuse(*args: object) -> sqlite3.Connection:
        error = sqlite3.OperationalError("database is locked")
        error.sqlite_errorcode = sqlite3.SQLITE_BUSY
        error.sqlite_errorname = "SQLITE_BUSY"
        raise error

    monkeypatch.setattr(sqlite_file, "_connect", refuse)
    monkeypatch.setattr(sqlite_file, "lock_failure", lambda path: os_error(errno.ENOLCK))
    monkeypatch.setattr(database, "lock_failure", lambda path: os_error(errno.ENOLCK))


@pytest.mark.usefixtures("no_locks")
def test_where_nothing_can_be_locked_a_directory_is_the_lock(path: Path) -> None:
    stores = [SessionStore(path), SessionStore(path)]
    lock = sqlite_file.lock_directory(path)
    with stores[0].database.writing():
        assert lock.exists()
    assert not lock.exists()

    def talk(store: SessionStore, name: str) -> None:
        for number in range(10):
            store.create(f"{name}{number}")

    threads = [
        threading.Thread(target=talk, args=talker) for talker in zip(stores, "ab", strict=True)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(names_in(path)) == 20
    for store in stores:
        store.close()


@pytest.mark.usefixtures("no_locks")
def test_another_kind_of_lock_is_respected(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody who can lock is using it: the two would not see each other."""
    SessionStore(path).close()
    path.with_name(f"{path.name}-wal").write_bytes(b"x")
    with pytest.raises(StorageError, match="cannot lock files"):
        SessionStore(path)


@pytest.mark.usefixtures("no_locks")
def test_a_lock_that_was_left_behind_is_named(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    SessionStore(path).close()
    monkeypatch.setattr(database, "BUSY_SECONDS", 0.1)
    monkeypatch.setattr(database, "lock_failure", lambda path: None)
    lock = sqlite_file.lock_directory(path)
    lock.mkdir()
    with pytest.raises(StorageError) as caught:
        SessionStore(path)
    assert f"rmdir {lock}" in caught.value.hint
    lock.rmdir()
    SessionStore(path).close()


@pytest.mark.usefixtures("no_locks")
def test_the_index_takes_away_a_lock_that_was_left_behind(tmp_path: Path) -> None:
    index = SegmentStore(tmp_path, "ns").index
    (tmp_path / "segments" / "ns").mkdir(parents=True)
    lock = sqlite_file.lock_directory(tmp_path / "segments" / "ns" / FILE_NAME)
    lock.mkdir()
    os.utime(lock, (0, 0))
    row = IndexRow("1" * 32, None, 0, 3, ids_of("abc"), 100, False)
    with index.opened(is_writing=True):
        assert not lock.exists()
        index.add([row])
    with index.opened():
        assert index.latest(10) == [row]


def test_the_index_of_the_cache_is_kept_there_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite_file, "_can_share", lambda path: False)
    bench = Bench(tmp_path)
    bench.turn("You. ", "Hello! ", "Hi! ")
    bench.close()
    index = SegmentStore(tmp_path, "ns").index
    with index.opened():
        assert index.totals()[0] == len(bench.files())
    bench.reopen()
    assert bench.turn("You. ", "Hello! ", "Hi! ", "On. ", "Yes.") == len("You. Hello! Hi! ")
    bench.close()


@pytest.mark.skipif(sys.platform != "linux", reason="the limit is set as Linux has it")
def test_a_limit_on_the_size_of_files_is_named(path: Path) -> None:
    """With a real limit, in a process of its own."""
    SessionStore(path).close()
    talk = (
        "import resource, sys\n"
        "from pathlib import Path\n"
        "from chatcache.chat.store import SessionStore\n"
        "from chatcache.errors import StorageError\n"
        "store = SessionStore(Path(sys.argv[1]))\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))\n"
        "try:\n"
        "    for number in range(10_000):\n"
        "        store.create(f'{number}')\n"
        "except StorageError as error:\n"
        "    print(number, error.message, error.hint)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", talk, str(path)], capture_output=True, text=True, check=True
    )
    number, _, sentence = done.stdout.partition(" ")
    assert "may not grow any further" in sentence
    assert "ulimit -f" in sentence
    assert len(names_in(path)) == int(number) > 0


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (errno.EDQUOT, "quota"),
        (errno.EIO, "the disk fails"),
        (errno.ESTALE, "stale"),
        (errno.EROFS, "read-only"),
        (errno.EMFILE, "too many files"),
    ],
)
@pytest.mark.parametrize("name", ["SQLITE_IOERR_WRITE", "SQLITE_FULL", "SQLITE_CANTOPEN"])
def test_what_the_file_system_refuses_is_said_with_its_reason(
    path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    number: int,
    words: str,
    name: str,
) -> None:
    store = SessionStore(path)

    def refuse(*args: object) -> int:
        raise os_error(number)

    monkeypatch.setattr(os_failures.os, "write", refuse)
    error = sqlite3.OperationalError("disk I/O error")
    error.sqlite_errorname, error.sqlite_errorcode = name, getattr(sqlite3, name)
    with pytest.raises(StorageError, match=words) as caught, store.database.reading():
        raise error
    assert "doctor" not in caught.value.hint
    assert f"[Errno {number}]" in caplog.text
    store.close()
    monkeypatch.undo()
    assert names_in(path) == []


def test_what_cannot_be_written_for_want_of_space_can_be_read(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = SessionStore(path)
    store.create("a")
    store.close()

    def refuse(*args: object, **rest: object) -> sqlite3.Connection:
        error = sqlite3.OperationalError("database or disk is full")
        error.sqlite_errorname, error.sqlite_errorcode = "SQLITE_FULL", sqlite3.SQLITE_FULL
        raise error

    monkeypatch.setattr(sqlite_file, "connect", refuse)
    with pytest.raises(StorageError, match="disk is full"):
        SessionStore(path)
    store = SessionStore(path, may_be_read_only=True)
    assert [session.name for session in store.list()] == ["a"]
    store.close()


@pytest.mark.parametrize("is_network", [True, False])
@pytest.mark.parametrize("part", ["pread", "preadv"])
def test_a_mount_that_is_away_damages_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_network: bool, part: str
) -> None:
    bench = Bench(tmp_path)
    bench.turn("You. ", "Hello! ", "Hi! ")
    bench.close()

    def refuse(*args: object) -> int:
        raise os_error(errno.ESTALE if is_network else errno.EIO)

    monkeypatch.setattr(os, part, refuse)
    expected = SegmentMissingError if is_network else SegmentDamagedError
    with pytest.raises(expected), SegmentFile(bench.files()[0]) as file:
        file.verify()


def test_a_damaged_segment_is_set_aside_though_its_number_has_changed(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.turn("You. ", "Hello! ", "Hi! ")
    bench.close()
    sound, damaged = bench.files()[:2]
    content = bytearray(damaged.read_bytes())
    content[-1] ^= 1
    damaged.write_bytes(content)
    store = SegmentStore(tmp_path, "ns")
    for file in (sound, damaged):
        store.quarantine(file, inode=4711)
    assert (sound.exists(), damaged.exists()) == (True, False)
    assert bench.cache.lookup(ids_of("You. ")).num_tokens >= 0


def test_a_new_database_that_may_not_grow_says_so(path: Path) -> None:
    program = (
        "import resource, sys; from pathlib import Path;"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (16384, 16384));"
        "from chatcache.chat.store import SessionStore; SessionStore(Path(sys.argv[1]))"
    )
    ended = subprocess.run(
        [sys.executable, "-c", program, str(path)], capture_output=True, text=True, check=False
    )
    assert "may not grow any further" in ended.stderr.splitlines()[-1]
    assert names_in(path) == []
