"""Which segments lie in a namespace, and how their paths go on: an index that can be thrown away.

The headers of the files are the truth. A row tells the ids, the parent and the size of a segment,
so that opening reads no header and a prompt finds its way without opening a file. An id is computed
again from the ids of its path before it is used, so a row that is wrong, old or missing costs time
or reuse and never makes a reuse wrong.

It is one SQLite file beside the segments, shared by all processes. After a power cut its last rows
may be missing (WAL, `synchronous=NORMAL`); the next opening reads them from the headers. Pins and
rates are not in it, because a person or a measurement made them; nor is the time of the last use,
which every file carries itself.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sqlite3
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from chatcache import sqlite_file
from chatcache.cache.files.names import file_name, parse_name
from chatcache.sqlite_failures import SQLITE_FAILURES, is_damage, primary_code
from chatcache.token_ids import TokenIds

log = logging.getLogger(__name__)

FILE_NAME = "index-2.sqlite3"
_LOG_NAME = f"{FILE_NAME}-wal"
_OLD_NAME = "index-1.bin"  # of earlier versions, which noted the first ids of each segment
FILE_NAMES = (FILE_NAME, _LOG_NAME, f"{FILE_NAME}-shm", f"{FILE_NAME}-journal", _OLD_NAME)
_SECONDS_TO_WAIT = 1.0  # for another process that writes a row
_SECONDS_OF_A_LOCK = 60.0  # no row takes that long
_TRIES = 5
_NO_PARENT = ""
_SCHEMA = """
CREATE TABLE IF NOT EXISTS segment (
    id TEXT NOT NULL, parent TEXT NOT NULL, start INTEGER NOT NULL, stop INTEGER NOT NULL,
    ids BLOB NOT NULL, num_bytes INTEGER NOT NULL, has_states INTEGER NOT NULL,
    fork INTEGER -- the first position within it at which another segment goes on
);
CREATE INDEX IF NOT EXISTS known ON segment (id, parent);
CREATE INDEX IF NOT EXISTS way_on ON segment (parent, start, ids);
CREATE INDEX IF NOT EXISTS forked ON segment (parent, start) WHERE fork > 0;
CREATE TABLE IF NOT EXISTS total (num_segments INTEGER NOT NULL, num_bytes INTEGER NOT NULL);
INSERT INTO total SELECT 0, 0 WHERE NOT EXISTS (SELECT * FROM total);
CREATE TRIGGER IF NOT EXISTS added AFTER INSERT ON segment BEGIN
    UPDATE total SET num_segments = num_segments + 1, num_bytes = num_bytes + new.num_bytes;
END;
CREATE TRIGGER IF NOT EXISTS removed AFTER DELETE ON segment BEGIN
    UPDATE total SET num_segments = num_segments - 1, num_bytes = num_bytes - old.num_bytes;
