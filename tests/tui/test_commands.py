"""Every slash command, and the acts on a message."""

from __future__ import annotations

from pathlib import Path

import pytest

from chatcache.backends.base import SamplingParams
from chatcache.frontend.registry import COMMANDS, Call, Prompt, Unknown, matching, parse
from chatcache.personas import Persona
from chatcache.tui.screens.chat import ChatScreen
from chatcache.tui.screens.dialogs import ConfirmScreen, SystemPromptScreen
from chatcache.tui.screens.fork import ForkScreen
from chatcache.tui.screens.help import HelpScreen
from chatcache.tui.screens.history import HistoryScreen
from chatcache.tui.screens.lens import LensScreen
from chatcache.tui.screens.personas import PersonaScreen
from chatcache.tui.screens.segments import SegmentsScreen
from chatcache.tui.screens.sessions import SessionsScreen
from chatcache.tui.screens.themes import ThemeScreen
from chatcache.tui.screens.tree import TreeScreen
from chatcache.tui.widgets.message import SystemMessage
from tests.fakes import FakeBackend
from tests.tui.conftest import NARROW, WIDE, Bench, Chat


def test_what_was_typed_is_understood() -> None:
    fork = parse("/fork 3")
    assert isinstance(fork, Call)
    assert (fork.command.id, fork.argument) == ("fork", "3")
    assert parse("hello /fork") == Prompt("hello /fork")
    assert parse("//fork") == Prompt("/fork")
    assert parse("/FORK") == Call(fork.command, "")
    assert isinstance(parse("/forg"), Unknown)
    multiline = parse("/system Be brief.\nAnd kind.")
    assert isinstance(multiline, Call)
    assert multiline.argument == "Be brief.\nAnd kind."


@pytest.mark.parametrize(
    "text",
    [
        "/etc/hosts has a line I do not understand",
        "/* why? */ int main(){}",
        "// a comment",
        "/no_think 2+2?",
        "/home/u/My\\ File.txt",
        "/tmp is full",
        "/sys is mounted twice",
        "/delete\nthis line, too",
        "/new notes\nand 39 more lines",
        "/ what is this",
    ],
)
def test_what_only_looks_like_a_command_is_a_message(text: str) -> None:
    assert parse(text) == Prompt(text)


def test_a_command_swallows_no_text() -> None:
    assert isinstance(parse("/help me with my homework"), Unknown)
    assert isinstance(parse("/tree keep 2"), Unknown)
    assert isinstance(parse("/tree keep 2", is_plain=True), Call)
    assert isinstance(parse("/new [paste]", lambda text: text.replace("[paste]", "a\nb")), Unknown)
    expanded = parse("/system [paste]", lambda text: text.replace("[paste]", "a\nb"))
    assert isinstance(expanded, Call)
    assert expanded.argument == "a\nb"


def test_what_was_not_typed_is_no_command() -> None:
    assert parse("/delete", is_typed=False) == Prompt("/delete")


def test_ids_and_names_of_commands_are_unique() -> None:
    assert len({command.id for command in COMMANDS}) == len(COMMANDS)
    assert len({command.slash for command in COMMANDS}) == len(COMMANDS)


def test_the_list_puts_names_that_begin_so_first() -> None:
    assert [command.slash for command in matching("s")][:2] == ["stop", "system"]
    assert [command.slash for command in matching("prompt")] == ["system", "persona", "new"]
    assert len(matching("")) == len(COMMANDS)


async def test_every_command_has_a_handler(bench: Bench) -> None:
    async with bench.run() as chat:
        for command in COMMANDS:
            assert callable(chat.screen.actions.handlers[command.id])


async def open_dialog(chat: Chat, text: str, screen: type) -> None:
    await chat.type(text)
    await chat.press("enter")
    await chat.until(lambda: isinstance(chat.app.screen, screen))


async def test_edit_changes_the_last_message_and_keeps_the_original(bench: Bench) -> None:
    async with bench.run() as chat:
        await chat.say("one", "two", "/edit")
        assert chat.screen.composer.text == "two"
        assert "editing turn 2" in chat.text
        await chat.say("zwei")
        assert chat.users == ["one", "zwei"]
        assert chat.answers[-1] == "You said: zwei"
        names = {session.name for session in chat.service.list_sessions()}
        assert names == {"one", "one (before edit)"}
        assert any("“one (before edit)”" in toast for toast in chat.toasts)


