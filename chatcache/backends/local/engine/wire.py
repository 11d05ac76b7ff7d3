"""The messages between the front end and its engine process, and the channel they travel on.

Owns: framing and locking. Both ends are our own processes on one socket pair, so messages are
pickled dataclasses; nothing that came from a file or a network is ever unpickled here.
"""

from __future__ import annotations

import socket
import threading
from dataclasses import dataclass
from multiprocessing.connection import Connection

from chatcache.backends.base import (
    BackendEvent,
    CostEstimate,
    Prepare,
    TurnEvent,
    TurnRequest,
)
from chatcache.errors import ChatcacheError, UnavailableError
from chatcache.token_ids import TokenIds

# front end -> engine


@dataclass(frozen=True, slots=True)
class RunTurn:
    request: TurnRequest


@dataclass(frozen=True, slots=True)
class StopTurn:
    """Belongs to one turn: one that comes too late stops nothing."""

    turn_id: str


@dataclass(frozen=True, slots=True)
class EstimateCosts:
    call_id: int
    journals: tuple[TokenIds, ...]


@dataclass(frozen=True, slots=True)
class PrepareTurn:
    """Idle work. What comes after it ends it, except for questions about costs."""

    request: Prepare


@dataclass(frozen=True, slots=True)
class CancelPrepare:
    """End idle work."""


@dataclass(frozen=True, slots=True)
class SpillAll:
    """Write to disk what is in memory alone: all of it, or one segment with all before it."""

    segment_id: str | None = None


@dataclass(frozen=True, slots=True)
class CloseEngine:
    """Finish: stop the turn in progress, write out what is to be kept, end."""


ToEngine = RunTurn | StopTurn | EstimateCosts | PrepareTurn | CancelPrepare | SpillAll | CloseEngine

# engine -> front end; besides these, all events of turns and of the backend


@dataclass(frozen=True, slots=True)
class CostsEstimated:
    call_id: int
    estimates: tuple[CostEstimate, ...] = ()
    error: Exception | None = None


FromEngine = TurnEvent | BackendEvent | CostsEstimated


class ChannelClosedError(Exception):
    """The other process is gone, or closed its end."""


class Channel:
    """One end of the pair. Any thread may send; one thread receives."""

    def __init__(self, file_descriptor: int) -> None:
        self._connection = Connection(file_descriptor)
        self._send_lock = threading.Lock()

    def send(self, message: object) -> None:
        """Raises ChannelClosedError if nobody is there to receive."""
        with self._send_lock:
            try:
                self._connection.send(message)
            except OSError as error:
                raise ChannelClosedError from error

    def receive(self) -> object:
        """Block for the next message. Raises ChannelClosedError at the end."""
        try:
            message: object = self._connection.recv()
        except (EOFError, OSError) as error:
            raise ChannelClosedError from error
        return message

    def close(self) -> None:
        with self._send_lock:
            self._connection.close()


def channel_pair() -> tuple[Channel, socket.socket]:
    """Our end, and the socket whose descriptor the engine process inherits."""
    ours, theirs = socket.socketpair()
    return Channel(ours.detach()), theirs


def portable(error: Exception) -> Exception:
    """`error`, or for one that another process may not be able to rebuild, its text."""
    if isinstance(error, ChatcacheError):
        return error
    return UnavailableError(f"The engine failed: {type(error).__name__}: {error}")
