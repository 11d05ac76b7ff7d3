"""What the cache panel says, as lines without widgets.

Owns the layout of the panel as text with style names. All figures come from the events of the
chat service and of the backend; nothing is measured or guessed here.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

from rich.cells import cell_len

from chatcache.backends.usage import Figures
from chatcache.formatting import (
    clean,
    duration,
    flow,
    one_line,
    parameters,
    percent,
    rate,
    size,
    span,
)
from chatcache.frontend import reports, servers
from chatcache.frontend.engines import panel_words
from chatcache.frontend.figures import is_real_miss, reason_words, sign, sources
from chatcache.tui.look.formatting import age, bar, clock_time, shorten, sparkline
from chatcache.tui.panel.state import IdleTotals, PanelState

if TYPE_CHECKING:
    from chatcache.backends.base import (
        CacheSnapshot,
        EngineStatus,
        ModelInfo,
        SegmentRow,
        TierUse,
    )

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


def lines(state: PanelState, width: int, now: float) -> list[Line]:
    """The whole panel, at most `width` cells wide."""
    parts = [
        _restore_lines(state, width),
        _reuse_lines(state, width),
        _lint_lines(state.lint, width),
        _latency_lines(state, width),
        _store_lines(state.snapshot, width, now),
        _idle_lines(state.idle, width),
        _event_lines(state, width),
        _sampling_lines(state.sampling, width),
        _model_lines(state.info, width),
        _engine_lines(state.engine, width),
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
    if words := shorten(state.restore_words, width - len("CACHE") - 2):
        return (Piece("CACHE", "title"), Piece(f"  {words}", "strong"))
    if figures is None:
        return (Piece("CACHE", "title"), Piece("  nothing asked yet", "dim"))
    share = percent(figures.cached_tokens, figures.prompt_tokens)
    head = f"  {sign(figures)} {figures.cache.outcome} {share}"
    parts = [reason_words(figures.cache.reason), f"+{figures.computed_tokens:,} computed"]
    if figures.is_remote:
        first, *parts = servers.reuse_words(
            figures.prompt_tokens, figures.usage.server_cached_tokens
        )
        head = f"  {first}"
    elif figures.cached_tokens:
        parts.insert(1, f"{figures.cached_tokens:,} reused ({sources(figures)})")
    if state.lint:
        parts.insert(0, "! /lint")
    if figures.timings.ttft_ms is not None:
        parts.append(f"TTFT {duration(figures.timings.ttft_ms)}")
    if figures.cache.saved_ms:
        parts.append(f"saved {duration(figures.cache.saved_ms)}")
    if figures.price is not None:
        parts.append(servers.price_words(figures.price))
    room = width - len("CACHE") - cell_len(head)
    tail = ""
    for part in parts:
        if cell_len(tail) + 3 + cell_len(part) > room:
            break
        tail += f" · {part}"
    return (Piece("CACHE", "title"), Piece(head, "strong"), Piece(tail))


def _restore_lines(state: PanelState, width: int) -> Iterator[Line]:
    if state.restoring is not None:
        yield _heading("RESTORING", "from disk", width)
        yield _count_line("tokens", state.restoring.num_tokens, size(state.restoring.num_bytes))


def _reuse_lines(state: PanelState, width: int) -> Iterator[Line]:
    figures = state.figures
    if figures is None:
        is_remote = state.info is not None and state.info.backend == "remote"
        yield _heading("SERVER" if is_remote else "CACHE", "no turn yet", width)
        yield from _wrapped(servers.FIRST_TURN if is_remote else _FIRST_TURN, width)
        return
    if figures.is_remote:
        yield from _server_lines(state, figures, width)
        return
    share = percent(figures.cached_tokens, figures.prompt_tokens)
    note = f"turn {state.figures_turn}" if state.figures_turn else ""
    yield _heading(f"CACHE  {figures.cache.outcome} {share}", note, width, strong_from=5)
    done = state.prefill_done if state.is_running else figures.prompt_tokens
    yield _double_bar(figures.cached_tokens, done, figures.prompt_tokens, width)
    style = (
        "good" if figures.cache.outcome == "hit" else "bad" if is_real_miss(figures) else "strong"
    )
    yield (Piece(f"{sign(figures)} {reason_words(figures.cache.reason)}", style),)
    yield from _wrapped(clean(figures.cache.detail), width)
    yield ()
    cut = f"cut at {figures.cache.diverged_at or 0:,}" if figures.cached_tokens else ""
    yield _count_line("prompt", figures.prompt_tokens, cut)
    yield _count_line("reused", figures.cached_tokens, _reused_from(figures))
    if figures.cached_tokens and figures.cache.system_tokens:
        system = min(figures.cache.system_tokens, figures.cached_tokens)
        text = f"  system {system:,} · history {figures.cached_tokens - system:,}"
        yield (Piece(text, "dim"),)
    if figures.cache.ahead_tokens:
        yield (Piece(f"  {figures.cache.ahead_tokens:,} of them computed ahead", "dim"),)
    yield _count_line("computed", figures.computed_tokens, _progress(state, figures))


def _lint_lines(words: str, width: int) -> Iterator[Line]:
    if words:
        yield (Piece("/lint  ", "title"), Piece(shorten(f"! {words}", width - 7), "bad"))


def _server_lines(state: PanelState, figures: Figures, width: int) -> Iterator[Line]:
    """What a server told of a turn; what it did not tell has no line."""
    prompt, cached = figures.prompt_tokens, figures.usage.server_cached_tokens
    share = f"  {percent(cached, prompt)} cached" if cached is not None and prompt else ""
    note = f"turn {state.figures_turn}" if state.figures_turn else ""
    yield _heading(f"SERVER{share}", note, width, strong_from=6)
    if share:
        yield _double_bar(cached or 0, prompt, prompt, width)
    yield (Piece(f"{sign(figures)} {reason_words(figures.cache.reason)}", "strong"),)
    yield from _wrapped(clean(figures.cache.detail), width)
    if prompt:
        yield ()
        yield _count_line("prompt", prompt, "")
    if cached is not None and prompt:
        yield _count_line("cached", cached, "by the server")
        yield _count_line("computed", prompt - cached, "there")
    if figures.price is not None and not state.is_running:
        yield ()
        yield _heading("COST", "by the profile's prices", width)
        yield (Piece(servers.price_words(figures.price), "strong"),)


def _reused_from(figures: Figures) -> str:
    if figures.cached_ram_tokens and figures.cached_disk_tokens:
        return f"RAM {figures.cached_ram_tokens:,} · disk {figures.cached_disk_tokens:,}"
    return f"from {sources(figures)}" if sources(figures) else ""


def _progress(state: PanelState, figures: Figures) -> str:
    left = figures.prompt_tokens - state.prefill_done
    return f"{left:,} to go" if state.is_running and left > 0 else ""


def _latency_lines(state: PanelState, width: int) -> Iterator[Line]:
    figures = state.figures
    if state.is_running and (now := state.decoding) is not None:
        yield _heading("LATENCY", "writing now", width)
        pace = f"{rate(now.rate)}/s" if now.rate is not None else "–"
        if now.num_tokens:
            yield _table_line(("decode", pace, f"{now.num_tokens:,} tok", ""), width)
    if figures is None or figures.timings.ttft_ms is None:
        return
    cold = "cold" if figures.cache.is_estimate_measured else "cold est."
    middle, right = ("", "") if figures.is_remote else (cold, "saved")
    yield _table_line(("LATENCY", "last", middle, right), width, ("title", "dim", "dim", "dim"))
    if figures.cached_tokens:
        yield _table_line(("restore", duration(figures.timings.restore_ms), "", ""), width)
    if figures.timings.prefill_ms is not None or not figures.is_remote:
        yield _table_line(("prefill", duration(figures.timings.prefill_ms), "", ""), width)
    cold_ttft = (
        ""
        if figures.cache.estimated_cold_ttft_ms is None
        else duration(figures.cache.estimated_cold_ttft_ms)
    )
    saved = duration(figures.cache.saved_ms) if figures.cache.saved_ms else ""
    styles = ("", "strong", "", "good")
    yield _table_line(("TTFT", duration(figures.timings.ttft_ms), cold_ttft, saved), width, styles)
    if (speed := figures.timings.decode_tokens_per_second) is not None or not figures.is_remote:
        yield _table_line(("decode", f"{rate(speed)}/s", "", ""), width)
    if len(state.ttfts) > 1:
        half = (width - 13) // 2
        yield (
            Piece("TTFT ", "dim"),
            Piece(sparkline(list(state.ttfts), half).ljust(half), "bar"),
            Piece("  tok/s ", "dim"),
            Piece(sparkline(list(state.rates), half), "bar"),
        )


def _store_lines(snapshot: CacheSnapshot | None, width: int, now: float) -> Iterator[Line]:
    if snapshot is None:
        return
    live = f"{snapshot.live_tokens:,} tok live" if snapshot.live_tokens else ""
    yield _heading("STORE", live, width)
    if snapshot.vram is not None:
        yield _tier_line("VRAM", snapshot.vram, width)
    yield _tier_line("RAM", snapshot.ram, width)
    if snapshot.pinned_bytes:
        yield (Piece(f"     {size(snapshot.pinned_bytes)} locked for copies to the GPU", "dim"),)
    yield _tier_line("disk", snapshot.disk, width)
    if not snapshot.segments:
        return
    yield (Piece(_segment_columns("tokens", "where", "size", "age", "hits", width), "dim"),)
    for row in snapshot.segments[:MAX_SEGMENTS]:
        yield (Piece(_segment_text(row, width, now)),)
    if (hidden := len(snapshot.segments) - MAX_SEGMENTS) > 0:
        yield (Piece(f"and {hidden:,} more", "dim"),)


def _tier_line(name: str, use: TierUse, width: int) -> Line:
    figures = f"  {size(use.num_bytes)} / {size(use.budget_bytes)}"
    fraction = use.num_bytes / use.budget_bytes if use.budget_bytes else 0.0
    filled, rest = bar(fraction, max(4, width - 5 - cell_len(figures)))
    return (Piece(f"{name:<5}"), Piece(filled, "bar"), Piece(rest, "rest"), Piece(figures))


def _segment_text(row: SegmentRow, width: int, now: float) -> str:
    return _segment_columns(
        span(row.start, row.stop),
        where_words(row) + ("*" if row.is_pinned else ""),
        size(row.num_bytes),
        age(now - row.last_used),
        f"{row.hits:,}",
        width,
    )


def where_words(row: SegmentRow) -> str:
    """Which tier a segment is in."""
    if row.in_vram:
        return "all" if row.in_ram and row.on_disk else "VRAM"
    if row.in_ram:
        return "both" if row.on_disk else "RAM"
    return "disk" if row.on_disk else "live" if row.is_live else "–"


def _segment_columns(tokens: str, where: str, num: str, used: str, hits: str, width: int) -> str:
    first = max(9, width - 23)
    return f"{shorten(tokens, first):<{first}}{where:>5}{num:>8}{used:>5}{hits:>5}"


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
        stamp = clock_time(event.at, seconds=True)
        style = "bad" if event.kind in ("quarantined", "warning") else ""
        words = one_line(f"! {event.text}" if style else event.text)
        text = flow(words, max(10, width - 9))
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
    from chatcache.cache.book.namespace import PRECISION, is_approximate

    yield _heading("MODEL", "", width)
    if info.backend == "remote":
        for line in servers.model_lines(info):
            yield from _wrapped(line, width)
        return
    yield from _wrapped(one_line(info.model), width, style="")
    facts = [
        f"{parameters(info.num_parameters)} parameters",
        reports.dtype_words(info),
        info.device,
        f"{size(info.kv_bytes_per_token)} per token",
        f"context {info.max_context_tokens:,}",
    ]
    if is_approximate(info.namespace_fields):
        facts.append(f"kept as {info.namespace_fields[PRECISION]}, approximate")
    yield from _wrapped(" · ".join(facts), width)
    if info.cut != "any_token":
        yield from _wrapped(f"reuse: {one_line(info.cut_detail)}", width, style="strong")


def _engine_lines(engine: EngineStatus | None, width: int) -> Iterator[Line]:
    """Of an engine that several chats can use."""
    if engine is None:
        return
    yield _heading("ENGINE", f"pid {engine.pid}", width)
    yield from _wrapped(panel_words(engine), width)


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
    for line in flow(text, width) if text else ():
        yield (Piece(line, style),)