async def test_escape_leaves_editing(bench: Bench) -> None:
    async with bench.run() as chat:
        await chat.say("one", "/edit")
        await chat.press("escape")
        assert chat.screen.composer.text == ""
        await chat.say("two")
        assert chat.users == ["one", "two"]


async def test_regen_puts_a_variant_beside_and_brackets_switch(bench: Bench) -> None:
    bench.backend = FakeBackend(["red", "green"], starts_ready=True)
    async with bench.run() as chat:
        await chat.say("A colour?", "/regen")
        assert chat.answers == ["green"]
        assert "⑂ 2/2" in chat.text
        await chat.press("alt+up", "left_square_bracket")
        await chat.idle()
        assert chat.answers == ["red"]
        assert "⑂ 1/2" in chat.text
        await chat.press("alt+up", "right_square_bracket")
        await chat.idle()
        assert chat.answers == ["green"]
        await chat.press("alt+up", "right_square_bracket")
        await chat.idle()
        assert "There is no other variant on this side." in chat.toasts


async def test_variants_are_walked_by_command_and_r_gives_another(bench: Bench) -> None:
    bench.backend = FakeBackend(["red", "green", "blue"], starts_ready=True)
    async with bench.run() as chat:
        await chat.say("/variant")
        assert "This chat is empty." in chat.notices[0]
        await chat.say("A colour?", "/variant")
        assert "There is only one answer." in chat.notices[-1]
        await chat.say("/regen")
        await chat.say("/variant")
        assert chat.answers == ["red"]
        await chat.say("/variant 2")
        assert chat.answers == ["green"]
        await chat.say("/variant 3")
        assert "Say a number from 1 to 2." in chat.notices[-1]
        await chat.press("alt+up", "r")
        await chat.idle()
        assert chat.answers == ["blue"]


async def test_undo_goes_back_and_gives_the_text_back(bench: Bench) -> None:
    async with bench.run() as chat:
        await chat.say("one", "two", "/undo")
        assert chat.users == ["one"]
        assert chat.screen.composer.text == "two"
        assert "from one" in chat.title
        await chat.say("/switch one")
        assert chat.users == ["one", "two"]


async def test_fork_with_a_turn_goes_there_at_once(bench: Bench) -> None:
    async with bench.run() as chat:
        await chat.say("one", "two", "/fork 1")
        assert chat.users == ["one"]
        assert any("nothing was copied" in toast for toast in chat.toasts)
        await chat.say("/fork 9")
        assert chat.notices[-1].startswith("✗")
        await chat.say("/fork x")
        assert "is no turn" in chat.notices[-1]


async def test_system_shows_the_cost_and_changes_the_prompt(bench: Bench) -> None:
    async with bench.run() as chat:
        await chat.say("/system Be brief.", "one")
        assert [block.text for block in chat.screen.query(SystemMessage)] == ["Be brief."]
        await open_dialog(chat, "/system", SystemPromptScreen)
        assert "tokens to recompute" in chat.text
        await chat.press("X", "ctrl+s")
        await chat.idle()
        assert [block.text for block in chat.screen.query(SystemMessage)] == ["XBe brief."]
        await chat.say("two")
        assert "system prompt changed" in chat.footers[-1]


async def test_mode_is_shown_and_set_for_this_chat(bench: Bench) -> None:
    async with bench.run() as chat:
        await chat.say("one", "/mode")
        assert "canonical: each prompt" in chat.notices[-1]
        await chat.say("/mode append", "two")
        assert chat.title == "chatcache › one  append mode"
        assert "append: what was read stays" in chat.notices[-1]
        assert bench.backend.requests[-1].history_mode == "append"
        assert bench.backend.requests[-1].num_read == 2
        await chat.say("/mode sideways")
        assert "There is no mode 'sideways'." in chat.notices[-1]
        await chat.say("/mode canonical", "three")
        assert chat.title == "chatcache › one"
        assert bench.backend.requests[-1].history_mode == "canonical"


async def test_set_changes_sampling_and_says_what_is_wrong(bench: Bench) -> None:
    async with bench.run() as chat:
        await chat.say("/set temperature 0.5", "/set seed=7", "/set think off")
        assert chat.screen.parts.chat.sampling.params == SamplingParams(temperature=0.5, seed=7)
        assert chat.screen.parts.chat.sampling.think is False
        await chat.say("/set temprature 1", "/set seed x", "/set think maybe", "/set seed default")
        assert "Did you mean 'temperature'?" in chat.notices[0]
        assert "whole number" in chat.notices[1]
        assert "neither on, off" in chat.notices[2]
        assert chat.screen.parts.chat.sampling.params.seed is None
        await chat.say("hello")
        assert bench.backend.requests[-1].sampling.temperature == 0.5


