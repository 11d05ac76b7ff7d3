"""What the engine process is started with. No torch: front ends build it, the child reads it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from chatcache.cache.book.policy import TierPolicy


@dataclass(frozen=True, slots=True)
class EngineSettings:
    """Everything the engine process needs to know; picklable. Budgets are bytes."""

    model: str
    cache_dir: Path
    log_path: Path
    adapter: Path | None = None
    device: str = "auto"
    dtype: str = "auto"
    is_offline: bool = False
    ram_budget: int = 2 << 30
    disk_budget: int = 16 << 30
    policy: TierPolicy = field(default_factory=TierPolicy)
    num_threads: int | None = None
    prefill_chunk_tokens: int = 512
