"""The words and lines made of figures. No terminal needed."""

from __future__ import annotations

import json
from collections import deque
from dataclasses import replace
from datetime import UTC, datetime

import pytest
from rich.cells import cell_len

from chatcache.backends.base import (
    CacheEvent,
    CacheSnapshot,
    CostEstimate,
    PrefillProgress,
    SegmentRow,
    TierUse,
    TurnPlanned,
)
from chatcache.backends.usage import CacheReport, Figures, Timings, Usage
from chatcache.chat.bill import PriceList
from chatcache.chat.figures import decode, encode, figures_of
from chatcache.chat.totals import GivenAnswer
from chatcache.frontend.accounts import LedgerFacts, account, stats
from chatcache.frontend.figures import cost, footer
from chatcache.frontend.reports import last_code_block, system_change_cost
from chatcache.token_ids import NO_IDS
from chatcache.tui.look import formatting as fmt
from chatcache.tui.panel import drawing
from chatcache.tui.panel.state import IdleTotals, PanelState
from tests.fakes import FakeBackend, TurnRequest
from tests.tui.conftest import Bench, Chat

HIT = Figures(
    Usage(4812, 212, 4688, 0),
    Timings(31.0, 180.0, 211.0, None, 700.0, 18.4),
    CacheReport(
        "hit",
        "new_user_turn",
        4688,
        "Everything up to the new message was in memory.",
        estimated_cold_ttft_ms=6900.0,
        saved_ms=6500.0,
        system_tokens=612,
    ),
)
MISS = Figures(
    Usage(4812, 20, 0, 0),
    Timings(None, None, 6900.0, None, None, None),
    CacheReport("miss", "system_prompt_changed", 17, ""),
)


def test_the_footer_of_a_hit_and_of_a_miss() -> None:
    assert footer(HIT) == "⟲ 4,688 reused · +124 · TTFT 0.21 s · 212 tok @ 18.4/s"
    assert footer(MISS) == (
        "✗ system prompt changed at token 17 · 4,812 computed · TTFT 6.90 s · 20 tok"
    )


@pytest.mark.parametrize(
    ("estimate", "words"),
    [
        (None, "cost unknown"),
        (CostEstimate(812, 0, 0, 0.0), "instant (RAM)"),
        (CostEstimate(0, 0, 0, 0.0), "instant"),
        (CostEstimate(0, 812, 0, 210.0, 264_000_000), "restore 264 MB · ~0.2 s"),
        (CostEstimate(0, 0, 812, 1210.0), "recompute 812 tok · ~1.2 s"),
        (CostEstimate(0, 10, 5, 4.0, 2_000_000), "restore 2.0 MB + recompute 5 tok · ~4 ms"),
        (CostEstimate(0, 0, 812, None), "recompute 812 tok"),
    ],
)
def test_costs_in_words(estimate: CostEstimate | None, words: str) -> None:
    assert cost(estimate) == words


def test_figures_of_a_result_equal_those_of_its_json() -> None:
    backend = FakeBackend(starts_ready=True)
    backend.start()
    from chatcache.backends.base import ChatMessage, TurnFinished

    events = list(backend.ask(TurnRequest("t", (ChatMessage("user", "Hello"),))))
    finished = events[-1]
    assert isinstance(finished, TurnFinished)
    live = figures_of(finished.result)
    stored = decode(encode(figures_of(finished.result)), "stop")
    assert stored is not None
    assert footer(stored) == footer(live)
    assert stored.prompt_tokens == live.prompt_tokens
    assert stored.timings.ttft_ms == live.timings.ttft_ms


@pytest.mark.parametrize("text", [None, "", "nonsense", "[]", '{"usage": 3}', "{}"])
def test_unreadable_figures_do_no_harm(text: str | None) -> None:
    figures = decode(text)
    assert figures is None or footer(figures)


def words(lines: list[drawing.Line]) -> list[str]:
    return ["".join(piece.text for piece in line).rstrip() for line in lines]


