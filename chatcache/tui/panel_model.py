"""What the cache panel says: the state behind it and its lines, without widgets.

Owns the layout of the panel as text with style names. All figures come from the events of the
chat service and of the backend; nothing is measured or guessed here.
"""

from __future__ import annotations

import textwrap
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from rich.cells import cell_len

from chatcache.backends.base import (
    CacheEvent,
    CacheSnapshot,
    ModelInfo,
    PrefillProgress,
    SegmentRow,
    TierUse,
    TurnPlanned,
)
from chatcache.cache.namespace import PRECISION, is_approximate
from chatcache.frontend.figures import Figures, is_real_miss, reason_words, sign
from chatcache.tui import formatting as fmt
from chatcache.tui.idle_totals import IdleTotals

MAX_SEGMENTS = 8
MAX_EVENTS = 6
_FIRST_TURN = (
    "The first answer computes its whole prompt. "
    "From then on this shows what was reused, from where, and why."
)


class Piece(NamedTuple):
    """A run of text in one style: "", title, strong, dim, good, bad, bar or rest."""

    text: str
    style: str = ""


Line = tuple[Piece, ...]


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
    """Everything the panel shows. Changed by events only."""

    info: ModelInfo | None = None
    sampling: tuple[str, ...] = ()
    figures: Figures | None = None
    figures_turn: int | None = None
    is_running: bool = False
    prefill_done: int = 0
    decoding: Decoding | None = None
    snapshot: CacheSnapshot | None = None
    ttfts: deque[float] = field(default_factory=lambda: deque(maxlen=40))
    rates: deque[float] = field(default_factory=lambda: deque(maxlen=40))
    events: deque[CacheEvent] = field(default_factory=lambda: deque(maxlen=40))
    idle: IdleTotals = field(default_factory=IdleTotals)

    def begin(self, planned: TurnPlanned) -> None:
        """A turn was planned: what will be reused and why is known before the first token."""
        cached = planned.cached_ram_tokens + planned.cached_disk_tokens
        outcome = "miss" if not cached else "hit" if _is_whole(planned) else "partial"
        self.is_running = True
        self.decoding = None
        self.prefill_done = cached
        self.figures_turn = None
        self.figures = Figures(
            prompt_tokens=planned.prompt_tokens,
            cached_ram_tokens=planned.cached_ram_tokens,
            cached_disk_tokens=planned.cached_disk_tokens,
            outcome="off" if planned.reason in ("disabled", "remote") else outcome,
            reason=planned.reason,
            detail=planned.detail,
            diverged_at=cached,
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
        self.idle.num_used += figures.ahead_tokens
        self._count(figures)

    def show(self, figures: Figures | None, turn: int | None) -> None:
        """Look at the figures of an earlier turn."""
        if not self.is_running:
            self.figures, self.figures_turn = figures, turn

    def restart(self, history: list[Figures]) -> None:
        """Another session was opened; `history` are the figures of its answers, oldest first."""
        self.is_running = False
        self.ttfts.clear()
        self.rates.clear()
        for figures in history:
            self._count(figures)
        self.figures = history[-1] if history else None
        self.figures_turn = None

    def _count(self, figures: Figures) -> None:
        if figures.ttft_ms is not None:
            self.ttfts.append(figures.ttft_ms)
        if figures.decode_tokens_per_second is not None:
            self.rates.append(figures.decode_tokens_per_second)


def _is_whole(planned: TurnPlanned) -> bool:
    return planned.reason == "new_user_turn"


def lines(state: PanelState, width: int, now: float) -> list[Line]:
    """The whole panel, at most `width` cells wide."""
    parts = [
        _reuse_lines(state, width),
        _latency_lines(state, width),
        _store_lines(state.snapshot, width, now),
        _idle_lines(state.idle, width),
        _event_lines(state, width),
        _sampling_lines(state.sampling, width),
        _model_lines(state.info, width),
    ]
    joined: list[Line] = []
    for part in parts:
        part_lines = list(part)
        if joined and part_lines:
            joined.append(())
        joined += part_lines
    return joined


def compact_line(state: PanelState, width: int) -> Line:
    """The panel in one line; the least important figures go first when there is no room."""
    figures = state.figures
    if figures is None:
        return (Piece("CACHE", "title"), Piece("  nothing asked yet", "dim"))
    share = fmt.percent(figures.cached_tokens, figures.prompt_tokens)
    head = f"  {sign(figures)} {figures.outcome} {share}"
    parts = [reason_words(figures.reason), f"+{figures.computed_tokens:,} computed"]
    if figures.cached_tokens:
        parts.insert(1, f"{figures.cached_tokens:,} reused ({figures.sources})")
    if figures.ttft_ms is not None:
        parts.append(f"TTFT {fmt.duration(figures.ttft_ms)}")
    if figures.saved_ms:
        parts.append(f"saved {fmt.duration(figures.saved_ms)}")
    room = width - len("CACHE") - cell_len(head)
    tail = ""
    for part in parts:
        if cell_len(tail) + 3 + cell_len(part) > room:
            break
        tail += f" · {part}"
    return (Piece("CACHE", "title"), Piece(head, "strong"), Piece(tail))


def _reuse_lines(state: PanelState, width: int) -> Iterator[Line]:
    figures = state.figures
    if figures is None:
        yield _heading("CACHE", "no turn yet", width)
        yield from _wrapped(_FIRST_TURN, width)
        return
    share = fmt.percent(figures.cached_tokens, figures.prompt_tokens)
    note = f"turn {state.figures_turn}" if state.figures_turn else ""
    yield _heading(f"CACHE  {figures.outcome} {share}", note, width, strong_from=5)
    done = state.prefill_done if state.is_running else figures.prompt_tokens
    yield _double_bar(figures.cached_tokens, done, figures.prompt_tokens, width)
    style = "good" if figures.outcome == "hit" else "bad" if is_real_miss(figures) else "strong"
    yield (Piece(f"{sign(figures)} {reason_words(figures.reason)}", style),)
    yield from _wrapped(fmt.clean(figures.detail), width)
    yield ()
    cut = f"cut at {figures.diverged_at:,}" if figures.cached_tokens else ""
    yield _count_line("prompt", figures.prompt_tokens, cut)
    yield _count_line("reused", figures.cached_tokens, _reused_from(figures))
    if figures.cached_tokens and figures.system_tokens:
        system = min(figures.system_tokens, figures.cached_tokens)
        text = f"  system {system:,} · history {figures.cached_tokens - system:,}"
        yield (Piece(text, "dim"),)
    if figures.ahead_tokens:
        yield (Piece(f"  {figures.ahead_tokens:,} of them computed ahead", "dim"),)
    yield _count_line("computed", figures.computed_tokens, _progress(state, figures))


def _reused_from(figures: Figures) -> str:
    if figures.cached_ram_tokens and figures.cached_disk_tokens:
        return f"RAM {figures.cached_ram_tokens:,} · disk {figures.cached_disk_tokens:,}"
    return f"from {figures.sources}" if figures.sources else ""


def _progress(state: PanelState, figures: Figures) -> str:
    left = figures.prompt_tokens - state.prefill_done
    return f"{left:,} to go" if state.is_running and left > 0 else ""


def _latency_lines(state: PanelState, width: int) -> Iterator[Line]:
    figures = state.figures
    if state.is_running and (now := state.decoding) is not None:
        yield _heading("LATENCY", "writing now", width)
        speed = f"{fmt.rate(now.rate)}/s" if now.rate is not None else "–"
        yield _table_line(("decode", speed, f"{now.num_tokens:,} tok", ""), width)
    if figures is None or figures.ttft_ms is None:
        return
    cold = "cold" if figures.is_cold_measured else "cold est."
    yield _table_line(("LATENCY", "last", cold, "saved"), width, ("title", "dim", "dim", "dim"))
    if figures.cached_tokens:
        yield _table_line(("restore", fmt.duration(figures.restore_ms), "", ""), width)
    yield _table_line(("prefill", fmt.duration(figures.prefill_ms), "", ""), width)
    cold_ttft = "" if figures.cold_ttft_ms is None else fmt.duration(figures.cold_ttft_ms)
    saved = fmt.duration(figures.saved_ms) if figures.saved_ms else ""
    styles = ("", "strong", "", "good")
    yield _table_line(("TTFT", fmt.duration(figures.ttft_ms), cold_ttft, saved), width, styles)
    yield _table_line(("decode", f"{fmt.rate(figures.decode_tokens_per_second)}/s", "", ""), width)
    if len(state.ttfts) > 1:
        half = (width - 13) // 2
        yield (
            Piece("TTFT ", "dim"),
            Piece(fmt.sparkline(list(state.ttfts), half).ljust(half), "bar"),
            Piece("  tok/s ", "dim"),
            Piece(fmt.sparkline(list(state.rates), half), "bar"),
        )


def _store_lines(snapshot: CacheSnapshot | None, width: int, now: float) -> Iterator[Line]:
    if snapshot is None:
        return
    live = f"{snapshot.live_tokens:,} tok live" if snapshot.live_tokens else ""
    yield _heading("STORE", live, width)
    yield _tier_line("RAM", snapshot.ram, width)
    yield _tier_line("disk", snapshot.disk, width)
    if not snapshot.segments:
        return
    yield (Piece(_segment_columns("tokens", "where", "size", "age", "hits", width), "dim"),)
    for row in snapshot.segments[:MAX_SEGMENTS]:
        yield (Piece(_segment_text(row, width, now)),)
    if (hidden := len(snapshot.segments) - MAX_SEGMENTS) > 0:
        yield (Piece(f"and {hidden:,} more", "dim"),)


def _tier_line(name: str, use: TierUse, width: int) -> Line:
    figures = f"  {fmt.size(use.num_bytes)} / {fmt.size(use.budget_bytes)}"
    fraction = use.num_bytes / use.budget_bytes if use.budget_bytes else 0.0
    filled, rest = fmt.bar(fraction, max(4, width - 5 - cell_len(figures)))
    return (Piece(f"{name:<5}"), Piece(filled, "bar"), Piece(rest, "rest"), Piece(figures))


def _segment_text(row: SegmentRow, width: int, now: float) -> str:
    return _segment_columns(
        f"{row.start:,}–{row.stop:,}",
        where_words(row) + ("*" if row.is_pinned else ""),
        fmt.size(row.num_bytes),
        fmt.age(now - row.last_used),
        f"{row.hits:,}",
        width,
    )


def where_words(row: SegmentRow) -> str:
    """Which tier a segment is in."""
    if row.in_ram:
        return "both" if row.on_disk else "RAM"
    return "disk" if row.on_disk else "live" if row.is_live else "–"


def _segment_columns(tokens: str, where: str, num: str, age: str, hits: str, width: int) -> str:
    first = max(9, width - 23)
    return f"{fmt.shorten(tokens, first):<{first}}{where:>5}{num:>8}{age:>5}{hits:>5}"


def _idle_lines(totals: IdleTotals, width: int) -> Iterator[Line]:
    if totals:
        yield _heading("IDLE", totals.heading, width)
        for row in totals.rows():
            yield (Piece(row),)


def _event_lines(state: PanelState, width: int) -> Iterator[Line]:
    if not state.events:
        return
    yield _heading("EVENTS", "", width)
    for event in list(state.events)[-MAX_EVENTS:]:
        stamp = fmt.clock_time(event.at, seconds=True)
        style = "bad" if event.kind in ("quarantined", "warning") else ""
        words = fmt.one_line(f"! {event.text}" if style else event.text)
        text = textwrap.wrap(words, max(10, width - 9)) or [""]
        yield (Piece(f"{stamp} ", "dim"), Piece(text[0], style))
        for more in text[1:]:
            yield (Piece(" " * 9 + more, style),)


def _sampling_lines(words: tuple[str, ...], width: int) -> Iterator[Line]:
    if words:
        yield _heading("SAMPLING", "cache not touched", width)
        yield from _wrapped(" · ".join(words), width, style="")


def _model_lines(info: ModelInfo | None, width: int) -> Iterator[Line]:
    if info is None:
        return
    yield _heading("MODEL", "", width)
    yield from _wrapped(fmt.one_line(info.model), width, style="")
    facts = [
        f"{fmt.parameters(info.num_parameters)} parameters",
        info.dtype,
        info.device,
        f"{fmt.size(info.kv_bytes_per_token)} per token",
        f"context {info.max_context_tokens:,}",
    ]
    if is_approximate(info.namespace_fields):
        facts.append(f"kept as {info.namespace_fields[PRECISION]}, approximate")
    yield from _wrapped(" · ".join(facts), width)
    if info.cut != "any_token":
        yield from _wrapped(f"reuse: {fmt.one_line(info.cut_detail)}", width, style="strong")


def _heading(left: str, right: str, width: int, strong_from: int | None = None) -> Line:
    gap = max(1, width - cell_len(left) - cell_len(right))
    if strong_from is None:
        return (Piece(left, "title"), Piece(" " * gap), Piece(right, "dim"))
    title, rest = left[:strong_from], left[strong_from:]
    return (Piece(title, "title"), Piece(rest, "strong"), Piece(" " * gap), Piece(right, "dim"))


def _double_bar(cached: int, done: int, total: int, width: int) -> Line:
    """Reused tokens solid, computed ones dashed, those still to be computed as a thin line."""
    total = max(1, total)
    solid = round(width * cached / total)
    if 0 < cached < total:
        solid = max(1, min(width - 1, solid))
    reached = max(solid, round(width * min(done, total) / total))
    return (
        Piece("━" * solid, "bar"),
        Piece("╍" * (reached - solid), "dim"),
        Piece("─" * (width - reached), "rest"),
    )


def _count_line(name: str, number: int, note: str) -> Line:
    text = f"{name:<10}{number:>9,}"
    return (Piece(text), Piece(f"  {note}" if note else "", "dim"))


def _table_line(
    cells: tuple[str, str, str, str], width: int, styles: tuple[str, ...] = ("", "", "", "")
) -> Line:
    """A name and three right-aligned cells; the middle one has room for `cold est.`."""
    side = max(8, (width - 7 - 11) // 2)
    middle = max(10, width - 7 - 2 * side)
    name, last, cold, saved = cells
    texts = (f"{name:<7}", f"{last:>{side}}", f"{cold:>{middle}}", f"{saved:>{side}}")
    return tuple(Piece(text, style) for text, style in zip(texts, styles, strict=True))


def _wrapped(text: str, width: int, style: str = "dim") -> Iterator[Line]:
    for line in textwrap.wrap(text, width):
        yield (Piece(line, style),)