END;
"""
_ROW = "SELECT id, parent, start, stop, ids, num_bytes, has_states, fork FROM segment"
_FORK = """
UPDATE segment SET fork = (
    SELECT min(child.start) FROM segment AS child
    WHERE child.parent = segment.id AND child.start < segment.stop
) WHERE id IN (?, ?)
"""


@dataclass(frozen=True, slots=True)
class IndexRow:
    """Where a segment belongs, and what it holds."""

    segment_id: str
    parent_id: str | None
    start: int
    stop: int
    token_ids: TokenIds
    num_bytes: int
    has_states: bool
    fork: int | None = field(default=None, compare=False)  # the index knows, the file does not


class SegmentIndex:
    """The index of the segments in `directory`. Thread-safe. No method raises for the state of the
    file: what cannot be read is not known, and what cannot be written is lost."""

    def __init__(self, directory: Path):
        self._path = directory / FILE_NAME
        self._log_path = directory / _LOG_NAME
        self._lock = threading.RLock()
        self._connection: sqlite3.Connection | None = None
        self._is_reader = False  # changes are noted in memory alone
        self._is_file = False  # it is connected to the file, not to memory
        self._version: list[object] = []

    def open(self, *, is_writing: bool) -> None:
        """Connect to the file, which is made if need be. Without `is_writing` nothing on disk is
        changed: changes are noted in memory."""
        with self._lock:
            self.close()
            self._is_reader = not is_writing
            self._connection = self._to_write() if is_writing else self._to_read()
            self._is_file = self._connection is not None
            self._version = self._version_now()

    def close(self) -> None:
        with self._lock:
            if self._connection is not None:
                self._connection.close()
            self._connection, self._is_file = None, False
            self._version = self._version_now()

    @contextlib.contextmanager
    def opened(self, *, is_writing: bool = False) -> Iterator[SegmentIndex]:
        """Open only while the block runs."""
        self.open(is_writing=is_writing)
        try:
            yield self
        finally:
            self.close()

    def exists(self) -> bool:
        """Whether there is a file, of this version or an earlier one."""
        return self._path.exists() or self._path.with_name(_OLD_NAME).exists()

    def purge(self) -> None:
        """Let nothing of what was removed be left in the files, not even in the log."""
        self._ask("PRAGMA wal_checkpoint(TRUNCATE)")

    def has_news(self) -> bool:
        """Whether other processes have changed something since it was asked last."""
        with self._lock:
            before, now = self._version, self._version_now()
            if before == now:
                return False
            self._version = now
            if self._is_reader or before[:1] != now[:1]:
                self.open(is_writing=not self._is_reader)
            return True

    def add(self, rows: Iterable[IndexRow]) -> None:
        """Note segments, in the place of what was noted of them before."""
        with self._changing() as connection:
            for row in rows:
                parent = row.parent_id or _NO_PARENT
                connection.execute("DELETE FROM segment WHERE id = ?", (row.segment_id,))
                connection.execute(
                    "INSERT INTO segment (id, parent, start, stop, ids, num_bytes, has_states)"
                    " VALUES (?, ?, ?, ?, ?, ?, ?)",
                    (row.segment_id, parent, row.start, row.stop, row.token_ids.packed,
                     row.num_bytes, row.has_states),
                )  # fmt: skip
                connection.execute(_FORK, (row.segment_id, parent))

    def remove(self, segment_ids: Iterable[str]) -> None:
        with self._changing() as connection:
            connection.executemany(
                "DELETE FROM segment WHERE id = ?", ((segment_id,) for segment_id in segment_ids)
            )

    def totals(self) -> tuple[int, int]:
        """How many segments there are, and their bytes."""
        sql = "SELECT num_segments, num_bytes FROM total WHERE typeof(num_bytes) = 'integer'"
        rows = self._ask(sql)
        return rows[0] if rows else (0, 0)

    def parents(self) -> dict[str, str | None]:
        """The parents of all segments, by id."""
        return dict(self._ask("SELECT id, nullif(parent, '') FROM segment"))

    def latest(self, limit: int) -> list[IndexRow]:
        """Those that were noted last."""
        return self._rows(f"{_ROW} ORDER BY rowid DESC LIMIT ?", limit)

    def child_ids(self, parent_id: str | None, limit: int) -> list[str]:
        """Some of the segments that go on from one; of the roots, for None."""
        sql = "SELECT id FROM segment WHERE parent = ? LIMIT ?"
        return [segment_id for (segment_id,) in self._ask(sql, parent_id or _NO_PARENT, limit)]

    def children(self, parent_id: str | None, ids: TokenIds, extent: int) -> Iterator[IndexRow]:
        """Of the segments that go on from one which a prompt goes along with up to position
        `extent`: those that the prompt has all ids of, the one that shares most of it, and those
        that it could leave within, for another segment."""
        parent, start = parent_id or _NO_PARENT, -1
        sql = "SELECT min(start) FROM segment WHERE parent = ? AND start BETWEEN ? AND ?"
        while True:
            ((first,),) = self._ask(sql, parent, start + 1, extent) or [(None,)]
            if not isinstance(first, int) or first >= len(ids):
                return
            start = first
            yield from self._alike(parent, start, ids[start:])

    def _alike(self, parent: str, start: int, tail: TokenIds) -> Iterator[IndexRow]:
        """The same, of those with one first position: `tail` is what the prompt has from there.

        Of all ids up to the first `n` of the tail, the last in order share the most with it, and
        what the tail begins with is never longer than that."""
        last = self._last_up_to(parent, start, tail)
        sql = f"{_ROW} WHERE parent = ? AND start = ? AND ids > ? ORDER BY ids LIMIT 1"
        beside = last + self._rows(sql, parent, start, tail.packed)
        nearest = max(beside, key=lambda row: row.token_ids.common_prefix(tail), default=None)
        if nearest is not None and nearest.token_ids[:1] == tail[:1]:
            yield nearest
        while last:
            (row,) = last
            length = row.token_ids.common_prefix(tail)
            if length == len(row.token_ids):
                if row is not nearest:
                    yield row
                length -= 1
            last = self._last_up_to(parent, start, tail[:length]) if length > 0 else []
        for row in self._rows(f"{_ROW} WHERE parent = ? AND start = ? AND fork > 0", parent, start):
            if isinstance(row.fork, int) and row.token_ids.common_prefix(tail) >= row.fork - start:
                yield row

    def _last_up_to(self, parent: str, start: int, ids: TokenIds) -> list[IndexRow]:
        sql = f"{_ROW} WHERE parent = ? AND start = ? AND ids <= ? ORDER BY ids DESC LIMIT 1"
        return self._rows(sql, parent, start, ids.packed)

    def _rows(self, sql: str, *values: Any) -> list[IndexRow]:
        """A row that makes no sense is left out."""
        return [row for row in map(_row, self._ask(sql, *values)) if row is not None]

    def _ask(self, sql: str, *values: Any) -> list[Any]:
        with self._lock:
            try:
                return self._in_use().execute(sql, values).fetchall()
            except SQLITE_FAILURES as error:
                self._failed(error)
                return []

    def _in_use(self) -> sqlite3.Connection:
        """The connection; one to memory where there is no file."""
        if self._connection is None:
            self._connection = _in_memory()
        return self._connection

    @contextlib.contextmanager
    def _changing(self) -> Iterator[sqlite3.Connection]:
        """All of it is noted, or nothing."""
        with self._lock:
            try:
                if self._is_reader and self._is_file:
                    self._go_on_in_memory()
                connection = self._in_use()
                with connection:  # which rolls back what fails
                    connection.execute("BEGIN IMMEDIATE")
                    yield connection
            except SQLITE_FAILURES as error:
                self._failed(error)

    def _failed(self, error: Exception) -> None:
        """Go on without what could not be read or noted. A file that is damaged is removed, so
        that the next opening makes it again."""
        log.warning("the index %s: %s", self._path, error)
        if _is_unusable(error):
            if not self._is_reader:
                self._remove_files(*FILE_NAMES)
            self.close()

    def _to_write(self) -> sqlite3.Connection | None:
        self._remove_files(_OLD_NAME)
        for _ in range(_TRIES):
            try:
                return _connected(self._path)
            except (*SQLITE_FAILURES, OSError) as error:
                log.warning("the index %s cannot be opened: %s", self._path, error)
                if _is_unusable(error):
                    self._remove_files(*FILE_NAMES)
                self._drop_abandoned_lock()
                time.sleep(_SECONDS_TO_WAIT / 50)
        return None

    def _drop_abandoned_lock(self) -> None:
        """What a killed process has left where files cannot be locked."""
        lock = sqlite_file.lock_directory(self._path)
        with contextlib.suppress(OSError):
            if time.time() - lock.stat().st_mtime > _SECONDS_OF_A_LOCK:
                lock.rmdir()

    def _to_read(self) -> sqlite3.Connection | None:
        """Where no log lies beside it, nobody writes the file: it is read without making one."""
        is_still = "" if self._log_path.exists() else "&immutable=1"
        uri = f"{self._path.absolute().as_uri()}?mode=ro{is_still}"
        with contextlib.suppress(*SQLITE_FAILURES), contextlib.ExitStack() as stack:
            connection = stack.enter_context(contextlib.closing(_connect(uri, uri=True)))
            connection.execute(f"{_ROW} LIMIT 1").fetchone()
            stack.pop_all()
            return connection
        return None

    def _go_on_in_memory(self) -> None:
        copy = _connect(":memory:")
        with contextlib.closing(self._in_use()) as file:
            file.backup(copy)
        self._connection, self._is_file = copy, False

    def _version_now(self) -> list[object]:
        """Differs when the content does; its first part, when it is another file."""
        if self._is_reader:
            return [_stamp(self._path), _stamp(self._log_path)]
        return [_stamp(self._path)[:1], *self._ask("PRAGMA data_version")] if self._is_file else []

    def _remove_files(self, *names: str) -> None:
        for name in names:
            with contextlib.suppress(OSError):
                self._path.with_name(name).unlink()


def _connect(place: str, *, uri: bool = False) -> sqlite3.Connection:
    return sqlite3.connect(
        place, uri=uri, timeout=_SECONDS_TO_WAIT, isolation_level=None, check_same_thread=False
    )


def _connected(path: Path) -> sqlite3.Connection:
    """A connection to the file, which only its owner reads. Raises SQLITE_FAILURES and OSError."""
    with contextlib.suppress(FileExistsError):
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
    connection = sqlite_file.connect(path, timeout=_SECONDS_TO_WAIT)
    try:
        connection.execute("PRAGMA synchronous = NORMAL")
        connection.execute("PRAGMA secure_delete = ON")
        connection.executescript(_SCHEMA)
    except SQLITE_FAILURES:
        connection.close()
        raise
    return connection


def _in_memory() -> sqlite3.Connection:
    connection = _connect(":memory:")
    connection.executescript(_SCHEMA)
    return connection


def _row(values: Sequence[Any]) -> IndexRow | None:
    segment_id, parent, start, stop, packed, num_bytes, has_states, fork = values
    try:
        ids = TokenIds.from_bytes(packed)
        parent = str(parent) or None
        row = IndexRow(segment_id, parent, start, stop, ids, int(num_bytes), bool(has_states), fork)
        return row if parse_name(file_name(row)) == (start, stop, segment_id) else None
    except (ValueError, TypeError, OverflowError):
        return None


def _is_unusable(error: BaseException) -> bool:
    """Whether the file is no index, or not the one that was written."""
    return is_damage(error) or primary_code(error) in (sqlite3.SQLITE_ERROR, sqlite3.SQLITE_TOOBIG)


def _stamp(path: Path) -> tuple[int, ...]:
    try:
        status = path.stat()
    except OSError:
        return ()
    return status.st_ino, status.st_size, status.st_mtime_ns
