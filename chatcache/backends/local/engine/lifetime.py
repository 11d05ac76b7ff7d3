"""How long an engine stays when nobody uses it, and what ends it sooner.

Owns the clock of an unused engine, the look at the memory of the machine, and the look at the
files that this process was made from. It only tells; the server acts. An engine in use is never
ended here.
"""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from chatcache.machine import memory_left

MEMORY_SECONDS = 5.0  # an unused engine looks so often whether the memory is needed
FILES_SECONDS = 30.0
MIN_FREE_BYTES = 256 << 20
MIN_FREE_SHARE = 0.05
_PACKAGES = ("torch", "transformers", "tokenizers", "safetensors", "msgspec")

NOT_USED = "nobody has used it"
NO_MEMORY = "the memory was needed"
OTHER_FILES = "its model, chatcache, or a package that it uses was changed or removed"
NO_PLACE = "its socket was removed"


class Lifetime:
    """Tells when an unused engine is to end. `is_reachable`: whether front ends still find it."""

    def __init__(
        self,
        is_reachable: Callable[[], bool] = lambda: True,
        *,
        is_memory_short: Callable[[], bool] | None = None,
        stamp: Callable[[], tuple[object, ...]] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.keep_alive_seconds: float | None = 0.0
        self._is_reachable = is_reachable
        self._is_memory_short = is_memory_short or memory_is_short
        self._clock = clock
        self.is_model_outdated: Callable[[], bool] = lambda: False  # until there is one
        self._unused_since: float | None = None
        self._stamp = stamp or program_stamp
        self._files = self._stamp()
        self._files_looked_at = clock()

    def used(self) -> None:
        """Somebody is there."""
        self._unused_since = None

    def unused(self) -> None:
        """Nobody is there any more."""
        if self._unused_since is None:
            self._unused_since = self._clock()

    @property
    def seconds_left(self) -> float | None:
        """None: it is in use, or stays for ever."""
        since, keep_alive = self._unused_since, self.keep_alive_seconds
        if since is None or keep_alive is None:
            return None
        return max(0.0, since + keep_alive - self._clock())

    def tick_seconds(self) -> float | None:
        """When to look again; None: not before something happens."""
        if self._unused_since is None:
            return None
        left = self.seconds_left
        return MEMORY_SECONDS if left is None else min(left, MEMORY_SECONDS)

    def why_end(self) -> str | None:
        """Why an engine that nobody uses is to end now; None: it stays."""
        if self._unused_since is None:
            return None
        if self.seconds_left == 0.0:
            return NOT_USED
        if self._is_memory_short():
            return NO_MEMORY
        if self._clock() - self._files_looked_at >= FILES_SECONDS:
            self._files_looked_at = self._clock()
            if not self._is_reachable():
                return NO_PLACE
            if self.is_outdated():
                return OTHER_FILES
        return None

    def is_outdated(self) -> bool:
        """Whether the program, or the model, is not the one any more that this process has."""
        return self._stamp() != self._files or self.is_model_outdated()


def memory_is_short(num_bytes: int = 0) -> bool:
    """Whether the machine, or the group of processes that this one is limited with, has little
    memory left, or would have with `num_bytes` less. What the system does not tell is not short."""
    return any(
        available - num_bytes < max(MIN_FREE_BYTES, MIN_FREE_SHARE * total)
        for total, available in memory_left()
    )


def memory_bytes() -> int:
    """What this process holds that no file backs; 0 where that is not told."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        values = {name: rest for name, _, rest in (line.partition(":") for line in lines)}
        return int(values["RssAnon"].split()[0]) << 10
    except (OSError, ValueError, KeyError, IndexError):
        return 0


def program_stamp() -> tuple[object, ...]:
    """Differs when chatcache, or a package that computes for it, is changed or removed."""
    package = Path(__file__).parents[3]
    own = sorted(package.rglob("*.py"))
    return tuple(_stamp(path) for path in (*own, *_origins()))


def _origins() -> Iterable[Path]:
    for name in _PACKAGES:
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.origin is not None:
            origin = Path(spec.origin)
            yield origin
            yield origin.with_name("version.py")


def _stamp(path: Path) -> tuple[str, int, int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return str(path), status.st_size, status.st_mtime_ns
