"""The lens on the screen: its views, its keys, and what it says without a model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from textual.color import Color
from textual.theme import BUILTIN_THEMES

from chatcache.backends.base import CostEstimate
from chatcache.backends.questions import DescribeTokens, TokenPiece, TokenPieces
from chatcache.chat.views import ForkPoint
from chatcache.frontend.lens.page import LETTERS, Mark
from chatcache.frontend.lens.turns import heading, lens
from chatcache.frontend.lens.views import VIEWS
from chatcache.tui.look.contrast import quiet, ratio
from chatcache.tui.look.marks import MarkStyles
from chatcache.tui.screens.chat import ChatScreen
from chatcache.tui.screens.lens import LensScreen
from tests.fakes import FakeBackend
from tests.tui.conftest import NARROW, WIDE, Bench, Chat

HOSTILE = "[bold]x[/] \x1b[31mred <b>&amp; 日本語 e\u0301 \u202e"


def point(turn: int, tokens: int, cost: CostEstimate | None) -> ForkPoint:
    return ForkPoint(turn, f"question {turn}", "answer", tokens, cost)


def tell_tokens(question: DescribeTokens) -> TokenPieces:
    """What a model would say of its tokens."""
    distinct = dict.fromkeys(question.ids)
    return TokenPieces(
        tuple(TokenPiece(number, f"t{number}", is_control=number < 3) for number in distinct),
        question.ids,
    )


async def opened(chat: Chat, view: str = "turns") -> LensScreen:
    await chat.type(f"/lens {view}")
    await chat.press("enter")
    await chat.until(lambda: isinstance(chat.app.screen, LensScreen) and is_shown(chat))
    screen = chat.app.screen
    assert isinstance(screen, LensScreen)
    return screen


def is_shown(chat: Chat) -> bool:
    screen = chat.app.screen
    assert isinstance(screen, LensScreen)
    return screen.lens.page(80) is not None and screen._num_turns > 0


def test_each_turn_has_its_own_tokens() -> None:
    points = [
        point(3, 120, CostEstimate(60, 20, 40, None)),
        point(2, 80, CostEstimate(60, 20, 0, None)),
        point(1, 50, CostEstimate(50, 0, 0, None)),
        point(0, 0, CostEstimate(0, 0, 0, None)),
    ]
    rows = lens(points)
    assert [(row.turn, row.start, row.stop) for row in rows] == [
        (1, 0, 50),
        (2, 50, 80),
        (3, 80, 120),
    ]
    assert [row.where for row in rows] == ["RAM", "RAM+disk", "none"]
    assert rows[1].detail == "30 tokens: 10 in RAM, 20 on disk"
    assert rows[2].detail == "40 tokens: 40 to compute"
    assert heading(rows, 1000) == "120 of 1,000 tokens of context, 12.0 %"
    assert heading([], None) == "0 tokens read"


def test_what_no_model_was_asked_about_is_unknown() -> None:
    rows = lens([point(2, 80, None), point(1, 50, CostEstimate(40, 0, 10, None))])
    assert [row.where for row in rows] == ["RAM part", "unknown"]
    assert rows[1].detail == "30 tokens"


async def test_a_newcomer_reads_the_three_answers(bench: Bench) -> None:
    async with bench.run(NARROW) as chat:
        await chat.say("one", "two")
        await chat.press("f6")
        await chat.until(lambda: "of context" in chat.text)
        assert "Why was turn 2 quick?  20 of its 26 prompt tokens" in chat.text
        assert "What was computed?     6 prompt tokens from position 20 on" in chat.text
        assert "What would be slow?    Another system prompt or another model" in chat.text
        assert "[Turns]" in chat.text


async def test_a_turn_is_chosen_and_its_figures_are_shown(bench: Bench) -> None:
    async with bench.run() as chat:
        await chat.say("one", "two")
        await opened(chat)
        assert "of context" in chat.text
        await chat.press("up")
        await chat.until(lambda: "Why was turn 1 not quicker?" in chat.text)
        await chat.press("enter")
        await chat.until(lambda: isinstance(chat.app.screen, ChatScreen))
        await chat.until(lambda: chat.screen.panel_state.figures_turn == 1)
        assert "○ cold start" in chat.text


@pytest.mark.parametrize("size", [WIDE, NARROW, (60, 20)], ids=["wide", "narrow", "tiny"])
async def test_tab_goes_through_all_views_at_any_size(bench: Bench, size: tuple[int, int]) -> None:
    bench.backend.study_answers[DescribeTokens] = tell_tokens
    async with bench.run(size) as chat:
        await chat.say(f"one {HOSTILE}", HOSTILE)
        screen = await opened(chat)
        for number, view in enumerate([*VIEWS, VIEWS[0]]):
            if number:
                await chat.press("tab")
            await chat.until(lambda view=view: screen.lens.view is view and is_shown(chat))
            lines = chat.text.splitlines()
            assert f"[{view.title}]" in lines[0]
            assert len(lines[0]) <= size[0]
            assert "Tab view" in chat.text
            assert "\x1b" not in chat.text
        await chat.press("shift+tab")
        await chat.until(lambda: screen.lens.view is VIEWS[-1])
        await chat.press("escape")
        await chat.until(lambda: isinstance(chat.app.screen, ChatScreen))


async def test_a_token_that_is_chosen_stays_chosen(bench: Bench) -> None:
    bench.backend.study_answers[DescribeTokens] = tell_tokens
    async with bench.run() as chat:
        await chat.say("one", "two")
        screen = await opened(chat, "tokens")
        await chat.press("home", "right", "right", "i")
        assert (screen.lens.state.token, screen.lens.state.has_ids) == (2, True)
        await chat.press("tab", "shift+tab")
        assert screen.lens.state.token == 2
        await chat.press("left_square_bracket")
        await chat.until(lambda: "turn 1 of 2" in chat.text)
        assert screen.lens.state.token is None  # the tokens of another turn are others


async def test_without_a_model_the_disk_is_shown_and_enter_loads_it(bench: Bench) -> None:
    bench.backend.study_answers[DescribeTokens] = tell_tokens
    async with bench.run() as chat:
        await chat.say("one")
    bench.backend = FakeBackend()
    bench.backend.study_answers[DescribeTokens] = tell_tokens
    gate = bench.backend.gate("load")
    async with bench.run() as chat:
        await opened(chat, "tokens")
        await chat.until(lambda: "Enter loads the model" in chat.text)
        await chat.press("enter")
        await chat.until(lambda: "loading the model" in chat.text)
        gate.open()
        await chat.until(lambda: "t1" in chat.text and "loading the model" not in chat.text)
        assert "Enter loads" not in chat.text


async def test_enter_names_the_model_that_read_a_turn_when_another_is_loaded(bench: Bench) -> None:
    async with bench.run() as chat:
        await chat.say("one")
    bench.backend = FakeBackend(
        info=replace(bench.backend.info, model="other", tokenizer_id="of-another"),
        starts_ready=True,
    )
    async with bench.run() as chat:
        await opened(chat, "tokens")
        assert "Enter loads" not in chat.text.splitlines()[-1]
        await chat.press("enter")
        await chat.until(lambda: any("/model fake loads it" in toast for toast in chat.toasts))


async def test_the_lens_may_be_opened_while_an_answer_is_written(bench: Bench) -> None:
    async with bench.run() as chat:
        await chat.say("one")
        gate = bench.backend.gate("delta:1")
        await chat.type("two")
        await chat.press("enter")
        await chat.until(gate.arrived.is_set)
        await chat.press("f6")
        await chat.until(lambda: "Why was turn 1 not quicker?" in chat.text)
        gate.open()
        await chat.until(lambda: "Why was turn 2 quick?" in chat.text)


async def test_a_page_is_exported(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "one-turns.svg"
    async with bench.run() as chat:
        await chat.say("one")
        await opened(chat)
        await chat.press("e")
        await chat.until(lambda: "one-turns.svg" in chat.text)
        await chat.press("enter")
        await chat.until(path.exists)
        await chat.until(lambda: any("Written to" in toast for toast in chat.toasts))
        assert isinstance(chat.app.screen, LensScreen)


async def test_a_view_that_there_is_none_of_is_named(bench: Bench) -> None:
    async with bench.run() as chat:
        await chat.say("one", "/lens tokns")
        assert "no view 'tokns'" in chat.notices[0]
        assert "'tokens'" in chat.notices[0]


async def test_an_empty_chat_has_nothing_to_look_at(bench: Bench) -> None:
    async with bench.run() as chat:
        await chat.say("/lens")
        assert "This chat is empty." in chat.notices[0]


@pytest.mark.parametrize("name", [name for name, theme in BUILTIN_THEMES.items() if not theme.ansi])
def test_marks_can_be_read_in_every_theme(name: str) -> None:
    variables = dict(BUILTIN_THEMES[name].to_color_system().generate())
    variables["quiet"] = quiet(variables)
    styles = MarkStyles(variables)
    behind = Color.parse(variables["background"])
    wanted = min(4.4, 0.7 * ratio(Color.parse(variables["foreground"]), behind))
    marks: tuple[Mark, ...] = ("", "muted", "strong", "title", "cut", "warning", *LETTERS)
    for mark in marks:
        color = styles.style(mark).color
        assert color is not None
        assert ratio(Color.from_rich_color(color), behind) >= wanted, mark
    for heat in (0.0, 0.3, 1.0, 7.0):
        style = styles.style("ram", heat)
        assert style.color is not None
        assert style.bgcolor is not None
        text, shade = Color.from_rich_color(style.color), Color.from_rich_color(style.bgcolor)
        assert ratio(text, shade) >= wanted, heat


def test_with_the_colours_of_the_terminal_nothing_is_computed() -> None:
    variables = BUILTIN_THEMES["ansi-dark"].to_color_system().generate()
    styles = MarkStyles(variables)
    assert styles.style("ram", 1.0) == styles.style("ram")
    assert styles.style("chosen").reverse
