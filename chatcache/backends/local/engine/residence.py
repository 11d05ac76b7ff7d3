"""Where engines live that stay: a directory of sockets that only their user can enter.

Owns the files of an engine: `KEY.lock`, held locked by the engine as long as it lives, and
`KEY.sock`, on which it listens. So there is one engine per key, and what a killed one left behind
is told from what is alive by the lock alone. Whoever starts an engine takes the lock and listens,
and hands both over: from then on front ends can connect, though nobody answers yet.

Nothing here is trusted because of its name: the directory must be its user's alone, and the peer's
user id is asked of the kernel, on both sides.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import socket
import stat
import struct
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

_MAX_SOCKET_PATH = 100  # bytes; the least of all systems is 104 with the end
_KEY_LENGTH = 16
_SUFFIX = ".sock"
_LOCK_SUFFIX = ".lock"
_BACKLOG = 64
_CONNECT_SECONDS = 5.0


class ForeignPlaceError(OSError):
    """A directory or a peer is not this user's."""


@dataclass(frozen=True, slots=True)
class Residence:
    """Where engines live, and how long one stays after its last front end: None is for ever."""

    directory: Path
    keep_alive_seconds: float | None


@dataclass(frozen=True, slots=True)
class EnginePlace:
    """The files of one engine."""

    directory: Path
    key: str

    @property
    def socket_path(self) -> Path:
        return self.directory / f"{self.key}{_SUFFIX}"

    @property
    def lock_path(self) -> Path:
        return self.directory / f"{self.key}{_LOCK_SUFFIX}"

    def connect(self) -> socket.socket:
        """A connection to the engine. Raises FileNotFoundError or ConnectionRefusedError where
        there is none, BlockingIOError where too many wait for it already, and ForeignPlaceError
        where it is not this user's."""
        check_private(self.directory)
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            connection.settimeout(_CONNECT_SECONDS)  # one that hangs accepts nobody
            connection.connect(str(self.socket_path))
            connection.settimeout(None)
            check_peer(connection)
        except BaseException:
            connection.close()
            raise
        return connection

    def take(self) -> TakenPlace | None:
        """Take the place of an engine that is to be started; None: there is one. Raises OSError."""
        make_private(self.directory)
        lock = os.open(self.lock_path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # The engine before may have removed the file between the two calls.
            if not _is_same_file(lock, self.lock_path):
                os.close(lock)
                return None
            os.truncate(lock, 0)  # whoever is named in it is gone
            with contextlib.suppress(FileNotFoundError):
                self.socket_path.unlink()
            listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            try:
                listener.bind(str(self.socket_path))
                listener.listen(_BACKLOG)
            except BaseException:
                listener.close()
                raise
        except BlockingIOError:
            os.close(lock)
            return None
        except BaseException:
            os.close(lock)
            raise
        return TakenPlace(lock, listener)

    def is_taken(self) -> bool:
        """Whether an engine lives here. Two that ask at once do not take each other for one."""
        try:
            lock = os.open(self.lock_path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return False
        try:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(lock)
        return False

    def holder(self) -> int | None:
        """The process id of the engine that lives here, once it has said so."""
        if not self.is_taken():
            return None
        try:
            return int(json.loads(self.lock_path.read_bytes())["pid"])
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def vacate(self) -> None:
        """Remove the files; by whoever holds the lock."""
        for path in (self.socket_path, self.lock_path):
            with contextlib.suppress(OSError):
                path.unlink()


class HeldPlace:
    """The place of the engine that runs in this process."""

    def __init__(self, place: EnginePlace, lock: int, listener: socket.socket) -> None:
        os.set_inheritable(lock, False)
        self._place = place
        self._lock = lock
        self.listener = listener
        self._inode = place.socket_path.stat().st_ino

    def describe(self, told: Mapping[str, object]) -> None:
        """Say in the lock's file who holds it, if there is room for it; `told` has the `pid`."""
        with contextlib.suppress(OSError):
            os.truncate(self._lock, 0)
            os.pwrite(self._lock, json.dumps(told).encode(), 0)

    def is_reachable(self) -> bool:
        try:
            return self._place.socket_path.stat().st_ino == self._inode
        except OSError:
            return False

    def hide(self) -> None:
        """Nobody finds this engine any more. The lock is still held: the next engine waits."""
        with contextlib.suppress(OSError):
            self.listener.shutdown(socket.SHUT_RDWR)  # wakes the thread that accepts
        self.listener.close()
        if self.is_reachable():
            with contextlib.suppress(OSError):
                self._place.socket_path.unlink()

    def vacate(self) -> None:
        """The last thing before the process ends, which gives up the lock."""
        self.hide()
        if _is_same_file(self._lock, self._place.lock_path):
            with contextlib.suppress(OSError):
                self._place.lock_path.unlink()


@dataclass(frozen=True, slots=True)
class TakenPlace:
    """What is handed over to the engine: the descriptor of its lock, and its listening socket."""

    lock: int
    listener: socket.socket

    def close(self) -> None:
        """Here only: in the process that both were handed over to they stay open."""
        os.close(self.lock)
        self.listener.close()


def places(directory: Path) -> list[EnginePlace]:
    """All engines of a directory; what killed ones left behind is removed. Raises OSError."""
    if not directory.exists():
        return []
    check_private(directory)
    found = []
    keys = {path.stem for path in directory.iterdir() if path.suffix in (_SUFFIX, _LOCK_SUFFIX)}
    for key in sorted(key for key in keys if len(key) == _KEY_LENGTH):
        place = EnginePlace(directory, key)
        if place.is_taken():
            found.append(place)
        elif (taken := place.take()) is not None:
            place.vacate()
            taken.close()
    return found


def engines_directory(state_dir: Path, environ: Mapping[str, str]) -> Path:
    """Where engines of this user live: in the directory that the system keeps for such things, or
    below `state_dir`; where the path is too long for a socket, in the temporary directory."""
    runtime = Path(environ.get("XDG_RUNTIME_DIR", ""))
    # A relative one is to be ignored, says its specification: every directory has its own.
    is_usable = runtime.is_absolute() and _is_own(runtime)
    candidates = [runtime / "chatcache"] if is_usable else []
    candidates.append(state_dir / "engines")
    length = 1 + _KEY_LENGTH + len(_SUFFIX)
    for directory in candidates:
        if len(os.fsencode(directory.absolute())) + length <= _MAX_SOCKET_PATH:
            return directory.absolute()
    return Path(tempfile.gettempdir()) / f"chatcache-{os.geteuid()}"


def make_private(directory: Path) -> None:
    """Make the directory, for this user alone. Raises OSError."""
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    if _is_own(directory) and stat.S_IMODE(directory.lstat().st_mode) & 0o077:
        directory.chmod(0o700)
    check_private(directory)


def check_private(directory: Path) -> None:
    """Raises ForeignPlaceError unless it is a directory that only this user can enter."""
    status = directory.lstat()
    if not _is_own(directory) or stat.S_IMODE(status.st_mode) & 0o077:
        raise ForeignPlaceError(
            errno.EPERM, "it is not a directory of this user alone", str(directory)
        )


def check_peer(connection: socket.socket) -> None:
    """Raises ForeignPlaceError unless the process at the other end is this user's."""
    uid = peer_uid(connection)
    if uid is not None and uid != os.geteuid():
        raise ForeignPlaceError(errno.EPERM, f"the other end belongs to another user (uid {uid})")


def peer_uid(connection: socket.socket) -> int | None:
    """The user id of the other end, as the kernel knows it; None where the system does not tell."""
    if hasattr(socket, "SO_PEERCRED"):
        kind = struct.Struct("3i")  # process, user, group
        credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, kind.size)
        return int(kind.unpack(credentials)[1])
    if sys.platform == "darwin":
        sol_local, local_peercred, kind = 0, 1, struct.Struct("2I")  # version, user; sys/un.h
        return int(kind.unpack(connection.getsockopt(sol_local, local_peercred, kind.size))[1])
    return None


@contextlib.contextmanager
def inheritable(taken: TakenPlace) -> Iterator[tuple[int, int]]:
    """The descriptors for the process that is started in the block, closed here afterwards."""
    try:
        yield taken.lock, taken.listener.fileno()
    finally:
        taken.close()


def _is_own(directory: Path) -> bool:
    try:
        status = directory.lstat()
    except OSError:
        return False
    return stat.S_ISDIR(status.st_mode) and status.st_uid == os.geteuid()


def _is_same_file(descriptor: int, path: Path) -> bool:
    try:
        status = path.stat()
    except OSError:
        return False
    mine = os.fstat(descriptor)
    return (mine.st_dev, mine.st_ino) == (status.st_dev, status.st_ino)
