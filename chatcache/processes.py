"""Whether another process still runs, as far as the system tells. Best of all on Linux."""

from __future__ import annotations

import os
from pathlib import Path

_ENDED = ("Z", "X")


def is_running(pid: int) -> bool:
    """Of a process that has ended, and that nobody has taken note of yet, Linux tells its state;
    where a container has no init that may be for ever. While threads of it are ending it runs: they
    may still hold its files."""
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    fields = _fields(pid)
    return not fields or fields[0] not in _ENDED or int(fields[17]) > 1


def start_time(pid: int) -> str:
    """When a process that runs started, in the kernel's ticks; "" where that cannot be read, or it
    has ended and nobody has taken note of it."""
    fields = _fields(pid)
    return fields[19] if fields and fields[0] not in _ENDED else ""


def _fields(pid: int) -> list[str]:
    """Those of its line from the third on, its state (see proc_pid_stat(5)); [] without one."""
    try:
        line = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return []
    # The command in parentheses may contain anything.
    fields = line.rpartition(")")[2].split()
    return fields if len(fields) > 19 else []