TUTOR = Persona("tutor", "Ask back.", {"temperature": 0.25})


async def test_a_persona_brings_its_system_prompt_and_sampling(bench: Bench) -> None:
    async with bench.run(personas={"tutor": TUTOR}) as chat:
        await chat.say("/persona tutor", "one")
        assert bench.backend.requests[-1].messages[0].text == "Ask back."
        assert bench.backend.requests[-1].sampling.temperature == 0.25
        assert "SAMPLING" in chat.text
        assert "cache not touched" in chat.text
        await chat.say("/params")
        assert "temperature         0.25      persona tutor" in chat.notices[-1]
        assert "None of these touches the cache" in chat.notices[-1]
        await chat.say("/persona tuto")
        assert "Did you mean 'tutor'?" in chat.notices[-1]


async def test_the_picker_of_personas_says_what_a_change_costs(bench: Bench) -> None:
    async with bench.run(personas={"tutor": TUTOR}) as chat:
        await chat.say("one")
        await open_dialog(chat, "/persona", PersonaScreen)
        await chat.until(lambda: "tokens to recompute" in chat.text)
        await chat.press("enter")
        await chat.idle()
        assert [block.text for block in chat.screen.query(SystemMessage)] == ["Ask back."]
        await open_dialog(chat, "/persona", PersonaScreen)
        await chat.until(lambda: "● tutor" in chat.text and "in use" in chat.text)
        await chat.press("escape")


async def test_without_personas_the_picker_says_how_to_write_one(bench: Bench) -> None:
    async with bench.run() as chat:
        await open_dialog(chat, "/persona", PersonaScreen)
        await chat.until(lambda: "config edit" in chat.text)
        await chat.press("escape")


async def test_copy_takes_the_text_as_it_was_written(bench: Bench) -> None:
    answer = "See:\n\n```python\nx = 1\n```\n\nDone."
    bench.backend = FakeBackend([answer], starts_ready=True)
    async with bench.run() as chat:
        await chat.say("/copy")
        assert "no answer to copy" in chat.notices[0]
        await chat.say("code?", "/copy")
        assert chat.app.clipboard == answer
        await chat.say("/copy code")
        assert chat.app.clipboard == "x = 1"
        await chat.press("alt+up", "y")
        await chat.idle()
        assert chat.app.clipboard == answer
        await chat.press("c")
        await chat.idle()
        assert chat.app.clipboard == "x = 1"


async def test_new_keeps_the_system_prompt(bench: Bench) -> None:
    async with bench.run() as chat:
        await chat.say("/system Be brief.", "one", "/new Second", "two")
        assert chat.title == "chatcache › Second"
        assert [block.text for block in chat.screen.query(SystemMessage)] == ["Be brief."]
        assert chat.users == ["two"]


async def test_an_empty_new_chat_leaves_no_row(bench: Bench) -> None:
    async with bench.run() as chat:
        await chat.say("/new", "/new")
        assert chat.service.list_sessions() == []


async def test_rename_delete_and_switch(bench: Bench) -> None:
    async with bench.run() as chat:
        await chat.say("one", "/rename First", "/new", "two")
        await open_dialog(chat, "/delete", ConfirmScreen)
        await chat.press("enter")
        await chat.idle()
        assert len(chat.service.list_sessions()) == 2
        await open_dialog(chat, "/delete", ConfirmScreen)
        assert "Delete “two”?" in chat.text
        await chat.press("y")
        await chat.idle()
        assert chat.title == "chatcache › First"
        assert [session.name for session in chat.service.list_sessions()] == ["First"]
        await chat.say("/switch Frist")
        assert "First" in chat.notices[-1]


async def test_export_writes_a_new_file_and_overwrites_none(bench: Bench, tmp_path: Path) -> None:
    path = tmp_path / "out.md"
    async with bench.run() as chat:
        await chat.say("one", f"/export {path}", f"/export {path}")
        assert path.read_text() == "# one\n\n## You\n\none\n\n## fake\n\nYou said: one\n"
        assert "is there already" in chat.notices[-1]


