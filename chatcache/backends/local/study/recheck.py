"""Has segments recomputed by the model that made them, in a process of its own.

A checksum tells that a file is what was written. Whether that is what the model computes only the
model can tell. Owns the life of that process and what it says; no torch here.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass

from chatcache.backends.base import BackendFailed, ModelLoading
from chatcache.backends.local.engine.channel import ChannelClosedError
from chatcache.backends.local.engine.child_process import (
    EXIT_SECONDS,
    end_process,
    exit_words,
    start_with_channel,
)
from chatcache.backends.local.engine.codec import Codec
from chatcache.backends.local.engine.settings import EngineSettings
from chatcache.cache.book.policy import Precision
from chatcache.errors import EngineDiedError

CHILD_MODULE = "chatcache.backends.local.study.recheck_process"


@dataclass(frozen=True, slots=True)
class RecheckRequest:
    """Recompute `num_samples` segments of the model of `settings`, chosen by `seed`."""

    settings: EngineSettings
    num_samples: int
    seed: int = 0


@dataclass(frozen=True, slots=True)
class RecheckStarted:
    """`num_segments` segments belong to the model; `num_chosen` of them are recomputed.

    `tolerance` is the largest difference that is rounding, in standard deviations of the tensor;
    for `precision` "int8" it is the largest one that this precision explains.
    """

    namespace: str
    dtype: str
    tolerance: float
    num_segments: int
    num_chosen: int
    precision: Precision = "exact"


@dataclass(frozen=True, slots=True)
class SegmentCheck:
    """One segment against the model.

    `max_dk` and `max_dv` are absolute (None: the segment has no such tensors). `deviation` is the
    largest difference of all its tensors, in standard deviations; `worst` names the tensor.
    `top1_agrees`: whether the next token is the same behind the stored prefix as behind the
    recomputed one; None: it could not be asked. `problem`: what is wrong, None if nothing is.
    """

    segment_id: str
    start: int
    stop: int
    max_dk: float | None = None
    max_dv: float | None = None
    deviation: float = 0.0
    worst: str = ""
    top1_agrees: bool | None = None
    problem: str | None = None


@dataclass(frozen=True, slots=True)
class RecheckFinished:
    """The last message."""


RecheckEvent = ModelLoading | RecheckStarted | SegmentCheck
CODEC = Codec(
    [RecheckRequest, ModelLoading, RecheckStarted, SegmentCheck, RecheckFinished, BackendFailed]
)


def recheck(request: RecheckRequest) -> Iterator[RecheckEvent]:
    """The events of a check, ending after the last segment.

    Raises what keeps the model from being loaded, EngineDiedError if the process dies. Closing the
    iterator ends the process.
    """
    command = (sys.executable, "-P", "-m", CHILD_MODULE)
    process, channel = start_with_channel(command, request.settings.log_path, CODEC)
    is_finished = False
    try:
        channel.send(request)
        while not is_finished:
            message = channel.receive()
            if isinstance(message, BackendFailed):
                raise message.error
            is_finished = isinstance(message, RecheckFinished)
            if isinstance(message, RecheckEvent):
                yield message
    except ChannelClosedError as error:
        code = end_process(process, EXIT_SECONDS)
        raise EngineDiedError(
            f"The process that recomputes segments ended unexpectedly ({exit_words(code)}).",
            f"{request.settings.log_path} may tell why.",
        ) from error
    finally:
        channel.close()
        end_process(process, EXIT_SECONDS if is_finished else 0.0)
