"""Files that appear whole or not at all: written beside under another name, then renamed.

What is promised: a reader sees the old file or the new one, never a part; a failure leaves the old
one and nothing beside it; only the owner can read it unless `mode` says otherwise. `is_durable`: a
power cut too leaves the old or the new one, and once this has returned the new one. What a killed
process leaves behind is called `.tmp-PID-RANDOM`.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from chatcache.processes import is_running

PRIVATE = 0o600
_TEMPORARY = re.compile(r"\.tmp-(\d+)-[0-9a-f]+")


@contextlib.contextmanager
def replacing(path: Path, *, is_durable: bool = False, mode: int = PRIVATE) -> Iterator[BinaryIO]:
    """A file to write to, which takes the place of `path` at the end. Raises OSError."""
    temporary = path.with_name(f".tmp-{os.getpid()}-{os.urandom(6).hex()}")
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, PRIVATE)
    try:
        with os.fdopen(fd, "wb") as file:
            yield file
            if mode != PRIVATE:
                with contextlib.suppress(OSError):  # not all file systems keep it
                    os.fchmod(fd, mode)
            if is_durable:
                file.flush()
                _flush(fd)
        temporary.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
    if is_durable:
        sync_directory(path.parent)


def write_atomically(
    path: Path, content: bytes, *, is_durable: bool = False, mode: int = PRIVATE
) -> None:
    """Put `content` in the place of a file. Raises OSError."""
    with replacing(path, is_durable=is_durable, mode=mode) as file:
        file.write(content)


def remove_leftovers(directory: Path) -> None:
    """Remove what processes that no longer run have left in a directory. Raises OSError."""
    for name in os.listdir(directory):  # noqa: PTH208 - there may be many
        match = name.startswith(".") and _TEMPORARY.fullmatch(name)
        if match and not is_running(int(match[1])):
            with contextlib.suppress(OSError):
                (directory / name).unlink()


def _flush(fd: int) -> None:
    """Raises OSError, unless this file system does not know how to."""
    try:
        os.fsync(fd)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS):
            raise


def sync_directory(directory: Path) -> None:
    """Make renames in it durable; some file systems cannot and say so, which changes nothing."""
    with contextlib.suppress(OSError):
        fd = os.open(directory, os.O_RDONLY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
