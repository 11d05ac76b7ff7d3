"""Room in memory for an engine that is to be started: those that nobody uses give way to it.

Owns the estimate of what it needs and the choice of who ends. An engine in use is never ended, and
none while there is room for all: changing between two models that fit stays quick.
"""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Callable
from pathlib import Path

from chatcache.backends.local.engine.control import RunningEngine, end_engine, running_engines
from chatcache.backends.local.engine.lifetime import NO_MEMORY, memory_is_short
from chatcache.backends.local.engine.residence import EnginePlace
from chatcache.backends.local.engine.settings import EngineSettings
from chatcache.backends.local.model.outlook import ENGINE_BYTES
from chatcache.errors import ChatcacheError
from chatcache.formatting import model_name, size
from chatcache.sections import EXACT_WEIGHTS

log = logging.getLogger(__name__)

IsShort = Callable[[int], bool]


def make_room(place: EnginePlace, settings: EngineSettings, is_short: IsShort | None = None) -> int:
    """End unused engines, those first that would end first, until an engine for `settings` has room
    beside the others; returns how many. `is_short` tells whether it has not."""
    is_short = is_short or memory_is_short
    try:
        unused = [
            engine for engine in running_engines(place.directory, place) if _is_unused(engine)
        ]
    except OSError:
        return 0
    needed = weight_bytes(settings) if unused else 0
    num_ended = 0
    for engine in sorted(unused, key=_seconds_left):
        if not is_short(needed):
            break
        log.info("process %s makes room for %s", engine.pid, settings.model)
        num_ended += end_engine(engine, NO_MEMORY)
    return num_ended


def engine_bytes(settings: EngineSettings) -> int:
    """What an engine with the model takes in memory, about; 0 for a model that is not here."""
    weights = weight_bytes(settings)
    return weights and weights + ENGINE_BYTES


def weight_bytes(settings: EngineSettings) -> int:
    """What the model takes in memory, as far as its files tell; 0 for one that is not here."""
    from chatcache.backends.local.model.gguf.parts import parts_of
    from chatcache.backends.local.model.needs import (
        directory_needs,
        likely_dtype,
        quantized_needs,
    )
    from chatcache.backends.local.model.resolve import resolve_model

    try:
        found = Path(resolve_model(settings.model, is_offline=True))
    except (ChatcacheError, OSError):
        return 0
    try:
        if settings.quantize != EXACT_WEIGHTS:
            return quantized_needs(found, settings.quantize).weights
        return directory_needs(found, likely_dtype(found, settings.dtype)).weights
    except (ChatcacheError, OSError):
        files = parts_of(found) if found.is_file() else found.glob("*.safetensors")
        return sum(file.stat().st_size for file in files)


def other_engines(directory: Path | None) -> str:
    """A sentence on the engines, but this process, that hold memory; "" where there are none."""
    try:
        found = [] if directory is None else running_engines(directory)
    except OSError:
        return ""
    told = [
        f"{model_name(engine.status.model)} ({size(engine.status.memory_bytes)})"
        for engine in found
        if engine.status is not None and engine.status.memory_bytes and engine.pid != os.getpid()
    ]
    if not told:
        return ""
    return f"Engines hold memory too: {', '.join(told)}; `chatcache engine stop` ends them."


def _is_unused(engine: RunningEngine) -> bool:
    status = engine.status
    return status is not None and status.state == "ready" and not status.front_ends


def _seconds_left(engine: RunningEngine) -> float:
    left = None if engine.status is None else engine.status.seconds_left
    return math.inf if left is None else left
