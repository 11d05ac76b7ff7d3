"""How a front end comes to its engine: one of its own, or one that is found or started.

Owns the race between front ends that want the same engine: the lock of its place decides who starts
it, and all others connect. Says hello to nobody.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from chatcache.backends.local.engine import wire
from chatcache.backends.local.engine.channel import Channel
from chatcache.backends.local.engine.child_process import (
    EXIT_SECONDS,
    ChildProcess,
    end_process,
    start_process,
    start_with_channel,
)
from chatcache.backends.local.engine.residence import EnginePlace, Residence, inheritable
from chatcache.backends.local.engine.room import make_room
from chatcache.backends.local.engine.settings import EngineSettings

_POLL_SECONDS = 0.02
# Longer than an engine that ends may take to write out what is to be kept.
_PATIENCE_SECONDS = 90.0


@dataclass(frozen=True, slots=True)
class OpenedEngine:
    """Our end of the channel, and the process if we have started it."""

    channel: Channel
    process: ChildProcess | None
    is_resident: bool

    @property
    def is_started(self) -> bool:
        return self.process is not None

    def exit_code(self, *, is_left: bool) -> int | None:
        """Of the process, once the channel has ended, if it is ours and has ended, too; one that is
        ours alone is made to end. `is_left`: one that others may use was left, and stays."""
        if self.process is None:
            return None
        if not self.is_resident:
            return end_process(self.process, EXIT_SECONDS)
        if is_left:  # its end is taken note of: we may be here longer
            threading.Thread(target=self.process.wait, name="engine-exit", daemon=True).start()
            return None
        with contextlib.suppress(subprocess.TimeoutExpired):
            return self.process.wait(EXIT_SECONDS)
        return None


def open_own(settings: EngineSettings, command: Sequence[str]) -> OpenedEngine:
    """An engine for this front end alone, which ends with it. Raises OSError."""
    process, channel = start_with_channel(command, settings.log_path, wire.CODEC)
    return OpenedEngine(channel, process, is_resident=False)


def open_resident(
    settings: EngineSettings,
    residence: Residence,
    command: Sequence[str],
    is_wanted: Callable[[], bool],
) -> OpenedEngine | None:
    """The engine that others use as well; it is started if there is none.

    Waits for one that is about to end. None: it was not wanted any more meanwhile. Raises OSError,
    which is a TimeoutError where an engine neither answers nor ends.
    """
    place = EnginePlace(residence.directory, settings.key(os.environ))
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while is_wanted():
        process: ChildProcess | None = None
        taken = place.take()
        if taken is not None:
            with inheritable(taken) as (lock, listener):
                make_room(place, settings)
                where = ["--place", str(place.directory), "--key", place.key]
                arguments = ["--fd", str(listener), "--lock", str(lock), *where]
                process = start_process(
                    [*command, *arguments], settings.log_path, [lock, listener], is_staying=True
                )
        try:
            return OpenedEngine(Channel(place.connect(), wire.CODEC), process, is_resident=True)
        except (FileNotFoundError, ConnectionRefusedError, BlockingIOError, TimeoutError):
            if time.monotonic() > deadline:
                raise TimeoutError("it neither answers nor ends") from None
            time.sleep(_POLL_SECONDS)
    return None
