"""The messages between front ends and an engine; `PROTOCOL.md`, beside this, tells the protocol.

Frozen dataclasses of text, ids and numbers; tensors never cross. How they become bytes is in
`codec.py`, how these travel in `channel.py`.
"""

from __future__ import annotations

import typing
from dataclasses import dataclass
from typing import Literal

from chatcache.backends import questions
from chatcache.backends.base import (
    BackendEvent,
    CostEstimate,
    EngineStatus,
    Prepare,
    TurnEvent,
    TurnRequest,
)
from chatcache.backends.local.engine.codec import Codec
from chatcache.backends.local.engine.settings import EngineSettings
from chatcache.token_ids import TokenIds

PROTOCOL = 1  # raised by a change that an older peer would misunderstand

# front end -> engine


@dataclass(frozen=True, slots=True)
class Hello:
    """The first message of a front end. It is one until it leaves; others only ask or end.

    `keep_alive_seconds` is how long the engine stays after its last front end (None: for ever); the
    one that leaves last decides.
    """

    protocol: int
    version: str
    front_end: str
    settings: EngineSettings
    keep_alive_seconds: float | None = 0.0


@dataclass(frozen=True, slots=True)
class RunTurn:
    request: TurnRequest


@dataclass(frozen=True, slots=True)
class StopTurn:
    """Belongs to one turn of this front end: one that comes too late stops nothing."""

    turn_id: str


@dataclass(frozen=True, slots=True)
class EstimateCosts:
    call_id: int
    journals: tuple[TokenIds, ...]


@dataclass(frozen=True, slots=True)
class AskStudy:
    """A question about the model or its cache, answered with Studied: at once if it is quick, else
    between turns. `question` is a message of `QUESTIONS`, so that an engine to which it means
    nothing can say so."""

    call_id: int
    question: bytes


@dataclass(frozen=True, slots=True)
class StopStudy:
    """Nobody waits for the answer any more; none comes, unless it is on its way."""

    call_id: int


@dataclass(frozen=True, slots=True)
class PrepareTurn:
    """Idle work, in the place of what this front end wanted before. Turns end it."""

    request: Prepare


@dataclass(frozen=True, slots=True)
class CancelPrepare:
    """End the idle work of this front end."""


@dataclass(frozen=True, slots=True)
class SpillAll:
    """Write to disk what is in memory alone: all of it, or one segment with all before it."""

    segment_id: str | None = None


@dataclass(frozen=True, slots=True)
class Leave:
    """The last message of a front end. Its turns are stopped, and end with their last event."""


@dataclass(frozen=True, slots=True)
class AskStatus:
    """Answered with an EngineStatus, at once, also while a turn is answered."""


@dataclass(frozen=True, slots=True)
class EndEngine:
    """Stop the turn in progress, write out what is to be kept, tell everyone, end."""

    reason: str


@dataclass(frozen=True, slots=True)
class ForgetDeleted:
    """Give up in memory what has been deleted on disk; `is_all`: whatever is in memory. Answered
    with Forgotten, after the turn in progress."""

    is_all: bool = False


ToEngine = (
    Hello
    | RunTurn
    | StopTurn
    | EstimateCosts
    | AskStudy
    | StopStudy
    | PrepareTurn
    | CancelPrepare
    | SpillAll
    | Leave
    | AskStatus
    | EndEngine
    | ForgetDeleted
)

# engine -> front end; besides these, all events of turns and of the backend


@dataclass(frozen=True, slots=True)
class Accepted:
    """The answer to Hello. `note` is for the person: what is not as their settings say."""

    protocol: int
    version: str
    note: str = ""


@dataclass(frozen=True, slots=True)
class Refused:
    """The other answer to Hello; then the engine closes the connection, and mostly ends.

    "protocol": it speaks another one. "ending": it is about to end. "changed": its model or its
    package is not what it was. "settings": the front end wants another engine of this model, and
    nobody else is there. Asked again, there is a new engine, but for "protocol".
    """

    reason: Literal["protocol", "ending", "changed", "settings"]
    detail: str


@dataclass(frozen=True, slots=True)
class Goodbye:
    """The engine ends, in good order. Turns that it has not begun can be asked of the next one."""

    reason: str


@dataclass(frozen=True, slots=True)
class CostsEstimated:
    call_id: int
    estimates: tuple[CostEstimate, ...] = ()
    error: Exception | None = None


@dataclass(frozen=True, slots=True)
class Studied:
    """`answer` is a message of `QUESTIONS`; empty where there is an error instead."""

    call_id: int
    answer: bytes = b""
    error: Exception | None = None


@dataclass(frozen=True, slots=True)
class Forgotten:
    """It is done."""


FromEngine = (
    Accepted | Refused | Goodbye | CostsEstimated | Studied | Forgotten | TurnEvent | BackendEvent
)

CODEC = Codec([*typing.get_args(ToEngine), *typing.get_args(FromEngine)])
QUESTIONS = Codec([*typing.get_args(questions.Question), *typing.get_args(questions.Answer)])

__all__ = ["CODEC", "PROTOCOL", "QUESTIONS", "EngineStatus", "FromEngine", "ToEngine"]
