"""What a process holds in memory, as Linux tells it; nothing elsewhere.

Pages of its own ("anonymous") have no other home; pages of files ("mapped") are the kernel's cache
too, and are given up without harm when memory is short. Weights that are read where they lie in
their file are of the second kind.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

_PROC = Path("/proc")


@dataclass(frozen=True, slots=True)
class ProcessMemory:
    """Bytes. `proportional`: what several processes have mapped counts for each in part (Pss).
    `peak`: the most that was ever resident, or since `forget_peak`."""

    anonymous: int
    mapped: int
    proportional: int
    peak: int

    @property
    def resident(self) -> int:
        return self.anonymous + self.mapped


@dataclass(frozen=True, slots=True)
class Loading:
    """A model that a process of its own has loaded, which then has read a few tokens and many.

    Times are seconds; `ready` is from the loaded model to one that can be asked. `num_captured`
    steps were captured for a GPU while the first token was computed. Memory: before anything was
    loaded, with the model, after the few tokens, when every weight was used, and after the many;
    None where the system does not tell.
    """

    load: float
    first_token: float
    before: ProcessMemory | None
    loaded: ProcessMemory | None
    used: ProcessMemory | None
    busy: ProcessMemory | None
    ready: float = 0.0
    num_captured: int = 0

    @property
    def weights(self) -> int | None:
        """What the process came to hold by loading the model and using all of it."""
        return _growth(self.before, self.used)

    @property
    def most(self) -> int | None:
        """The same at the most while it was loaded."""
        if self.before is None or self.loaded is None:
            return None
        return self.loaded.peak - self.before.resident

    @property
    def reading(self) -> int | None:
        """The same after many tokens: with K and V, and all that computing needs."""
        return _growth(self.before, self.busy)

    @classmethod
    def of(cls, told: dict[str, Any]) -> Loading:
        """From the JSON of `asdict`."""
        memory = {
            name: None if told[name] is None else ProcessMemory(**told[name])
            for name in ("before", "loaded", "used", "busy")
        }
        return cls(**(told | memory))


def _growth(before: ProcessMemory | None, after: ProcessMemory | None) -> int | None:
    return None if before is None or after is None else after.resident - before.resident


def process_memory(pid: int | None = None) -> ProcessMemory | None:
    """Of this process, or of another of this user's; None where the system does not tell."""
    place = _PROC / ("self" if pid is None else str(pid))
    status, rollup = _fields(place / "status"), _fields(place / "smaps_rollup")
    if "RssAnon" not in status or "Pss" not in rollup:
        return None
    return ProcessMemory(
        anonymous=status["RssAnon"],
        mapped=status["RssFile"] + status.get("RssShmem", 0),
        proportional=rollup["Pss"],
        peak=status["VmHWM"],
    )


def forget_peak() -> None:
    """Let `peak` of this process begin anew. Does nothing where the kernel does not let it."""
    try:
        (_PROC / "self" / "clear_refs").write_text("5")
    except OSError:
        return


def _fields(file: Path) -> dict[str, int]:
    """The sizes in a file of `NAME: NUMBER kB` lines, in bytes."""
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except OSError:
        return {}
    fields = {}
    for line in lines:
        name, _, rest = line.partition(":")
        words = rest.split()
        if len(words) == 2 and words[1] == "kB":
            fields[name] = int(words[0]) << 10
    return fields
