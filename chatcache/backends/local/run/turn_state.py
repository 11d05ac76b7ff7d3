"""What a turn knows while it runs: its plan, its clocks and its counts."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

import torch

from chatcache.backends.base import Timings, TurnRequest, Usage
from chatcache.backends.local.prompt.planner import PromptPlan
from chatcache.backends.local.run.live_context import Reuse
from chatcache.backends.local.run.reasons import Explanation


@dataclass(slots=True)
class TurnState:
    """Mutable; one per turn. Clock values are `time.perf_counter` seconds."""

    request: TurnRequest
    plan: PromptPlan
    room: int
    began: float
    explanation: Explanation = field(default_factory=lambda: Explanation("miss", "cold_start", ""))
    disk_tokens: int = 0
    reused: int = 0
    ahead_tokens: int = 0
    computed_to: int = 0
    bytes_read: int = 0
    restore_seconds: float = 0.0
    prefill_seconds: float = 0.0
    first_token_at: float | None = None
    last_token_at: float | None = None
    num_decoded: int = 0
    logits: torch.Tensor | None = None

    @property
    def limit(self) -> int:
        """At least one prompt token is always computed: its logits are needed."""
        return len(self.plan.ids) - 1

    @property
    def ram_tokens(self) -> int:
        return self.reused - self.disk_tokens

    def note_reuse(self, reuse: Reuse) -> None:
        self.reused = self.computed_to = reuse.num_tokens
        self.disk_tokens = reuse.disk_tokens
        self.bytes_read = reuse.bytes_read
        self.restore_seconds = reuse.seconds

    def note_token(self) -> None:
        self.last_token_at = time.perf_counter()
        if self.first_token_at is None:
            self.first_token_at = self.last_token_at
        self.num_decoded += 1

    def usage(self, num_completion: int) -> Usage:
        return Usage(len(self.plan.ids), num_completion, self.ram_tokens, self.disk_tokens)

    def timings(self) -> Timings:
        """A stopped prefill has no first token: then only what was measured is told."""
        decode_ms, ttft_ms, decode_rate, prefill_rate = None, None, None, None
        if self.first_token_at is not None and self.last_token_at is not None:
            ttft_ms = 1000 * (self.first_token_at - self.began)
            decode_ms = 1000 * (self.last_token_at - self.first_token_at)
            if decode_ms > 0:
                decode_rate = 1000 * (self.num_decoded - 1) / decode_ms
        if self.prefill_seconds > 0 and self.computed_to > self.reused:
            prefill_rate = (self.computed_to - self.reused) / self.prefill_seconds
        return Timings(
            restore_ms=1000 * self.restore_seconds,
            prefill_ms=1000 * self.prefill_seconds,
            ttft_ms=ttft_ms,
            decode_ms=decode_ms,
            prefill_tokens_per_second=prefill_rate,
            decode_tokens_per_second=decode_rate,
        )
