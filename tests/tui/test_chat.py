"""Saying something and reading the answer, under all circumstances."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace

import pytest

from chatcache.backends.base import EngineStatus, TextDelta, TurnRequest
from chatcache.chat.views import AnswerSaved
from chatcache.errors import ModelLoadError
from chatcache.tui.widgets.answer import AnswerMessage
from chatcache.tui.widgets.composer import Composer
from chatcache.tui.widgets.notices import Welcome
from chatcache.tui.widgets.transcript import EarlierTurns
from tests.fakes import FakeBackend
from tests.tui.conftest import Bench


async def test_an_empty_chat_welcomes_and_has_the_cursor_in_the_composer(bench: Bench) -> None:
    async with bench.run() as chat:
        assert chat.screen.query(Welcome)
        assert isinstance(chat.app.focused, Composer)
        assert "fake" in chat.text
        assert "ready" in chat.status


async def test_a_message_is_answered_and_the_figures_are_below(bench: Bench) -> None:
    async with bench.run() as chat:
        await chat.say("Hello")
        assert chat.users == ["Hello"]
        assert chat.answers == ["You said: Hello"]
        assert chat.footers == ["○ cold start · 8 computed · TTFT 8 ms · 16 tok @ 1,000/s"]
        assert chat.title == "chatcache › Hello"
        assert not chat.screen.query(Welcome)
        assert chat.screen.composer.text == ""


async def test_the_second_turn_says_what_was_reused(bench: Bench) -> None:
    async with bench.run() as chat:
        await chat.say("Hello", "Again")
        assert chat.footers[1].startswith("⟲ 24 reused · +8 · TTFT 8 ms")
        assert "⟲ new user turn" in chat.text
        assert "24 of 32 tokens reused" in chat.text


async def test_one_can_write_and_send_while_the_model_loads(bench: Bench) -> None:
    bench.backend = FakeBackend()
    gate = bench.backend.gate("load")
    async with bench.run(waits=False) as chat:
        await chat.until(lambda: "reading the weights" in chat.status)
        await chat.type("Are you there?")
        await chat.press("enter")
        await chat.until(lambda: "waiting for the model" in chat.text)
        assert chat.users == ["Are you there?"]
        assert "0 / 2" in chat.status
        assert chat.service.list_sessions()[0].num_turns == 1
        gate.open()
        await chat.idle()
        assert chat.answers == ["You said: Are you there?"]
        assert "assistant" not in chat.text


async def test_escape_gives_up_waiting_for_the_model_and_keeps_the_words(bench: Bench) -> None:
    bench.backend = FakeBackend()
    bench.backend.gate("load")
    async with bench.run(waits=False) as chat:
        await chat.type("Are you there?")
        await chat.press("enter")
        await chat.until(lambda: "waiting for the model" in chat.text)
        await chat.press("escape")
        await chat.until(lambda: not chat.screen.is_answering)
        assert chat.users == ["Are you there?"]


async def test_who_waits_for_another_chat_is_told_and_can_stop_waiting(bench: Bench) -> None:
    gate = bench.backend.gate("plan")
    bench.backend.others_ahead = 1
    async with bench.run() as chat:
        await chat.type("Are you there?")
        await chat.press("enter")
        await chat.until(lambda: "another chat is being answered (ask)" in chat.text)
        assert "Esc stops" in chat.status
        await chat.press("escape")
        await chat.until(lambda: not chat.screen.is_answering)
        assert chat.users == ["Are you there?"]
        gate.open()
        bench.backend.others_ahead = 2
        await chat.say("And now?")
        assert chat.answers[-1].endswith("And now?")


async def test_the_panel_tells_of_the_engine_and_who_shares_it(bench: Bench) -> None:
    async with bench.run() as chat:
        status = EngineStatus(
            **{"pid": 4711, "version": "1", "model": "fake", "adapter": None, "device": "cpu"},
            **{"dtype": "float32", "cache_dir": "/c", "state": "ready", "started_at": 0.0},
            **{"memory_bytes": 212_000_000, "front_ends": ("ask", "terminal")},
            **{"is_answering": False, "keep_alive_seconds": 300.0, "seconds_left": None},
        )
        bench.backend.emit(status)
        await chat.until(lambda: "ENGINE" in chat.text)
        assert "pid 4711" in chat.text
        assert "212 MB · shared with 1 other" in chat.text


async def test_quitting_does_not_wait_for_the_model(bench: Bench) -> None:
    bench.backend = FakeBackend()
    bench.backend.gate("load")
    async with bench.run(waits=False) as chat:
        await chat.type("Are you there?")
        await chat.press("enter")
        await chat.until(lambda: "waiting for the model" in chat.text)
        await chat.press("ctrl+q")
    assert bench.service().last_session() is not None


async def test_prefill_shows_exactly_how_far_it_is(bench: Bench) -> None:
    bench.backend = FakeBackend(prefill_chunk=10, starts_ready=True)
    gate = bench.backend.gate("prefill")
    async with bench.run() as chat:
        await chat.type("x" * 37)
        await chat.press("enter")
        await chat.until(lambda: "0 / 40" in chat.footers[-1])
        assert "reading the prompt" in chat.status
        gate.open()
        await chat.idle()
        assert len(chat.answers) == 1


async def test_what_comes_while_text_is_drawn_is_shown_though_the_turn_has_ended(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first piece takes so long to draw that the rest of the turn is read meanwhile."""
    bench.backend = FakeBackend(["one two three four"], starts_ready=True)
    gate = bench.backend.gate("delta:2")
    draw = AnswerMessage.write

    async with bench.run() as chat:

        async def draw_slowly(answer: AnswerMessage, deltas: list[TextDelta]) -> None:
            gate.open()
            running = chat.screen.parts.turns.running
            while running and not any(isinstance(event, AnswerSaved) for event in running.events):
                await asyncio.sleep(0.01)
            await asyncio.sleep(0.05)
            monkeypatch.setattr(AnswerMessage, "write", draw)
            await draw(answer, deltas)

        monkeypatch.setattr(AnswerMessage, "write", draw_slowly)
        await chat.say("Count")
        assert chat.answers == ["one two three four"]
        assert "tok @" in chat.footers[-1]


