"""The figures of one turn: tokens, times, reuse and a price. None is what nobody told."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from chatcache.cache.views import Tier as Tier
from chatcache.cache.views import TierRun as TierRun

# "loop": the model repeated itself until it was stopped.
FinishReason = Literal["stop", "length", "stopped", "loop"]
# An answer of a model of this machine ends here, where neither its publisher nor the user has set a
# limit: what goes on longer is seldom an answer.
DEFAULT_NEW_TOKENS = 4096
Outcome = Literal["hit", "partial", "miss", "off"]
Reason = Literal[
    "new_user_turn",
    "cold_start",
    "below_minimum",
    "system_prompt_changed",
    "turn_edited",
    "template_rewrote_history",
    "template_is_unstable",
    "model_changed",
    "adapter_changed",
    "settings_changed",
    "evicted",
    "expired",
    "corrupt",
    "not_cuttable",
    "cheaper_to_recompute",
    "disabled",
    "remote",
]


@dataclass(frozen=True, slots=True)
class Usage:
    """Token counts. `prompt_tokens == cached_tokens + computed_tokens`, exactly. None: a server
    did not say; `server_cached_tokens` are those that it took from a cache of its own."""

    prompt_tokens: int | None
    completion_tokens: int | None
    cached_ram_tokens: int | None
    cached_disk_tokens: int | None
    server_cached_tokens: int | None = None

    @property
    def cached_tokens(self) -> int | None:
        if self.cached_ram_tokens is None or self.cached_disk_tokens is None:
            return self.server_cached_tokens
        return self.cached_ram_tokens + self.cached_disk_tokens

    @property
    def computed_tokens(self) -> int | None:
        prompt, cached = self.prompt_tokens, self.cached_tokens
        return None if prompt is None or cached is None else prompt - cached


@dataclass(frozen=True, slots=True)
class Timings:
    """Milliseconds, from the moment the prompt reached an engine that was ready. None: unknown."""

    restore_ms: float | None
    prefill_ms: float | None
    ttft_ms: float | None
    decode_ms: float | None
    prefill_tokens_per_second: float | None
    decode_tokens_per_second: float | None


@dataclass(frozen=True, slots=True)
class TurnPrice:
    """What a server's turn cost, and what its cache saved, by the prices of its profile."""

    currency: str
    total: float | None
    saved: float | None


@dataclass(frozen=True, slots=True)
class CacheReport:
    """What was reused in a turn, and why not more.

    `diverged_at` is the position of the first computed prompt token; None: a server did not say.
    `estimated_cold_ttft_ms` is what measured prefills say of the prompt; `is_estimate_measured` is
    True once one of them had at least 64 tokens of this model on this machine.
    `ahead_tokens` of the reused tokens had been computed in idle time, ahead of this turn.
    `is_approximate`: what was reused is kept with fewer bits than it was computed with.
    `runs` tell from where each of the reused tokens came; None: it was not recorded.
    """

    outcome: Outcome
    reason: Reason
    diverged_at: int | None
    detail: str
    estimated_cold_ttft_ms: float | None = None
    saved_ms: float | None = None
    bytes_read: int = 0
    bytes_written: int = 0
    is_estimate_measured: bool = False
    system_tokens: int = 0
    ahead_tokens: int = 0
    is_approximate: bool = False
    runs: tuple[TierRun, ...] | None = None


@dataclass(frozen=True, slots=True)
class Figures:
    """All figures of one turn. The counts below are 0 where nobody told them."""

    usage: Usage
    timings: Timings
    cache: CacheReport
    price: TurnPrice | None = None
    finish_reason: FinishReason = "stop"

    @property
    def is_remote(self) -> bool:
        """Did a server answer? What it reused is its own, and in none of our sums."""
        return self.cache.reason == "remote"

    @property
    def prompt_tokens(self) -> int:
        return self.usage.prompt_tokens or 0

    @property
    def completion_tokens(self) -> int:
        return self.usage.completion_tokens or 0

    @property
    def cached_ram_tokens(self) -> int:
        return self.usage.cached_ram_tokens or 0

    @property
    def cached_disk_tokens(self) -> int:
        return self.usage.cached_disk_tokens or 0

    @property
    def cached_tokens(self) -> int:
        """Reused from this machine's own tiers."""
        return self.cached_ram_tokens + self.cached_disk_tokens

    @property
    def computed_tokens(self) -> int:
        return self.prompt_tokens - self.cached_tokens