def snapshot(num_segments: int = 1) -> CacheSnapshot:
    rows = tuple(
        SegmentRow(f"s{i}", "ns", None, 0, 612, 76_000_000, True, True, False, i == 0, 400.0, 31)
        for i in range(num_segments)
    )
    return CacheSnapshot(
        TierUse(612_000_000, 1_000_000_000, 2),
        TierUse(1_900_000_000, 8_000_000_000, 5),
        4812,
        rows,
    )


def test_the_panel_says_what_was_reused_and_why() -> None:
    state = PanelState(figures=HIT, figures_turn=7, snapshot=snapshot())
    state.events.append(CacheEvent(43_391.0, "spilled", "spilled 264 MB in 0.41 s"))
    lines = words(drawing.lines(state, 36, 4000.0))
    text = "\n".join(lines)
    assert lines[0].startswith("CACHE  hit 97.4 %")
    assert lines[0].endswith("turn 7")
    assert "⟲ new user turn" in lines
    assert "  system 612 · history 4,076" in lines
    assert any(line.startswith("computed        124") for line in lines)
    assert any(line.split() == ["TTFT", "0.21", "s", "6.90", "s", "6.50", "s"] for line in lines)
    assert "cold est." in text
    assert "612 MB / 1.0 GB" in text
    assert any(line.split() == ["0–612", "both*", "76", "MB", "1h", "31"] for line in lines)
    assert "spilled 264 MB" in text


def test_the_panel_shows_the_memory_of_a_gpu_where_there_is_one() -> None:
    state = PanelState(snapshot=snapshot())
    assert not any(line.startswith("VRAM") for line in words(drawing.lines(state, 36, 4000.0)))
    held = snapshot()
    row = replace(held.segments[0], in_vram=True)
    use = TierUse(4_400_000_000, 30_000_000_000, 1)
    state = PanelState(
        snapshot=replace(held, vram=use, segments=(row,), pinned_bytes=1_300_000_000)
    )
    lines = words(drawing.lines(state, 36, 4000.0))
    assert "     1.3 GB locked for copies to the GPU" in lines
    assert any(line.startswith("VRAM") and "4.4 GB / 30.0 GB" in line for line in lines)
    assert any(line.split() == ["0–612", "all*", "76", "MB", "1h", "31"] for line in lines)


@pytest.mark.parametrize("width", [30, 36, 44, 60])
def test_no_line_of_the_panel_is_wider_than_it(width: int) -> None:
    state = PanelState(figures=HIT, snapshot=snapshot(12), info=FakeBackend().info)
    state.ttfts.extend([1.0, 2.0, 3.0])
    state.rates.extend([5.0, 5.0, 5.0])
    state.events.append(CacheEvent(0.0, "warning", "something long that has to be wrapped " * 3))
    for line in drawing.lines(state, width, 0.0):
        assert sum(len(piece.text) for piece in line) <= max(width, 34)


def test_wide_characters_of_a_chat_are_wrapped_by_their_cells() -> None:
    cache = replace(HIT.cache, detail="the prompt says “" + "漢字" * 30 + "” there")
    state = PanelState(figures=replace(HIT, cache=cache))
    state.events.append(CacheEvent(0.0, "warning", "漢字" * 30))
    for line in drawing.lines(state, 36, 0.0):
        assert sum(cell_len(piece.text) for piece in line) <= 36


def test_a_planned_turn_shows_its_reason_before_the_first_token() -> None:
    state = PanelState()
    state.begin(TurnPlanned("t", 0, NO_IDS, 100, 20, 200, "evicted", "why"))
    state.advance(PrefillProgress("t", 150, 200, 120))
    lines = words(drawing.lines(state, 36, 0.0))
    assert lines[0].startswith("CACHE  partial 60.0 %")
    assert "◐ evicted" in lines
    assert any("RAM 100 · disk 20" in line for line in lines)
    assert any("50 to go" in line for line in lines)


def test_the_compact_line_leaves_out_what_has_no_room() -> None:
    state = PanelState(figures=HIT)
    wide = words([drawing.compact_line(state, 120)])[0]
    assert wide == (
        "CACHE  ⟲ hit 97.4 % · new user turn · 4,688 reused (RAM) · +124 computed"
        " · TTFT 0.21 s · saved 6.50 s"
    )
    narrow = words([drawing.compact_line(state, 40)])[0]
    assert narrow == "CACHE  ⟲ hit 97.4 % · new user turn"


