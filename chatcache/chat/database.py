"""The SQLite file of the conversations: opening it, transactions, and errors as sentences.

Owns one connection, guarded by a lock, that any thread may use. Knows nothing of sessions and
messages. A file that is damaged, foreign or newer is refused and left as it is.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import shutil
import sqlite3
import stat
import threading
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

from chatcache import sqlite_file
from chatcache.chat import schema
from chatcache.errors import DamagedStorageError, StorageError
from chatcache.os_failures import advice, lock_failure, make_private, reason, write_failure
from chatcache.sqlite_failures import is_damage, primary_code

log = logging.getLogger(__name__)

BUSY_SECONDS = 15.0
_OF_THE_FILE_SYSTEM = (
    *("SQLITE_FULL", "SQLITE_IOERR", "SQLITE_CANTOPEN"),
    *("SQLITE_READONLY", "SQLITE_PERM", "SQLITE_AUTH"),
)
FULL_BYTES = 64 << 10  # with less than this SQLite cannot even open a database

Row = tuple[Any, ...]


class UnwritableError(StorageError):
    """The file system refuses what writing needs."""


class Database:
    """An open conversation database. Raises StorageError wherever SQLite fails.

    With `may_be_read_only` one that cannot be written is opened all the same; writing fails then.
    """

    def __init__(self, path: Path, *, may_be_read_only: bool = False) -> None:
        self.path = path
        self._lock = threading.RLock()
        self._is_closed = False
        self.is_read_only = may_be_read_only and _is_read_only(path)
        self.is_private = self.is_read_only or _prepare_file(path)  # nobody else can read it
        try:
            self._connect()
        except UnwritableError as error:
            if self.is_read_only or not may_be_read_only:
                raise
            self.is_read_only = True  # a full disk, for instance, can be read
            try:
                self._connect()
            except StorageError:
                raise error from None

    def _connect(self) -> None:
        with _explained(self.path):
            make = _connect_to_read if self.is_read_only else _connect
            self._connection = make(self.path)
            mode = self._connection.execute("PRAGMA journal_mode").fetchone()[0]
        self._has_log = mode == "wal"
        self._file = _identity(self.path)

    @contextlib.contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """The connection, for queries only."""
        with self._lock, _explained(self.path):
            yield self._opened()

    @contextlib.contextmanager
    def writing(self, *, is_durable: bool = True) -> Iterator[sqlite3.Connection]:
        """The connection inside a transaction: all of it is kept, or nothing.

        Durable: on the disk (fsync) when the block ends. Otherwise a killed process loses nothing,
        and a power cut may lose this transaction, but never leaves half of it.
        """
        with self._lock, _explained(self.path):
            connection = self._opened()
            if _is_open(connection):
                yield connection
                return
            self._check_place()
            connection = self._opened()
            # Without a log, only a full flush keeps a power cut from leaving half of it.
            is_full = is_durable or not self._has_log
            connection.execute(f"PRAGMA synchronous = {'FULL' if is_full else 'NORMAL'}")
            connection.execute("BEGIN IMMEDIATE")
            try:
                yield connection
                connection.execute("COMMIT")
            finally:
                # Also after a failed commit (a full disk): the transaction must not stay open.
                if _is_open(connection):
                    connection.execute("ROLLBACK")

    def _opened(self) -> sqlite3.Connection:
        if self._is_closed:
            raise StorageError("The conversations have been closed.", "Start chatcache again.")
        return self._connection

    def _check_place(self) -> None:
        """What is written to a file that was removed meanwhile is lost, and SQLite does not say."""
        now = _identity(self.path)
        if now == self._file:
            return
        if now is None or not _is_open_here(self.path):
            raise _was_removed(self.path)
        self._file = now  # some network mounts give a file another number now and then
        if not self._has_log:  # and SQLite, which then looks at it too, would refuse
            self._connection.close()
            self._connect()

    def close(self) -> None:
        with self._lock:
            self._is_closed = True
            self._connection.close()

    def __enter__(self) -> Database:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def _prepare_file(path: Path) -> bool:
    """Make the directory (0700) and an empty file (0600) before SQLite makes a readable one.

    Returns whether only the owner can read it: not all file systems keep that."""
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with contextlib.suppress(FileExistsError):
            os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
        status = path.stat()
        is_file = stat.S_ISREG(status.st_mode)
        is_private = is_file and make_private(path, 0o600)
    except OSError as error:
        raise _from_os_error(error, path) from error
    if not is_file:
        raise StorageError(f"{path} is not a file.", "Choose another directory with --data-dir.")
    wal = path.with_name(path.name + "-wal")
    if status.st_size == 0 and wal.exists() and wal.stat().st_size > 0:
        # SQLite would take the empty file for a new database and drop the log beside it.
        raise DamagedStorageError(
            f"{path} is empty although {wal.name} beside it is not: the file was truncated.",
            "Nothing was changed. Put the file back from a backup, or move both away.",
        )
    return is_private


def _connect(path: Path) -> sqlite3.Connection:
    # First of all, and without writing: is this ours?
    connection = sqlite_file.connect(
        path,
        timeout=BUSY_SECONDS,
        check=lambda opened: schema.check_version(opened, str(path)),
    )
    try:
        connection.execute("PRAGMA foreign_keys = ON")
        connection.execute("PRAGMA secure_delete = ON")
        schema.migrate(connection, str(path))
        # A directory that cannot be written is found now, not when the first words are lost.
        connection.execute("BEGIN IMMEDIATE")
        connection.execute("ROLLBACK")
    except BaseException:
        connection.close()
        raise
    return connection


def _is_read_only(path: Path) -> bool:
    """Whether there is a database that this user can read and not write."""
    try:
        if not path.is_file() or path.stat().st_size == 0:
            return False
    except OSError:
        return False
    is_effective = os.access in os.supports_effective_ids
    return not all(
        os.access(place, os.W_OK, effective_ids=is_effective) for place in (path.parent, path)
    )


def _connect_to_read(path: Path) -> sqlite3.Connection:
    """Beside the file there must be no log that would have to be read with it: to read one, SQLite
    has to write."""
    wal = path.with_name(path.name + "-wal")
    is_whole = not wal.exists() or wal.stat().st_size == 0
    connection = sqlite3.connect(
        f"{path.absolute().as_uri()}?mode=ro{'&immutable=1' if is_whole else ''}",
        uri=True,
        isolation_level=None,
        check_same_thread=False,
    )
    try:
        if schema.check_version(connection, str(path)) < schema.VERSION:
            raise StorageError(
                f"{path} is of an older format, and cannot be written to bring it up to date.",
                "Make it writable, or copy it and choose the copy's directory with --data-dir.",
            )
    except BaseException:
        connection.close()
        raise
    return connection


def _identity(path: Path) -> tuple[int, int] | None:
    """Tells a file from another one at its place; None when there is none."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _is_open_here(path: Path) -> bool:
    """Whether a file that this process has open is still found at `path`.

    Only Linux tells; elsewhere another number is another file."""
    place = os.path.realpath(path)
    for descriptor in Path("/proc/self/fd").glob("*"):
        with contextlib.suppress(OSError):
            if str(descriptor.readlink()) == place:
                return True
    return False