async def test_escape_stops_and_continue_goes_on(bench: Bench) -> None:
    bench.backend = FakeBackend(["one two three four"], starts_ready=True)
    gate = bench.backend.gate("delta:2")
    async with bench.run() as chat:
        await chat.type("Count")
        await chat.press("enter")
        await chat.until(lambda: chat.answers == ["one two "])
        assert "Esc stops" in chat.status
        await chat.press("escape")
        await chat.idle()
        assert chat.answers == ["one two "]
        assert "stopped, /continue goes on" in chat.footers[0]
        gate.open()
        bench.backend._answers = ["three four"]
        await chat.say("/continue")
        assert len(chat.answers) == 1
        assert chat.answers[0].startswith("one two ")
        assert chat.answers[0].endswith("three four")
        assert "stopped" not in chat.footers[0]


async def test_messages_sent_meanwhile_wait_their_turn(bench: Bench) -> None:
    gate = bench.backend.gate("delta:0")
    async with bench.run() as chat:
        for text in ("First", "Second", "Third"):
            await chat.type(text)
            await chat.press("enter")
        await chat.until(lambda: "2 queued" in chat.status)
        gate.open()
        await chat.idle()
        assert chat.users == ["First", "Second", "Third"]
        assert chat.answers == [f"You said: {text}" for text in chat.users]
        order = [type(block).__name__ for block in chat.screen.transcript.blocks]
        assert order == ["UserMessage", "AnswerMessage"] * 3


async def test_stopping_gives_the_waiting_messages_back(bench: Bench) -> None:
    bench.backend.gate("delta:1")
    async with bench.run() as chat:
        for text in ("First", "Second"):
            await chat.type(text)
            await chat.press("enter")
        await chat.until(lambda: "1 queued" in chat.status)
        await chat.press("escape")
        await chat.idle()
        assert chat.users == ["First"]
        assert chat.screen.composer.text == "Second"


async def test_the_death_of_the_engine_loses_nothing(bench: Bench) -> None:
    bench.backend = FakeBackend(starts_ready=True, die_at="delta:1")
    async with bench.run() as chat:
        await chat.say("Hello")
        assert chat.users == ["Hello"]
        assert any("ended unexpectedly" in notice for notice in chat.notices)
        assert "Traceback" not in chat.text
        await chat.idle()
        assert "ready" in chat.status
        await chat.say("/regen")
        assert chat.answers == ["You said: Hello"]