def test_ages_sizes_and_sparks() -> None:
    assert [fmt.age(s) for s in (0, 59, 60, 7200, 200_000)] == ["now", "now", "1m", "2h", "2d"]
    assert fmt.sparkline([0, 4, 8], 3) == "▁▄█"
    assert fmt.sparkline([], 3) == ""
    assert fmt.bar(0.5, 4) == ("━━", "──")
    assert fmt.bar(0.0001, 4) == ("╸", "───")
    assert fmt.shorten("日本語テキスト", 7) == "日本語…"


def test_reports() -> None:
    answers = [GivenAnswer("s_1", "builtin", 1, True, HIT)]
    assert "4,688 of them reused (97.4 %)" in stats(LedgerFacts(account(answers, PriceList())))
    assert stats(LedgerFacts(account([], PriceList()))) == "Nothing has been answered yet."
    assert last_code_block("a\n~~~\nx\n~~~\nb\n```py\ny = 1\n```") == "y = 1"
    assert last_code_block("none") == ""
    assert "5,024 tokens to recompute, about 7.18 s" in system_change_cost(HIT)


async def test_the_panel_says_what_makes_the_chat_slow_and_lint_tells_it(bench: Bench) -> None:
    async with bench.run() as chat:
        await chat.say("Hello")
        assert "date in system prompt" not in chat.text
        await chat.say(f"/system Today is {datetime.now(UTC):%Y-%m-%d}. Be brief.")
        await chat.until(lambda: "! date in system prompt" in chat.text)
        await chat.say("/lint")
        assert "the date, “" in chat.notices[-1]
        await chat.say("/system Be brief.")
        await chat.until(lambda: "date in system prompt" not in chat.text)
        await chat.say("/lint")
        assert "Nothing was found" in chat.notices[-1]


async def test_the_panel_shows_the_figures_of_the_json(bench: Bench) -> None:
    async with bench.run() as chat:
        await chat.say("Hello", "Again")
        session = chat.screen.parts.chat.require_session()
        stored = chat.service.transcript(session.session_id)[-1].result_json
        figures = json.loads(stored or "")
        usage = figures["usage"]
        line = next(line for line in chat.text.splitlines() if " prompt  " in line)
        assert f"{usage['prompt_tokens']:,}" in line
        assert f"cut at {figures['cache']['diverged_at']:,}" in line
        assert figures["cache"]["detail"].split(" (")[0] in chat.text


def of_answers(state: PanelState) -> list[str]:
    """The lines of the panel that tell of answers, not of what is in memory."""
    state = replace(state, snapshot=None, restoring=None, events=deque(), idle=IdleTotals())
    return words(drawing.lines(state, 40, 0.0))


async def test_a_reopened_chat_shows_the_panel_that_it_was_left_with(bench: Bench) -> None:
    def panel(chat: Chat) -> PanelState:
        return chat.screen.panel_state

    bench.backend = FakeBackend(starts_ready=True)
    async with bench.run() as chat:
        await chat.say("/system Be kind, and take the time that it takes. " * 3)
        await chat.say("Hello there", "And again", "One more " * 40)
        await chat.idle()
        name = chat.service.list_sessions()[0].name
        left = of_answers(panel(chat))
        assert any("system" in line and "history" in line for line in left)
        assert "cold est." not in "\n".join(left)
    bench.backend = FakeBackend(starts_ready=True)
    async with bench.run(session_ref=name) as chat:
        await chat.until(lambda: panel(chat).figures)
        assert of_answers(panel(chat)) == left


def shown(state: PanelState) -> str:
    return "\n".join(words(drawing.lines(state, 40, 0.0)))


def test_the_panel_tells_the_rate_while_an_answer_is_written() -> None:
    state = PanelState(figures=HIT, is_running=True)
    state.decode(1, 10.0)
    assert "1 tok" in shown(state)
    state.decode(41, 12.0)
    assert "20.0/s" in shown(state)
    assert "41 tok" in shown(state)
    state.finish(HIT)
    assert "writing now" not in shown(state)
