"""Opening a SQLite file in a directory of whatever kind: the best way that works there.

A write-ahead log, where processes can share memory through a file. A rollback journal, where they
cannot (network mounts). And where files cannot be locked at all, a directory beside as the lock.
All three keep a transaction whole; each is slower than the one before. Knows no tables.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path

from chatcache.os_failures import lock_failure
from chatcache.sqlite_failures import primary_code

log = logging.getLogger(__name__)

_QUICK_SECONDS = 0.25  # after these it is asked whether a lock can be had at all
_LOCK_SUFFIX = ".lock"  # SQLite's name for the directory
# What is said where files cannot be locked, or no memory shared: results, and kinds of I/O error.
_RESULTS = (
    sqlite3.SQLITE_BUSY,
    sqlite3.SQLITE_PERM,
    sqlite3.SQLITE_PROTOCOL,
    sqlite3.SQLITE_CANTOPEN,
)
_IO_ERRORS = (
    sqlite3.SQLITE_IOERR_LOCK,
    sqlite3.SQLITE_IOERR_RDLOCK,
    sqlite3.SQLITE_IOERR_CHECKRESERVEDLOCK,
    sqlite3.SQLITE_IOERR_SHMOPEN,
    sqlite3.SQLITE_IOERR_SHMSIZE,
    sqlite3.SQLITE_IOERR_SHMLOCK,
    sqlite3.SQLITE_IOERR_SHMMAP,
)

Check = Callable[[sqlite3.Connection], object]


def connect(
    path: Path, *, timeout: float, check: Check = lambda connection: None
) -> sqlite3.Connection:
    """A connection for any thread, without transactions of its own. `check` looks at it before
    anything is changed. Raises SQLITE_FAILURES, and what `check` raises.

    `timeout`: seconds that another process may hold the file."""
    try:
        return _connect(path, _QUICK_SECONDS, timeout, check)
    except sqlite3.OperationalError as error:
        code = primary_code(error)
        if code not in _RESULTS and getattr(error, "sqlite_errorcode", 0) not in _IO_ERRORS:
            raise
        failure = lock_failure(path)
        if failure is None and code == sqlite3.SQLITE_BUSY:
            return _connect(path, timeout, timeout, check)
        if failure is not None and _may_be_in_use(path):
            raise
        log.warning("%s is used without shared memory: %s", path, failure or error)
    return _connect_alone(path, timeout, check, has_locks=failure is None)


def lock_directory(path: Path) -> Path:
    """What is there for as long as somebody uses a file in a place without locks."""
    return path.with_name(path.name + _LOCK_SUFFIX)


def _connect(path: Path, first_timeout: float, timeout: float, check: Check) -> sqlite3.Connection:
    """With a log, if that is possible here."""
    connection = _opened(path, first_timeout)
    with _closed_if_it_fails(connection):
        check(connection)
        if _journal_mode(connection) != "wal" and _can_share(path):
            connection.execute("PRAGMA journal_mode = WAL")
        connection.execute(f"PRAGMA busy_timeout = {timeout * 1000:.0f}")
    return connection


def _connect_alone(
    path: Path, timeout: float, check: Check, *, has_locks: bool
) -> sqlite3.Connection:
    """With a rollback journal. Of a database that was used with a log, the log is read without
    sharing it, this once."""
    connection = _opened(path, timeout, "" if has_locks else "?vfs=unix-dotfile")
    with _closed_if_it_fails(connection):
        connection.execute("PRAGMA locking_mode = EXCLUSIVE")
        check(connection)
        connection.execute("PRAGMA journal_mode = DELETE")
        connection.execute("PRAGMA locking_mode = NORMAL")
        connection.execute("SELECT count(*) FROM sqlite_master").fetchone()  # it lets go here
    return connection


def _opened(path: Path, timeout: float, options: str = "") -> sqlite3.Connection:
    return sqlite3.connect(
        path.absolute().as_uri() + options,
        uri=True,
        timeout=timeout,
        isolation_level=None,
        check_same_thread=False,
    )


def _journal_mode(connection: sqlite3.Connection) -> str:
    return str(connection.execute("PRAGMA journal_mode").fetchone()[0])


def _can_share(path: Path) -> bool:
    """Whether a log works there, tried with a database of our own: one that others use would have
    changed for them too."""
    probe = path.with_name(f".tmp-{os.getpid()}-{os.urandom(6).hex()}")
    try:
        with contextlib.closing(_opened(probe, 0)) as connection:
            connection.execute("PRAGMA synchronous = OFF")
            if connection.execute("PRAGMA journal_mode = WAL").fetchone() != ("wal",):
                return False
            connection.execute("CREATE TABLE a (b)")
    except sqlite3.Error as error:
        log.warning("%s is used without shared memory: %s", path, error)
        return False
    finally:
        for suffix in ("", "-wal", "-shm", "-journal"):
            with contextlib.suppress(OSError):
                probe.with_name(probe.name + suffix).unlink()
    return True


def _may_be_in_use(path: Path) -> bool:
    """Whether somebody with another kind of lock may be using it, or has been killed doing so."""
    return any(path.with_name(path.name + suffix).exists() for suffix in ("-shm", "-wal"))


@contextlib.contextmanager
def _closed_if_it_fails(connection: sqlite3.Connection) -> Iterator[None]:
    try:
        yield
    except BaseException:
        connection.close()
        raise