async def test_a_model_that_cannot_be_loaded_is_said_in_one_line(bench: Bench) -> None:
    error = ModelLoadError("model.safetensors is missing.", "Download it again.")
    bench.backend = FakeBackend(load_error=error, starts_ready=True)
    async with bench.run() as chat:
        assert chat.notices == ["✗ model.safetensors is missing.\n  Download it again."]
        assert "model.safetensors is missing" in chat.status
        await chat.say("Hello")
        assert chat.users == ["Hello"]
        assert chat.service.list_sessions()[0].num_turns == 1


async def test_a_bug_is_one_line_and_never_a_traceback(bench: Bench) -> None:
    def broken(request: TurnRequest) -> str:
        raise ZeroDivisionError("secret detail")

    bench.backend = FakeBackend(broken, starts_ready=True)
    async with bench.run() as chat:
        await chat.say("Hello")
        assert len(chat.notices) == 1
        assert "Traceback" not in chat.text
        await chat.say("/stats")
        assert len(chat.notices) == 2


HOSTILE = "[bold red]x[/] \x1b[31mred\x1b[0m \x9b2J [/nonsense] \u202egnp.exe"


async def test_text_is_data_for_the_terminal(bench: Bench) -> None:
    bench.backend = FakeBackend([HOSTILE], starts_ready=True)
    async with bench.run() as chat:
        await chat.say(HOSTILE)
        for text in (chat.users[0], chat.answers[0]):
            assert "[bold red]x[/]" in text
            assert "[/nonsense]" in text
            assert not set("\x1b\x9b\u202e") & set(text)
        assert "[bold red]x[/] [31mred" in chat.text
        assert "\x1b" not in chat.text
        await chat.press("ctrl+s")
        await chat.until(lambda: "Chats" in chat.text)


async def test_single_newlines_and_html_survive(bench: Bench) -> None:
    bench.backend = FakeBackend(["one\ntwo <b>three</b>"], starts_ready=True)
    async with bench.run() as chat:
        await chat.say("a\nb")
        lines = [line[:70].strip() for line in chat.text.splitlines()]
        assert lines.index("two <b>three</b>") == lines.index("one") + 1


async def test_reasoning_is_folded_and_opens(bench: Bench) -> None:
    bench.backend = FakeBackend(["Yes."], reasoning="Let me see.", starts_ready=True)
    async with bench.run() as chat:
        await chat.say("Is it?")
        assert "▸ thought, 12 tokens" in chat.text
        assert "Let me see." not in chat.text
        await chat.press("alt+up", "space")
        assert "▾ thought" in chat.text
        assert "Let me see." in chat.text