def _is_open(connection: sqlite3.Connection) -> bool:
    return connection.in_transaction


@contextlib.contextmanager
def _explained(path: Path) -> Iterator[None]:
    """SQLite's errors as StorageError. Programming errors stay what they are."""
    try:
        yield
    except (sqlite3.DatabaseError, UnicodeDecodeError, MemoryError) as error:
        is_ours = isinstance(error, sqlite3.ProgrammingError | sqlite3.IntegrityError)
        if is_ours and not is_damage(error):
            raise
        raise _from_sqlite_error(error, path) from error


def _from_sqlite_error(error: Exception, path: Path) -> StorageError:
    if isinstance(error, MemoryError):
        return StorageError(
            f"There is not enough memory to read {path}.", "Close other programs, then try again."
        )
    if is_damage(error):
        return _damaged(error, path)
    name = getattr(error, "sqlite_errorname", "") or ""
    if name.startswith("SQLITE_READONLY_DBMOVED"):
        return _was_removed(path)
    if name.startswith(("SQLITE_BUSY", "SQLITE_LOCKED", "SQLITE_PROTOCOL")):
        return _locked(path)
    if name.startswith(_OF_THE_FILE_SYSTEM):
        return _unwritable(error, name, path)
    if "fts5" in str(error) or "tokenizer" in str(error):
        return StorageError(
            "This Python's SQLite has no full-text search (FTS5 with trigrams, SQLite 3.34).",
            "Use a Python whose sqlite3 module has it; the builds of python.org do.",
        )
    return StorageError(
        f"The conversation database {path} cannot be used ({error}).",
        "Nothing was changed. Choose another directory with --data-dir.",
    )


def _was_removed(path: Path) -> StorageError:
    return StorageError(
        f"{path} was removed or replaced while it was in use: nothing more is saved.",
        "Start chatcache again; what was said before is in the file that was there.",
    )


def _damaged(error: Exception, path: Path) -> StorageError:
    if primary_code(error) == sqlite3.SQLITE_NOTADB:
        return DamagedStorageError(
            f"{path} is not a database.",
            "Nothing was changed. Move the file away, or choose another --data-dir.",
        )
    return DamagedStorageError(
        f"The conversation database {path} is damaged ({error}).",
        "Nothing was changed. Copy the file, then put it back from a backup.",
    )


def _locked(path: Path) -> StorageError:
    if (failure := lock_failure(path)) is not None:
        return _from_os_error(failure, path)
    lock = sqlite_file.lock_directory(path)
    if lock.exists():
        return StorageError(
            f"Another program has held {path} locked for {BUSY_SECONDS:.0f} seconds.",
            f"Close it, then try again. If there is none, it was killed: `rmdir {lock}`.",
        )
    return StorageError(
        f"Another program has held {path} locked for {BUSY_SECONDS:.0f} seconds.",
        "Close it, then try again.",
    )


def _unwritable(error: Exception, name: str, path: Path) -> StorageError:
    """The file system has refused something. SQLite does not tell what: it is tried again."""
    failure = write_failure(path) or lock_failure(path)
    log.warning("%s: %s (%s): %s", path, error, name, failure)
    # The file that SQLite shares between processes reports a full disk as an I/O error.
    if failure is None and (name.startswith("SQLITE_FULL") or _is_full(path)):
        failure = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    if failure is not None:
        return _from_os_error(failure, path)
    if not name.startswith("SQLITE_IOERR"):
        return UnwritableError(
            f"Conversations cannot be written: {path} is read-only.",
            "Make the directory writable, or choose another one with --data-dir.",
        )
    return UnwritableError(
        f"The conversation database {path} cannot be used ({error}, {name}).",
        "Check the disk that it is on, or choose another directory with --data-dir.",
    )


def _is_full(path: Path) -> bool:
    try:
        return shutil.disk_usage(path.parent).free < FULL_BYTES
    except OSError:
        return False


def _from_os_error(error: OSError, path: Path) -> StorageError:
    if isinstance(error, NotADirectoryError | FileExistsError):
        return UnwritableError(
            f"{path.parent} is not a directory.", "Choose another one with --data-dir."
        )
    return UnwritableError(
        f"Conversations cannot be kept in {path.parent}: {reason(error)}.",
        f"{advice(error)}, or choose another directory with --data-dir.",
    )
