"""How many bytes segments may take in memory and on disk, and where each figure comes from.

A budget is a ceiling: nothing is reserved. An engine takes less where its model leaves less.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from chatcache.checks import num_bytes
from chatcache.config import Settings
from chatcache.formatting import size
from chatcache.machine import allowance

LEAST_RAM = 2 << 30
LEAST_DISK, MOST_DISK = 8 << 30, 64 << 30
KEPT_DISK = 16 << 30  # of what is there already, where nobody has chosen a budget
_DEFAULT = "default"


@dataclass(frozen=True, slots=True)
class Budget:
    """`because` are words for what the figure is made of, `origin` says who decided it."""

    num_bytes: int
    because: str
    origin: str

    @property
    def words(self) -> str:
        """`at most 6.3 GB: 25% of the 25 GB of memory (default)`."""
        return f"at most {size(self.num_bytes)}: {self.because} ({self.origin})"

    @property
    def is_chosen(self) -> bool:
        return self.origin != _DEFAULT


def ram_budget(settings: Settings, memory: int | None = None) -> Budget:
    """For segments in memory. What nobody has chosen is at least 2 GiB, but never more than half
    of the `memory` that there is to use."""
    memory = allowance().memory_bytes if memory is None else memory
    value, origin = settings.config.cache.ram_budget, _origin(settings, "ram_budget")
    found, because = num_bytes(value, lambda: memory), _words(value, memory, "memory")
    if origin == _DEFAULT and found < LEAST_RAM:
        found, because = LEAST_RAM, f"the least that is taken by itself; {because} would be less"
        if found > memory // 2:
            found, because = memory // 2, f"half of the {size(memory)} of memory"
    return Budget(found, because, origin)


def vram_words(settings: Settings) -> str:
    """For segments on a GPU that are not live. How much that is, only a loaded model knows."""
    value, origin = settings.config.cache.vram_budget, _origin(settings, "vram_budget")
    if isinstance(value, str) and value.strip().endswith("%"):
        return f"at most {value.strip()} of what the model leaves free ({origin})"
    return f"at most {size(num_bytes(value, lambda: 0))} ({origin})"


def disk_budget(settings: Settings, disk: int | None = None) -> Budget:
    """For segments on a disk of so many bytes. What nobody has chosen is at least 8 GiB, but never
    more than half of the disk, and at most 64 GiB."""
    disk = disk_size(settings.paths.cache_dir) if disk is None else disk
    value, origin = settings.config.cache.disk_budget, _origin(settings, "disk_budget")
    found, because = num_bytes(value, lambda: disk), _words(value, disk, "disk")
    if origin == _DEFAULT and found < LEAST_DISK:
        found, because = LEAST_DISK, f"the least that is taken by itself; {because} would be less"
        if found > disk // 2:
            found, because = disk // 2, f"half of the {size(disk)} of disk"
    elif origin == _DEFAULT and found > MOST_DISK:
        found, because = MOST_DISK, f"the most that is taken by itself; {because} would be more"
    return Budget(found, because, origin)


def disk_kept(settings: Settings) -> int:
    """At most so much of what is on disk already stays, though a budget that nobody has chosen has
    become smaller."""
    return KEPT_DISK if _origin(settings, "disk_budget") == _DEFAULT else 0


def disk_size(path: Path) -> int:
    """The size in bytes of the disk that `path` is on, or will be on."""
    existing = next(place for place in (path, *path.parents) if place.exists())
    return shutil.disk_usage(existing).total


def _origin(settings: Settings, name: str) -> str:
    return settings.origins.get(f"cache.{name}", _DEFAULT)


def _words(value: int | str, total: int, what: str) -> str:
    if isinstance(value, str) and value.strip().endswith("%"):
        return f"{value.strip()} of the {size(total)} of {what}"
    return "as set"