@pytest.fixture
def long_chat(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> str:
    """A chat of 12 turns, of which 5 are shown at a time."""
    for module in ("chatcache.tui.parts.chat_view", "chatcache.tui.widgets.transcript"):
        monkeypatch.setattr(f"{module}.WINDOW_TURNS", 5)
    service = bench.service()
    bench.backend.start()
    session = service.create_session("long")
    for turn in range(1, 13):
        for _ in service.send(session.session_id, f"Question {turn}\n\nwith a second line"):
            pass
    return session.session_id


async def test_a_long_chat_opens_at_its_end_and_loads_more(bench: Bench, long_chat: str) -> None:
    async with bench.run() as chat:
        transcript = chat.screen.transcript
        assert len(chat.users) == 5
        assert chat.users[-1].startswith("Question 12")
        assert "Question 12" in chat.text
        assert transcript.is_following
        await chat.press("ctrl+home")
        await chat.until(lambda: transcript.scroll_y <= 0)
        await chat.press("ctrl+home")
        await chat.until(lambda: len(chat.users) == 10 and transcript.scroll_y > 0)
        assert chat.users[0].startswith("Question 3")
        transcript.scroll_home(animate=False)
        await chat.until(lambda: transcript.scroll_y <= 0)
        await chat.press("ctrl+home")
        await chat.until(lambda: len(chat.users) == 12)
        assert not chat.screen.query(EarlierTurns)


async def test_what_streams_is_held_while_one_reads_above(bench: Bench, long_chat: str) -> None:
    bench.backend._answers = ["alpha beta gamma"]
    first, second = bench.backend.gate("delta:1"), bench.backend.gate("delta:2")
    async with bench.run() as chat:
        await chat.type("Go")
        await chat.press("enter")
        await chat.until(lambda: chat.answers[-1] == "alpha ")
        await chat.press("pageup")
        first.open()
        await chat.until(lambda: second.arrived.is_set() and "Ctrl+End follows" in chat.status)
        assert chat.answers[-1] == "alpha "
        place = chat.screen.transcript.scroll_y
        await chat.press("ctrl+end")
        await chat.until(lambda: chat.answers[-1] == "alpha beta ")
        assert chat.screen.transcript.scroll_y > place
        second.open()
        await chat.idle()
        assert chat.answers[-1] == "alpha beta gamma"


async def test_a_turn_goes_on_when_a_piece_of_it_cannot_be_shown(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = bench.backend.gate("delta:1")
    failures: list[RuntimeError] = []
    write = AnswerMessage.write

    async def fail_once(answer: AnswerMessage, deltas: Sequence[TextDelta]) -> None:
        if not failures:
            failures.append(RuntimeError("it cannot be drawn"))
            raise failures[0]
        await write(answer, deltas)

    monkeypatch.setattr(AnswerMessage, "write", fail_once)
    async with bench.run() as chat:
        await chat.type("Go")
        await chat.press("enter")
        await chat.until(lambda: failures and gate.arrived.is_set())
        assert chat.screen.is_answering
        gate.open()
        await chat.idle()
        assert "should not have" in chat.notices[-1]
        assert chat.answers == ["You said: Go"]


async def test_coming_back_shows_the_last_chat_with_its_figures(bench: Bench) -> None:
    async with bench.run() as chat:
        await chat.say("Hello", "Again")
        footers = chat.footers
    async with bench.run() as chat:
        assert chat.users == ["Hello", "Again"]
        assert chat.footers == footers
        assert "⟲ new user turn" in chat.text


async def test_a_chat_can_be_named_at_the_start(bench: Bench) -> None:
    async with bench.run() as chat:
        await chat.say("First chat")
        await chat.press("ctrl+n")
        await chat.idle()
        await chat.say("Second chat")
    async with bench.run(session_ref="First chat") as chat:
        assert chat.users == ["First chat"]
    async with bench.run(session_ref="Frist chat") as chat:
        assert "First chat" in chat.notices[0]
        assert chat.screen.parts.chat.session is None


async def test_a_message_without_an_answer_is_pointed_out(bench: Bench) -> None:
    service = bench.service()
    bench.backend.start()
    session = service.create_session("half")
    bench.backend.fail_at = "plan"
    with pytest.raises(ModelLoadError):
        list(service.send(session.session_id, "Hello"))
    bench.backend.fail_at = None
    async with bench.run() as chat:
        assert chat.notices == ["· This message has no answer yet.\n  /regen answers it."]
        await chat.say("/regen")
        assert chat.answers == ["You said: Hello"]


async def test_a_long_sitting_is_pruned_and_can_be_read_again(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("chatcache.tui.widgets.transcript.PRUNE_ABOVE_BLOCKS", 6)
    monkeypatch.setattr("chatcache.tui.widgets.transcript.KEEP_BLOCKS", 4)
    async with bench.run() as chat:
        await chat.say("/system Be brief.", *(f"Question {number}" for number in range(1, 5)))
        assert chat.users == ["Question 3", "Question 4"]
        assert "2 earlier turns" in str(chat.screen.query_one(EarlierTurns).visual)
        await chat.press("ctrl+home")
        chat.screen.transcript.scroll_home(animate=False)
        await chat.press("ctrl+home")
        await chat.idle()
        assert chat.users == [f"Question {number}" for number in range(1, 5)]
        assert [block.turn for block in chat.screen.transcript.blocks][:2] == [0, 1]


async def test_stopping_before_anything_has_begun_still_stops(bench: Bench) -> None:
    bench.backend.gate("plan")
    async with bench.run() as chat:
        await chat.type("Hello")
        await chat.press("enter", "escape")
        await chat.idle()
        assert chat.users == ["Hello"]
        assert not chat.answers or "stopped" in chat.footers[0]


async def test_a_conversation_that_is_too_long_says_the_way_back(bench: Bench) -> None:
    bench.backend.info = replace(bench.backend.info, max_context_tokens=20)
    async with bench.run() as chat:
        await chat.say("x" * 40)
        assert "the model takes 20" in chat.notices[0]
        assert "/undo takes it back" in chat.notices[0]
