"""What a person may set about the tiers beside their budgets. `tiers/` acts on these values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

SpillMode = Literal["turn", "pressure", "exit", "never"]
Precision = Literal["exact", "int8"]

LOW_WATER = 0.9  # when RAM is over its budget, it is cleared down to this share of it


@dataclass(frozen=True, slots=True)
class TierPolicy:
    """When segments go to disk, and how long they are kept unused.

    `spill`: "turn" writes what is new after each turn; "exit" when the cache is closed, and before
    that only what RAM has no room for; "pressure" only what RAM has no room for; "never" nothing.
    The times to live are seconds since the last use, None is for ever. `disk_floor` is how many
    bytes are left free on the disk, whatever the budget says. Of what is on disk when the cache is
    opened, up to `disk_kept` bytes stay where the budget is less. `precision`: K and V are kept as
    they were computed, or as 8-bit integers, in a namespace of their own.
    """

    spill: SpillMode = "turn"
    ram_ttl: float | None = None
    disk_ttl: float | None = None
    disk_floor: int = 0
    disk_kept: int = 0
    precision: Precision = "exact"


def is_over(last_used: float, ttl: float | None, now: float) -> bool:
    """Whether the time of something that was used then is over."""
    return ttl is not None and last_used + ttl <= now
