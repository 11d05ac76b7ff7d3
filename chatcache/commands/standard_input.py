"""Standard input of a command: whether something will come, and how long that is worth waiting for.

A script, a service or an editor may start a command with a pipe that nobody ever writes to or
closes. A program of the same pipeline is waited for, as long as it takes. Knows only bytes.
"""

from __future__ import annotations

import contextlib
import os
import re
import select
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from chatcache.errors import UsageError
from chatcache.formatting import size
from chatcache.frontend.shell_output import is_terminal
from chatcache.os_failures import reason

Warn = Callable[[str], None]

QUIET_SECONDS = 1.0  # before it is said what is waited for
MOMENT_SECONDS = 3.0  # for whoever does not have to write anything
_PIECE_BYTES = 1 << 16
_WAITING = "waiting for standard input to end"


def is_there() -> bool:
    """Whether standard input leads to something other than a person."""
    return sys.stdin is not None and not sys.stdin.closed and not is_terminal(sys.stdin)


def read_to_end(warn: Warn, limit: int = -1) -> bytes:
    """All of it, however long that takes; after a second it is said. Empty where there is none.

    Raises UsageError when it cannot be read, or has more bytes than `limit`; -1 is no limit."""
    descriptor = _descriptor()
    if descriptor is None:
        return _embedded()
    pieces: list[bytes] = []
    num_bytes, is_told = 0, False
    while True:
        if not _has_come(descriptor, None if is_told else QUIET_SECONDS):
            warn(f"{_WAITING}{' (Ctrl+D ends it)' if is_terminal(sys.stdin) else ''}.")
            is_told = True
            continue
        try:
            piece = os.read(descriptor, _PIECE_BYTES)
        except BlockingIOError:  # somebody else has read it meanwhile
            continue
        except OSError as error:
            raise UsageError(
                f"Standard input cannot be read: {reason(error)}.", "Check where it comes from."
            ) from error
        if not piece:
            return b"".join(pieces)
        pieces.append(piece)
        num_bytes += len(piece)
        if 0 <= limit < num_bytes:
            raise too_long("Standard input", limit)


def too_long(what: str, limit: int) -> UsageError:
    return UsageError(f"{what} has more than {size(limit)}.", "Give a part of it.")


def read_if_any(warn: Warn, limit: int = -1) -> bytes:
    """All of it if it begins within a moment, or if a program of the same pipeline writes to it.

    Else nothing, which is said."""
    descriptor = _descriptor()
    if descriptor is None or _has_come(descriptor, QUIET_SECONDS):
        return read_to_end(warn, limit)
    if (name := _writer_in_pipeline(descriptor)) is not None:
        warn(f"{_WAITING}: {name} has not written anything yet (--no-stdin does not wait).")
        _has_come(descriptor, None)
        return read_to_end(warn, limit)
    warn("standard input is open and nothing comes (--no-stdin does not wait, --stdin does).")
    if _has_come(descriptor, MOMENT_SECONDS - QUIET_SECONDS):
        return read_to_end(warn, limit)
    warn("going on without standard input.")
    return b""


def _descriptor() -> int | None:
    """None where a program that embeds chatcache has put something else in its place."""
    try:
        return None if sys.stdin is None or sys.stdin.closed else sys.stdin.fileno()
    except (OSError, ValueError, AttributeError):
        return None


def _embedded() -> bytes:
    if sys.stdin is None or sys.stdin.closed:
        return b""
    buffer = getattr(sys.stdin, "buffer", None)
    content: bytes = sys.stdin.read().encode() if buffer is None else buffer.read()
    return content


def _has_come(descriptor: int, seconds: float | None) -> bool:
    """Whether there is something to read, or the end, within that time; of a file there is."""
    return bool(select.select([descriptor], [], [], seconds)[0])


def _writer_in_pipeline(descriptor: int) -> str | None:
    """The name of a program that holds the other end of an unnamed pipe, belongs to the same
    terminal session and is none of those that have started this one: they may well hold it for
    no reason. None where there is none, and where only Linux could tell."""
    pipe = _target(Path(f"/proc/self/fd/{descriptor}"))
    if not pipe.startswith("pipe:"):
        return None
    session, ancestors = os.getsid(0), set(_ancestors())
    for process in Path("/proc").glob("[0-9]*"):
        status = _status(int(process.name))
        if status is None or status[2] != session or int(process.name) in ancestors:
            continue
        with contextlib.suppress(OSError):
            for held in (process / "fd").iterdir():
                if _target(held) == pipe and _is_for_writing(process / "fdinfo" / held.name):
                    return status[0]
    return None


def _ancestors() -> Iterator[int]:
    """This process and those that have started it."""
    pid = os.getpid()
    while pid > 0:
        yield pid
        status = _status(pid)
        pid = status[1] if status is not None else 0


def _status(pid: int) -> tuple[str, int, int] | None:
    """Name, parent and session of a process; None when it is gone."""
    try:
        content = Path(f"/proc/{pid}/stat").read_bytes().decode(errors="replace")
    except OSError:
        return None
    match = re.match(r"\d+ \((.*)\) \S (-?\d+) -?\d+ (-?\d+)", content, re.DOTALL)
    return (match[1], int(match[2]), int(match[3])) if match else None


def _target(link: Path) -> str:
    try:
        return str(link.readlink())
    except OSError:
        return ""


def _is_for_writing(info: Path) -> bool:
    match = re.search(r"^flags:\s*([0-7]+)", info.read_text(), re.MULTILINE)
    return match is not None and int(match[1], 8) & os.O_ACCMODE != os.O_RDONLY
