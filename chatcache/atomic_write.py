"""Files that appear whole or not at all: written beside under another name, then renamed.

What is promised: a reader sees the old file or the new one, never a part; a failure leaves the old
one and nothing beside it; only the owner can read it unless `mode` says otherwise. `is_durable`: a
power cut too leaves the old or the new one, and once this has returned the new one. What a killed
process leaves behind is called `.tmp-PID-RANDOM`.
"""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

PRIVATE = 0o600


@contextlib.contextmanager
def replacing(path: Path, *, is_durable: bool = False, mode: int = PRIVATE) -> Iterator[BinaryIO]:
    """A file to write to, which takes the place of `path` at the end. Raises OSError."""
    temporary = path.with_name(f".tmp-{os.getpid()}-{secrets.token_hex(6)}")
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, PRIVATE)
    try:
        with os.fdopen(fd, "wb") as file:
            yield file
            if mode != PRIVATE:
                os.fchmod(fd, mode)
            if is_durable:
                file.flush()
                os.fsync(fd)
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


def sync_directory(directory: Path) -> None:
    """Make renames in it durable; some file systems cannot and say so, which changes nothing."""
    with contextlib.suppress(OSError):
        fd = os.open(directory, os.O_RDONLY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
