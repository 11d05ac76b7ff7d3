"""What the cache panel knows: the figures, the tiers, the events and the sums of idle work.

Changed by events only; nothing is measured or guessed here.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from chatcache.backends.usage import CacheReport, Figures, Outcome, Timings, Usage
from chatcache.formatting import duration, model_label, plural, size

if TYPE_CHECKING:
    from chatcache.backends.base import (
        CacheEvent,
        CacheSnapshot,
        EngineStatus,
        IdleKind,
        ModelInfo,
        PrefillProgress,
        Prepared,
        RestoreBegan,
        TurnPlanned,
    )

_IDLE_NAMES: dict[IdleKind, str] = {
    "next_turn": "next turn",
    "draft": "draft",
    "restore": "restored",
}


@dataclass
class _Total:
    num_tokens: int = 0
    seconds: float = 0.0


@dataclass
class IdleTotals:
    """Tokens and time by kind of work; `num_used` of the computed tokens were used by a turn."""

    num_used: int = 0
    _totals: dict[IdleKind, _Total] = field(default_factory=dict)

    def note(self, prepared: Prepared) -> None:
        """Take in finished (or cancelled) idle work. What a draft or a next turn had restored in
        order to begin counts as restored."""
        if prepared.tokens_prefilled:
            self._add(prepared.kind, prepared.tokens_prefilled, prepared.seconds)
        if prepared.tokens_restored:
            is_all = not prepared.tokens_prefilled
            self._add("restore", prepared.tokens_restored, prepared.seconds if is_all else 0.0)

    def _add(self, kind: IdleKind, num_tokens: int, seconds: float) -> None:
        total = self._totals.setdefault(kind, _Total())
        total.num_tokens += num_tokens
        total.seconds += seconds

    @property
    def num_prefilled(self) -> int:
        return sum(total.num_tokens for kind, total in self._totals.items() if kind != "restore")

    @property
    def heading(self) -> str:
        """How much of what was computed ahead was of use."""
        if not self.num_prefilled:
            return ""
        return f"used {self.num_used:,} of {self.num_prefilled:,}"

    def rows(self) -> Iterator[str]:
        """One line per kind of work that was done."""
        for kind, name in _IDLE_NAMES.items():
            if total := self._totals.get(kind):
                time = f"  {duration(1000 * total.seconds)}" if total.seconds else ""
                yield f"{name:<10}{total.num_tokens:>9,} tok{time}"

    def __bool__(self) -> bool:
        return bool(self._totals)


@dataclass(frozen=True, slots=True)
class Decoding:
    """An answer while it is written: tokens so far, and since `began_at` (a monotonic clock)."""

    num_tokens: int
    first_tokens: int
    began_at: float
    at: float

    @property
    def rate(self) -> float | None:
        """Tokens per second; None as long as there is nothing to measure."""
        seconds = self.at - self.began_at
        return (self.num_tokens - self.first_tokens) / seconds if seconds > 0 else None


@dataclass
class PanelState:
    """Everything the panel shows. Changed by events only. `lint`: what makes the beginning of the
    chat change, in a few words."""

    info: ModelInfo | None = None
    sampling: tuple[str, ...] = ()
    figures: Figures | None = None
    figures_turn: int | None = None
    is_running: bool = False
    prefill_done: int = 0
    decoding: Decoding | None = None
    restoring: RestoreBegan | None = None
    snapshot: CacheSnapshot | None = None
    engine: EngineStatus | None = None
    ttfts: deque[float] = field(default_factory=lambda: deque(maxlen=40))
    rates: deque[float] = field(default_factory=lambda: deque(maxlen=40))
    events: deque[CacheEvent] = field(default_factory=lambda: deque(maxlen=40))
    idle: IdleTotals = field(default_factory=IdleTotals)
    lint: str = ""

    @property
    def model_name(self) -> str:
        return model_label(self.info.model, self.info.quantization) if self.info else "assistant"

    @property
    def restore_words(self) -> str:
        """What is being read from disk: `restoring 4,096 tokens from disk, 470 MB`; or nothing."""
        if self.restoring is None:
            return ""
        tokens = plural(self.restoring.num_tokens, "token")
        return f"restoring {tokens} from disk, {size(self.restoring.num_bytes)}"

    def begin(self, planned: TurnPlanned) -> None:
        """A turn was planned: what will be reused and why is known before the first token."""
        cached = planned.cached_ram_tokens + planned.cached_disk_tokens
        outcome: Outcome = "miss" if not cached else "hit" if _is_whole(planned) else "partial"
        if planned.reason in ("disabled", "remote"):
            outcome = "off"
        self.is_running = True
        self.decoding = None
        self.prefill_done = cached
        self.figures_turn = None
        self.figures = Figures(
            Usage(planned.prompt_tokens, 0, planned.cached_ram_tokens, planned.cached_disk_tokens),
            Timings(None, None, None, None, None, None),
            CacheReport(outcome, planned.reason, cached, planned.detail),
        )

    def advance(self, progress: PrefillProgress) -> None:
        self.prefill_done = progress.done

    def decode(self, num_tokens: int, at: float) -> None:
        """So many tokens of the answer are there at this time (of a monotonic clock)."""
        first = self.decoding or Decoding(num_tokens, num_tokens, at, at)
        self.decoding = Decoding(num_tokens, first.first_tokens, first.began_at, at)

    def finish(self, figures: Figures | None, turn: int | None = None) -> None:
        """A turn ended; without figures (it failed) what was planned stays visible."""
        self.is_running = False
        if figures is None:
            return
        self.figures, self.figures_turn = figures, turn
        self.idle.num_used += figures.cache.ahead_tokens
        self._count(figures)

    def show(self, figures: Figures | None, turn: int | None) -> None:
        """Look at the figures of an earlier turn."""
        if not self.is_running:
            self.figures, self.figures_turn = figures, turn

    def restart(self, history: dict[int, Figures]) -> None:
        """Another session was opened; `history`: its answers' figures by turn, oldest first."""
        self.is_running = False
        self.ttfts.clear()
        self.rates.clear()
        for figures in history.values():
            self._count(figures)
        self.figures_turn = max(history, default=None)
        self.figures = history[self.figures_turn] if self.figures_turn is not None else None

    def _count(self, figures: Figures) -> None:
        if figures.timings.ttft_ms is not None:
            self.ttfts.append(figures.timings.ttft_ms)
        if figures.timings.decode_tokens_per_second is not None:
            self.rates.append(figures.timings.decode_tokens_per_second)


def _is_whole(planned: TurnPlanned) -> bool:
    return planned.reason == "new_user_turn"
