"""What running engines hold of the cache in memory and on a GPU, for `chatcache cache stats`."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from chatcache import compose
from chatcache.backends.base import EngineStatus
from chatcache.backends.local.engine.control import running_engines
from chatcache.cache.views import TierUse
from chatcache.config import Settings
from chatcache.formatting import model_label, size


def engines_of(settings: Settings) -> list[EngineStatus]:
    """Those that use this cache directory and answer; none where nobody may look."""
    try:
        engines = running_engines(compose.engines_directory(settings.paths))
    except OSError:
        return []
    here = os.path.realpath(settings.paths.cache_dir)
    statuses = [engine.status for engine in engines if engine.status is not None]
    return [status for status in statuses if os.path.realpath(Path(status.cache_dir)) == here]


def use_lines(engines: list[EngineStatus]) -> Iterator[str]:
    """A line per engine, for people."""
    for status in engines:
        if status.ram is None:  # it is still loading
            continue
        words = f"{_words(status.ram)} in memory"
        if status.pinned_bytes is not None:
            words += f", {size(status.pinned_bytes)} locked for copies"
        if status.vram is not None:
            words += f"; {_words(status.vram)} on the GPU"
        yield f"in use         {words} ({model_label(status.model, status.quantization)})"


def use_json(status: EngineStatus) -> dict[str, Any]:
    """What is known of its tiers; None: not yet, or there is no such tier."""
    return {
        "ram": _tier(status.ram),
        "vram": _tier(status.vram),
        "pinned_bytes": status.pinned_bytes,
    }


def _words(use: TierUse) -> str:
    return f"{size(use.num_bytes)} of {size(use.budget_bytes)}"


def _tier(use: TierUse | None) -> dict[str, int] | None:
    if use is None:
        return None
    return {
        "bytes": use.num_bytes,
        "budget_bytes": use.budget_bytes,
        "segments": use.num_segments,
    }
