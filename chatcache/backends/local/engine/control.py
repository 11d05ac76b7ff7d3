"""Looking at the engines that stay, and ending them. By commands that are no front ends.

Owns the questions to all engines of a directory. An engine that does not answer is still listed, by
the process that holds its place, and can still be ended.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path

from chatcache.backends.base import EngineStatus
from chatcache.backends.local.engine import wire
from chatcache.backends.local.engine.channel import Channel, ChannelClosedError
from chatcache.backends.local.engine.residence import EnginePlace, ForeignPlaceError, places
from chatcache.processes import is_running

ANSWER_SECONDS = 2.0
END_SECONDS = 30.0
_POLL_SECONDS = 0.02


@dataclass(frozen=True, slots=True)
class RunningEngine:
    """An engine at its place. `status` is None where it does not answer; `pid` where it
    has not said it yet."""

    place: EnginePlace
    pid: int | None
    status: EngineStatus | None


def running_engines(directory: Path, but: EnginePlace | None = None) -> list[RunningEngine]:
    """All engines of this user, `but` one. What killed ones left behind is removed. Raises OSError
    where the directory is not this user's alone."""
    found = []
    for place in places(directory):
        if place == but:
            continue
        channel = _connected(place, ANSWER_SECONDS)
        if channel is None:
            if place.socket_path.exists() and place.is_taken():  # too many wait for it already
                found.append(RunningEngine(place, place.holder(), None))
            continue  # it has ended just now, or is about to
        with contextlib.closing(channel):
            pid, status = place.holder(), None
            with contextlib.suppress(ChannelClosedError):
                channel.send(wire.AskStatus())
                answer = channel.receive()
                status = answer if isinstance(answer, EngineStatus) else None
        if status is not None or place.is_taken():
            found.append(RunningEngine(place, pid, status))
    return found


def end_engine(engine: RunningEngine, reason: str) -> bool:
    """End an engine, in good order if it can be; returns whether it is gone, with its memory."""
    process = _process_of(engine)
    channel = _connected(engine.place, END_SECONDS)
    if channel is not None:
        with contextlib.closing(channel), contextlib.suppress(ChannelClosedError):
            channel.send(wire.EndEngine(reason))
            channel.receive()  # nothing comes: it ends, or the time is over
    if _is_gone(engine, process, 1.0 if engine.status is None else END_SECONDS):
        return True
    if process is not None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(process, signal.SIGKILL)
    return _is_gone(engine, process, ANSWER_SECONDS)


def forget_deleted(directory: Path, cache_dir: Path, *, is_all: bool) -> None:
    """Have the engines of a cache directory give up in memory what was deleted on disk, or all of
    it. Returns once they have; one that answers a turn does it afterwards. Never raises."""
    with contextlib.suppress(OSError):
        for engine in running_engines(directory):
            status = engine.status
            if status is None or not _is_same(Path(status.cache_dir), cache_dir):
                continue
            if (channel := _connected(engine.place, END_SECONDS)) is not None:
                with contextlib.closing(channel), contextlib.suppress(ChannelClosedError):
                    channel.send(wire.ForgetDeleted(is_all))
                    if not status.is_answering:
                        channel.receive()


def _connected(place: EnginePlace, timeout: float) -> Channel | None:
    try:
        connection = place.connect()
    except ForeignPlaceError:
        raise
    except OSError:
        return None
    connection.settimeout(timeout)
    return Channel(connection, wire.CODEC)


def _is_gone(engine: RunningEngine, process: int | None, seconds: float) -> bool:
    """Whether it has left its place, where the next one may live already, and is over."""
    deadline = time.monotonic() + seconds
    while _is_there(engine) or (process is not None and is_running(process)):
        if time.monotonic() > deadline:
            return False
        time.sleep(_POLL_SECONDS)
    return True


def _is_there(engine: RunningEngine) -> bool:
    return engine.place.is_taken() and engine.pid in (engine.place.holder(), None)


def _process_of(engine: RunningEngine) -> int | None:
    """The process that was started for an engine's place, where the system tells. A number alone
    may mean another process by now, or in this container."""
    if engine.pid is None:
        return None
    try:
        command = Path(f"/proc/{engine.pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return None if Path("/proc/self").exists() else engine.pid
    return engine.pid if engine.place.key.encode() in command else None


def _is_same(left: Path, right: Path) -> bool:
    return os.path.realpath(left) == os.path.realpath(right)
