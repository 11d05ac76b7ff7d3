"""The figures of one turn: tokens, times and a price. None is what nobody told."""

from __future__ import annotations

from dataclasses import dataclass


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