async def test_a_theme_is_looked_at_taken_and_kept(bench: Bench) -> None:
    kept: list[tuple[str, ...]] = []
    async with bench.run(keep_setting=lambda *setting: kept.append(setting)) as chat:
        before = chat.app.theme
        for last_key, theme in (("escape", before), ("enter", "gruvbox")):
            await chat.type("/theme")
            await chat.press("enter")
            await chat.until(lambda: isinstance(chat.app.screen, ThemeScreen))
            await chat.press(*"gruvbox")
            await chat.until(lambda: chat.app.theme == "gruvbox")
            await chat.press(last_key)
            await chat.idle()
            assert chat.app.theme == theme
        assert kept == [("ui.theme", "gruvbox")]
        assert f"/theme {before} goes back." in chat.toasts[-1]


async def test_the_mode_of_the_panel_is_kept_where_it_was_meant(bench: Bench) -> None:
    kept: list[tuple[str, ...]] = []
    for size, word in ((NARROW, "/cache"), (NARROW, "/cache off"), (WIDE, "/cache")):
        async with bench.run(size, keep_setting=lambda *setting: kept.append(setting)) as chat:
            await chat.say(word)
            await chat.press("ctrl+q")
    assert kept == [("ui.panel", "off"), ("ui.panel", "compact")]


async def test_stats_and_theme(bench: Bench) -> None:
    async with bench.run() as chat:
        await chat.say("one", "two", "/stats", "/theme nord", "/theme nrod")
        assert "2 answers" in chat.notices[0]
        assert "reused" in chat.notices[0]
        assert chat.app.theme == "nord"
        assert "Did you mean 'nord'?" in chat.notices[1]


@pytest.mark.parametrize(
    ("text", "screen"),
    [
        ("/help", HelpScreen),
        ("/sessions", SessionsScreen),
        ("/find one", SessionsScreen),
        ("/fork", ForkScreen),
        ("/tree", TreeScreen),
        ("/system", SystemPromptScreen),
        ("/history", HistoryScreen),
        ("/segments", SegmentsScreen),
        ("/lens", LensScreen),
    ],
)
async def test_commands_open_dialogs_that_escape_closes(
    bench: Bench, text: str, screen: type
) -> None:
    async with bench.run() as chat:
        await chat.say("one")
        await open_dialog(chat, text, screen)
        await chat.press("escape")
        await chat.until(lambda: isinstance(chat.app.screen, ChatScreen))


async def test_stop_quit_and_continue(bench: Bench) -> None:
    async with bench.run() as chat:
        await chat.say("/stop")
        assert "Nothing is being answered." in chat.toasts
        await chat.say("/continue")
        assert "This chat is empty." in chat.notices[0]
        await chat.say("one", "/continue")
        assert "complete" in chat.notices[-1]
        await chat.type("/quit")
        await chat.press("enter")
    assert chat.app.return_code == 0


async def test_what_would_disturb_a_running_answer_is_refused(bench: Bench) -> None:
    gate = bench.backend.gate("delta:1")
    async with bench.run() as chat:
        await chat.type("one")
        await chat.press("enter")
        await chat.until(lambda: gate.arrived.is_set())
        for text in ("/new", "/regen", "/edit", "/undo", "/fork 1"):
            await chat.type(text)
            await chat.press("enter")
        await chat.until(lambda: len(chat.notices) == 5)
        assert all("An answer is being written." in notice for notice in chat.notices)
        gate.open()
        await chat.idle()
        assert chat.answers == ["You said: one"]


async def test_acts_on_a_message(bench: Bench) -> None:
    async with bench.run() as chat:
        await chat.say("one", "two")
        await chat.press("alt+up", "alt+up", "alt+up", "i")
        await chat.until(lambda: chat.screen.panel_state.figures_turn == 1)
        assert "○ cold start" in chat.text
        await chat.press("r")
        await chat.idle()
        assert "Only the last answer" in chat.notices[0]
        await chat.press("alt+up", "e")
        await chat.idle()
        assert chat.screen.composer.editing_turn == 1
        assert chat.screen.composer.text == "one"
        await chat.press("escape", "alt+up", "alt+up", "alt+up", "f")
        await chat.idle()
        assert chat.users == ["one"]
        await chat.press("alt+up", "space")
        assert "You said: one" in chat.text
        await chat.press("alt+down")
        assert chat.screen.composer.has_focus


async def test_spill_asks_the_engine_to_write_everything(bench: Bench) -> None:
    async with bench.run() as chat:
        await chat.say("one", "/spill")
        await chat.until(lambda: bench.backend.num_spills == 1)
