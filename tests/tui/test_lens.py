"""What /lens shows: each turn with its tokens, and where their K and V is."""

from __future__ import annotations

from chatcache.backends.base import CostEstimate
from chatcache.chat.views import ForkPoint
from chatcache.frontend.lens.turns import heading, lens
from chatcache.tui.screens.chat import ChatScreen
from chatcache.tui.screens.lens import LensScreen
from tests.tui.conftest import NARROW, Bench


def point(turn: int, tokens: int, cost: CostEstimate | None) -> ForkPoint:
    return ForkPoint(turn, f"n{turn}", f"question {turn}", "answer", tokens, cost)


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


async def test_a_turn_is_chosen_and_its_figures_are_shown(bench: Bench) -> None:
    async with bench.run() as chat:
        await chat.say("one", "two")
        await chat.type("/lens")
        await chat.press("enter")
        await chat.until(lambda: "the last prompt left what was kept" in chat.text)
        assert "of context" in chat.text
        await chat.press("up", "enter")
        await chat.until(lambda: isinstance(chat.app.screen, ChatScreen))
        await chat.until(lambda: chat.screen.panel_state.figures_turn == 1)
        assert "○ cold start" in chat.text


async def test_on_a_narrow_screen_too(bench: Bench) -> None:
    async with bench.run(NARROW) as chat:
        await chat.say("one")
        await chat.type("/lens")
        await chat.press("enter")
        await chat.until(lambda: isinstance(chat.app.screen, LensScreen) and "RAM" in chat.text)
        await chat.press("escape")
        await chat.until(lambda: isinstance(chat.app.screen, ChatScreen))


async def test_an_empty_chat_has_nothing_to_look_at(bench: Bench) -> None:
    async with bench.run() as chat:
        await chat.say("/lens")
        assert "This chat is empty." in chat.notices[0]
