"""What the operating system's errors about files mean to a person, and what a directory can do.

SQLite tells that something failed and not why: the same is tried then in a file of our own beside,
and the operating system says it. Knows no file of chatcache's.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

_PROBE_BYTES = 64 << 10  # more than what a file system has left that refuses a page

_FREE_SPACE = "Free some space"
_MOUNT = "Look after the disk or the network that it is on"
# By errno: what it means, and what to do.
_MEANINGS = {
    errno.ENOSPC: ("the disk is full", _FREE_SPACE),
    errno.EDQUOT: ("your quota on this disk is used up", f"{_FREE_SPACE} of yours"),
    errno.EFBIG: (
        "a file there may not grow any further (a limit of the shell or of the file system)",
        "Raise it with `ulimit -f unlimited`",
    ),
    errno.EROFS: ("the file system is read-only", "Mount it for writing"),
    errno.EACCES: ("permission denied", "Make the directory writable"),
    errno.EPERM: ("operation not permitted", "Make the directory writable"),
    errno.ENOLCK: ("its file system cannot lock files", "Mount it with locks"),
    errno.EIO: ("the disk fails (input/output error)", _MOUNT),
    errno.ESTALE: ("its network mount is stale", _MOUNT),
    errno.ENOTCONN: ("its mount is not connected", _MOUNT),
    errno.EHOSTDOWN: ("the server of its network mount is down", _MOUNT),
    errno.ETIMEDOUT: ("its network mount does not answer", _MOUNT),
    errno.ENODEV: ("its disk is gone", _MOUNT),
    errno.ENXIO: ("its disk is gone", _MOUNT),
    errno.EMFILE: ("too many files are open", "Raise the limit with `ulimit -n`"),
    errno.ENFILE: ("too many files are open on this machine", "Close other programs"),
    **dict.fromkeys(
        (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP),
        ("its file system cannot do what is needed", "Take one on a local disk"),
    ),
    errno.ENAMETOOLONG: ("its path is too long", "Take a shorter one"),
    errno.ELOOP: ("its links lead in a circle", "Mend them"),
}
OUT_OF_SPACE = frozenset({errno.ENOSPC, errno.EDQUOT})


def reason(error: OSError) -> str:
    """Why it failed, as the end of a sentence."""
    if error.errno not in _MEANINGS:
        return (error.strerror or str(error)).lower()
    if error.strerror and error.strerror != os.strerror(error.errno):
        return error.strerror  # words of our own
    return _MEANINGS[error.errno][0]


def advice(error: OSError) -> str:
    """What to do, as the beginning of a sentence."""
    return _MEANINGS.get(error.errno or 0, ("", "Make the directory writable"))[1]


def write_failure(path: Path) -> OSError | None:
    """What the operating system says when a file beside `path` grows beyond it, and beyond those
    that have its name and more; None: nothing."""
    try:
        alike = [file for file in path.parent.iterdir() if file.name.startswith(path.name)]
        with _file_beside(path) as fd:
            os.write(fd, bytes(_PROBE_BYTES))
            os.fsync(fd)
            os.ftruncate(fd, max((f.stat().st_size for f in alike), default=0) + _PROBE_BYTES)
    except OSError as error:
        return error
    return None


def lock_failure(path: Path) -> OSError | None:
    """What it says when a file beside `path` is locked that nobody else knows; None: nothing."""
    with contextlib.suppress(OSError), _file_beside(path) as fd:
        try:
            fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB, 1)
        except OSError as error:
            return error
    return None


@contextlib.contextmanager
def _file_beside(path: Path) -> Iterator[int]:
    """A new file in the same directory, for as long as the block runs. Raises OSError."""
    probe = path.with_name(f".tmp-{os.getpid()}-{os.urandom(6).hex()}")
    fd = os.open(probe, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        yield fd
    finally:
        os.close(fd)
        with contextlib.suppress(OSError):
            probe.unlink()


def make_private(path: Path, mode: int) -> bool:
    """Let only its owner use a file. Where the file system keeps no such thing, it stays as it is:
    False."""
    if os.name != "posix" or not path.stat().st_mode & 0o077:
        return True
    with contextlib.suppress(OSError):
        path.chmod(mode)
    return not path.stat().st_mode & 0o077
