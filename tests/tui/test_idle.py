"""When the engine is asked to get ready, and when it is not."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from chatcache.backends.base import Prepare, Prepared
from chatcache.chat.idle import IdleOptions, TurnPreparer
from chatcache.tui.panel.drawing import lines
from chatcache.tui.panel.state import IdleTotals, PanelState
from chatcache.tui.parts import idle
from tests.fakes import FakeBackend
from tests.tui.conftest import Bench, Chat
from tests.tui.test_figures import HIT


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(idle, "TYPING_PAUSE_SECONDS", 0.001)
    monkeypatch.setattr(idle, "HIGHLIGHT_PAUSE_SECONDS", 0.001)


def asked(bench: Bench, kind: str) -> list[Prepare]:
    return [one for one in bench.backend.prepares if one.kind == kind]


def drafts(bench: Bench) -> list[str]:
    return [one.turn.messages[-1].text for one in asked(bench, "draft")]


async def names(chat: Chat, *texts: str) -> None:
    for text in texts:
        await chat.say(text)
        await chat.press("ctrl+n")


async def test_after_an_answer_the_next_turn_is_prepared(bench: Bench) -> None:
    async with bench.run() as chat:
        await chat.say("Hello")
        await chat.until(lambda: asked(bench, "next_turn"))
        request = asked(bench, "next_turn")[0].turn
        assert [message.text for message in request.messages] == ["Hello", "You said: Hello", ""]
        assert request.journal
        await chat.say("Again")
        await chat.until(lambda: len(asked(bench, "next_turn")) == 2)


async def test_between_queued_messages_nothing_is_prepared(bench: Bench) -> None:
    gate = bench.backend.gate("answer")
    async with bench.run() as chat:
        await chat.type("One")
        await chat.press("enter")
        await chat.until(gate.arrived.is_set)
        await chat.type("Two")
        await chat.press("enter")
        gate.open()
        await chat.idle()
        assert len(chat.answers) == 2
        await chat.until(lambda: asked(bench, "next_turn"))
        assert len(asked(bench, "next_turn")) == 1


async def test_finished_words_are_prepared_while_the_user_types(bench: Bench) -> None:
    async with bench.run() as chat:
        await chat.say("Hello")
        await chat.press(*"What is ")
        await chat.until(lambda: "What is" in drafts(bench))
        await chat.press(*"kept")
        await chat.until(lambda: chat.screen.composer.text == "What is kept")
        await chat.press(*", and")
        await chat.until(lambda: "What is kept," in drafts(bench))
        assert set(drafts(bench)) <= {"What", "What is", "What is kept,"}
        assert drafts(bench) == sorted(set(drafts(bench)), key=len)


async def test_a_long_paste_is_prepared_without_a_pause(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(idle, "TYPING_PAUSE_SECONDS", 60.0)
    async with bench.run() as chat:
        await chat.say("Hello")
        await chat.type("word " * 40)
        await chat.until(lambda: drafts(bench))
        assert drafts(bench) == [("word " * 40).rstrip()]


async def test_the_first_message_of_a_new_chat_is_prepared_too(bench: Bench) -> None:
    async with bench.run() as chat:
        await chat.type("What is kept?\n")
        await chat.until(lambda: drafts(bench))
        assert not asked(bench, "draft")[0].turn.journal


async def test_commands_and_edited_turns_are_no_drafts(bench: Bench) -> None:
    async with bench.run() as chat:
        await chat.say("Hello")
        await chat.type("/rename something else ")
        await chat.type("//slash this is text ")
        await chat.until(lambda: drafts(bench))
        assert drafts(bench) == ["/slash this is text"]
        chat.screen.parts.view.begin_editing(1, "Hello my dear ")
        await chat.type("Hello my dear friend ")
        await chat.type("Hello my dear friends of old ")
        chat.screen.composer.end_editing()
        await chat.type("and so on ")
        await chat.until(lambda: len(drafts(bench)) > 1)
        assert drafts(bench) == ["/slash this is text", "and so on"]


async def test_nothing_is_prepared_while_a_turn_runs(bench: Bench) -> None:
    gate = bench.backend.gate("answer")
    async with bench.run() as chat:
        await chat.type("One")
        await chat.press("enter")
        await chat.until(gate.arrived.is_set)
        await chat.type("What is kept? ")
        await chat.pilot.pause()
        assert bench.backend.prepares == []
        gate.open()
        await chat.until(lambda: drafts(bench))
        assert drafts(bench) == ["What is kept?"]
        assert len(asked(bench, "draft")[0].turn.messages) == 3


async def test_an_opened_chat_is_brought_back_when_the_model_is_ready(bench: Bench) -> None:
    async with bench.run() as chat:
        await chat.say("Hello")
    bench.backend = FakeBackend()
    gate = bench.backend.gate("load")
    async with bench.run(waits=False) as chat:
        await chat.until(lambda: chat.screen.is_open and chat.screen.parts.chat.session)
        assert bench.backend.prepares == []
        gate.open()
        await chat.until(lambda: asked(bench, "restore"))


async def test_a_highlighted_chat_is_brought_back_and_given_up(bench: Bench) -> None:
    async with bench.run() as chat:
        await names(chat, "One", "Two", "Three")
        bench.backend.prepares.clear()
        await chat.press("ctrl+s")
        await chat.until(lambda: asked(bench, "restore"))
        await chat.press("down")
        await chat.until(lambda: len(asked(bench, "restore")) == 2)
        texts = {one.turn.messages[0].text for one in asked(bench, "restore")}
        assert len(texts) == 2
        await chat.until(lambda: bench.backend.num_cancels == 1)
        await chat.press("escape")
        await chat.until(lambda: bench.backend.num_cancels == 2)


async def test_passing_over_chats_brings_nothing_back(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with bench.run() as chat:
        await names(chat, "One", "Two", "Three")
        bench.backend.prepares.clear()
        monkeypatch.setattr(idle, "HIGHLIGHT_PAUSE_SECONDS", 60.0)
        await chat.press("ctrl+s", "down", "down", "up", "escape")
        await chat.idle()
        assert bench.backend.prepares == []
        assert bench.backend.num_cancels == 0


async def test_switched_off_means_that_nothing_is_asked(bench: Bench) -> None:
    service = bench.service

    def without() -> Any:
        made = service()
        off = IdleOptions(next_turn=False, draft=False, restore=False)
        made.idle = TurnPreparer(made.store, made.backend, lambda session_id: None, off)
        return made

    bench.service = without  # type: ignore[method-assign]
    async with bench.run() as chat:
        await chat.say("Hello")
        await chat.type("What is kept? " * 20)
        await chat.press("ctrl+s", "escape")
        await chat.idle()
        assert bench.backend.prepares == []


async def test_quitting_leaves_no_work_behind(bench: Bench) -> None:
    async with bench.run() as chat:
        await chat.say("Hello")
        await chat.type("What is kept? ")
        await chat.press("ctrl+q")
    assert not chat.app.is_running


async def test_the_panel_counts_idle_work_and_what_was_used_of_it(bench: Bench) -> None:
    async with bench.run() as chat:
        bench.backend.emit(Prepared("a", "next_turn", 412, 0, 1.2))
        bench.backend.emit(Prepared("b", "draft", 198, 0, 0.6))
        bench.backend.emit(Prepared("c", "draft", 0, 0, 0.1, was_cancelled=True))
        bench.backend.emit(Prepared("d", "restore", 0, 4688, 0.2))
        await chat.until(lambda: "restored" in chat.text)
        assert "used 0 of 610" in chat.text
        assert "next turn 412 tok 1.20 s" in " ".join(chat.text.split())


def test_used_tokens_are_told_beside_the_turn() -> None:
    totals = IdleTotals()
    totals.note(Prepared("a", "draft", 30, 0, 0.6))
    state = PanelState(figures=None, idle=totals)
    state.finish(replace(HIT, cache=replace(HIT.cache, ahead_tokens=20)))
    text = "\n".join("".join(piece.text for piece in line) for line in lines(state, 40, 0.0))
    assert "20 of them computed ahead" in text
    assert "used 20 of 30" in text


def test_sums_are_kept_by_kind() -> None:
    totals = IdleTotals()
    assert not totals
    totals.note(Prepared("a", "draft", 30, 100, 0.6))
    assert [row.split() for row in totals.rows()] == [
        ["draft", "30", "tok", "0.60", "s"],
        ["restored", "100", "tok"],
    ]
