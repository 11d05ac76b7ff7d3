"""Writing: sending, new lines, recall, pasting, the command list."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from pathlib import Path

import pytest
from textual.events import Key, Paste

from chatcache.chat.views import SessionSummary
from chatcache.formatting import beginning
from chatcache.frontend.registry import COMMANDS, KEYS
from chatcache.tui.screens.modal import Dialog
from tests.fakes import FakeBackend
from tests.tui.conftest import Bench, Chat


def keys_of_everything() -> set[str]:
    """Every key that is bound on the chat screen, but for those that leave it."""
    scopes = {"app", "chat", "composer"}
    bound = [key.keys for key in KEYS if key.scope in scopes]
    bound += [command.keys for command in COMMANDS if command.id not in ("quit", "editor")]
    return {key for keys in bound for key in keys.split(",") if key} - {"ctrl+c"}


@pytest.mark.parametrize("key", ["ctrl+j", "shift+enter", "alt+enter"])
async def test_a_new_line_is_not_sent(bench: Bench, key: str) -> None:
    async with bench.run() as chat:
        await chat.press("a", key, "b")
        assert chat.screen.composer.text == "a\nb"
        assert chat.users == []
        await chat.press("enter")
        await chat.idle()
        assert chat.users == ["a\nb"]


async def test_keys_that_edit_keep_their_place_among_fast_typing(bench: Bench) -> None:
    async with bench.run() as chat:
        composer = chat.screen.composer
        composer.set_text("old words")
        for key in ("ctrl+u", "n", "e", "x", "backspace", "w", "left", "ctrl+j"):
            composer.post_message(Key(key, key if len(key) == 1 else None))
        await chat.pilot.pause()
        assert composer.text == "ne\nw"


async def test_enter_after_fast_typing_sends_what_is_there(bench: Bench) -> None:
    async with bench.run() as chat:
        await chat.press("/", *"rename")
        composer = chat.screen.composer
        assert composer._popup.is_open
        for key, char in (("space", " "), ("x", "x"), ("y", "y"), ("enter", None)):
            composer.post_message(Key(key, char))
        await chat.idle()
        assert "This chat is empty." in chat.notices[0]
        assert composer.text == ""


async def test_an_empty_message_is_not_sent(bench: Bench) -> None:
    async with bench.run() as chat:
        await chat.press("space", "ctrl+j", "enter")
        await chat.idle()
        assert chat.users == []


async def test_it_grows_to_ten_lines_and_no_further(bench: Bench) -> None:
    async with bench.run() as chat:
        heights = []
        for lines in (1, 4, 10, 30):
            await chat.type("\n".join("x" * lines))
            heights.append(chat.screen.composer.size.height)
        assert heights == [1, 4, 10, 10]


async def test_up_in_the_first_row_recalls_and_down_comes_back(bench: Bench) -> None:
    async with bench.run() as chat:
        await chat.say("first", "second")
        composer = chat.screen.composer
        await chat.type("draft")
        await chat.press("up")
        assert composer.text == "second"
        await chat.press("up")
        assert composer.text == "first"
        await chat.press("up")
        assert composer.text == "first"
        await chat.press("down", "down")
        assert composer.text == "draft"


async def test_up_in_a_wrapped_line_moves_the_cursor_first(bench: Bench) -> None:
    async with bench.run() as chat:
        await chat.say("earlier")
        await chat.type("word " * 40)
        await chat.press("up")
        assert chat.screen.composer.text.startswith("word")
        await chat.press("up", "up")
        assert chat.screen.composer.text == "earlier"


async def paste(chat: Chat, text: str) -> None:
    chat.screen.composer.post_message(Paste(text))
    await chat.pilot.pause()


async def test_a_long_paste_is_a_placeholder_until_it_is_sent(bench: Bench) -> None:
    async with bench.run() as chat:
        pasted = "\n".join(f"line {number}" for number in range(40))
        await chat.press("s", "e", "e", "space")
        await paste(chat, pasted)
        assert chat.screen.composer.text == "see [paste 1: 40 lines]"
        await chat.press("enter")
        await chat.idle()
        assert chat.users == [f"see {pasted}"]


async def test_backspace_takes_a_whole_placeholder(bench: Bench) -> None:
    async with bench.run() as chat:
        await paste(chat, "x" * 5000)
        assert chat.screen.composer.text == "[paste 1: 5,000 characters]"
        await chat.press("backspace")
        assert chat.screen.composer.text == ""


async def test_a_long_text_that_comes_back_is_held_too(bench: Bench) -> None:
    text = "word " * 6000
    async with bench.run() as chat:
        await paste(chat, text)
        await chat.press("enter")
        await chat.idle()
        await chat.press("up")
        assert chat.screen.composer.text == "[paste 2: 30,000 characters]"
        await chat.press("enter")
        await chat.idle()
        assert chat.users == [text.strip("\n")] * 2


async def test_of_a_very_long_message_the_beginning_is_shown(bench: Bench) -> None:
    bench.backend = FakeBackend(["Fine."], starts_ready=True)
    async with bench.run() as chat:
        await paste(chat, "\n".join(f"line {number}" for number in range(100)))
        await chat.press("enter")
        await chat.idle()
        assert "characters more · Alt+Up, Space shows more" in chat.text
        assert "line 39" in chat.text
        assert "line 40" not in chat.text
        await chat.press("alt+up", "alt+up", "space", "ctrl+end")
        await chat.until(lambda: "line 99" in chat.text)


def test_the_beginning_of_a_text() -> None:
    assert beginning("a\nb\nc\nd", 2, 100) == ("a\nb", 4)
    assert beginning("a\nb\nc", 2, 100) == ("a\nb\nc", 0)
    assert beginning("abcdefgh", 2, 4) == ("abcd", 4)
    assert beginning("", 2, 4) == ("", 0)


@pytest.mark.parametrize("key", ["up", "ctrl+up"])
async def test_ctrl_up_and_down_walk_the_earlier_messages(bench: Bench, key: str) -> None:
    async with bench.run() as chat:
        await chat.say("first")
        await chat.press(key)
        assert chat.screen.composer.text == "first"
        await chat.press("ctrl+down")
        assert chat.screen.composer.text == ""


async def test_a_short_paste_is_text_without_escapes(bench: Bench) -> None:
    async with bench.run() as chat:
        await paste(chat, "two\r\nlines\x1b[31m")
        assert chat.screen.composer.text == "two\nlines[31m"


async def test_the_command_list_filters_moves_completes_and_closes(bench: Bench) -> None:
    async with bench.run() as chat:
        popup = chat.screen.composer._popup
        await chat.press("/")
        assert popup.is_open
        await chat.press("s", "e")
        assert "/sessions" in chat.text
        assert "/fork" not in chat.text
        await chat.press("down", "tab")
        assert chat.screen.composer.text == "/sessions "
        assert not popup.is_open
        await chat.type("")
        await chat.press("/", "escape")
        assert not popup.is_open
        assert chat.screen.composer.text == "/"


async def test_enter_in_the_list_runs_or_asks_for_the_argument(bench: Bench) -> None:
    async with bench.run() as chat:
        await chat.press("/", "r", "e", "n", "enter")
        assert chat.screen.composer.text == "/rename "
        assert chat.notices == []
        await chat.type("")
        await chat.press("/", "s", "e", "t", "enter")
        await chat.idle()
        assert "temperature" in chat.notices[0]


async def test_enter_does_nothing_of_a_list_unless_somebody_moved_in_it(bench: Bench) -> None:
    async with bench.run() as chat:
        await chat.press(*"/dele", "enter")
        assert chat.screen.composer.text == "/delete "
        await chat.idle()
        assert chat.notices == []
        await chat.type("")
        await chat.press(*"/s", "down", "enter")
        await chat.until(lambda: chat.screen.composer.text != "/s")


async def test_keys_behind_enter_begin_another_message(bench: Bench) -> None:
    async with bench.run() as chat:
        composer = chat.screen.composer
        for key in ("o", "n", "e", "enter", "t", "w", "o"):
            composer.post_message(Key(key, key if len(key) == 1 else None))
        await chat.until(lambda: chat.users == ["one"])
        await chat.idle()
        assert composer.text == "two"


async def test_what_is_typed_behind_a_command_is_for_the_chat_that_it_opens(bench: Bench) -> None:
    async with bench.run() as chat:
        await chat.say("one")
        composer = chat.screen.composer
        for key in (*"/new", "enter", *"ahead"):
            composer.post_message(Key(key, "/" if key == "/" else key if len(key) == 1 else None))
        await chat.idle()
        await chat.until(lambda: chat.users == [])
        assert composer.text == "ahead"
        await chat.type("/switch one")
        await chat.press("enter")
        await chat.until(lambda: chat.users == ["one"])
        assert composer.text == ""


async def test_a_pasted_command_is_a_message(bench: Bench) -> None:
    async with bench.run() as chat:
        await paste(chat, "/quit")
        await chat.press("enter")
        await chat.idle()
        assert chat.users == ["/quit"]
        await chat.press("up", "enter")
        await chat.idle()
        assert chat.users == ["/quit", "/quit"]


async def test_a_paste_goes_where_it_can_be_written(bench: Bench) -> None:
    async with bench.run() as chat:
        await chat.say("one")
        await chat.press("alt+up")
        chat.app.post_message(Paste("two\rlines"))
        await chat.until(lambda: chat.screen.composer.text == "two\nlines")
        await chat.press("ctrl+s")
        await chat.until(lambda: chat.app.screen is not chat.screen)
        chat.app.post_message(Paste("two\rlines"))
        await chat.until(lambda: "two lines" in chat.text)


async def test_what_is_typed_on_a_message_and_is_no_key_of_it_is_written(bench: Bench) -> None:
    async with bench.run() as chat:
        await chat.say("one")
        await chat.press("alt+up", "alt+up", "H", "e", "r", "e")
        assert chat.screen.composer.text == "Here"
        await chat.press("left", "alt+up", "left_square_bracket")
        await chat.idle()
        assert "There is no other variant on this side." in chat.toasts


async def test_the_draft_of_a_new_chat_goes_with_its_message(bench: Bench, tmp_path: Path) -> None:
    path = tmp_path / "drafts.json"
    async with bench.run(drafts_path=path) as chat:
        await chat.type("one")
        await chat.until(lambda: path.exists() and "one" in path.read_text())
        await chat.press("enter")
        await chat.idle()
        await chat.until(lambda: "one" not in path.read_text())


async def test_what_is_typed_ahead_of_a_dialog_is_for_the_dialog(bench: Bench) -> None:
    async with bench.run() as chat:
        await chat.say("about apples", "about pears")
        for key in ("ctrl+r", "a", "p", "p", "l", "enter"):
            chat.app.post_message(Key(key, key if len(key) == 1 else None))
        await chat.until(lambda: chat.screen.composer.text == "about apples")


@pytest.mark.parametrize("opening", ["ctrl+r", "f4", "ctrl+s", "f1"])
async def test_a_dialog_that_is_left_in_haste_is_left_once(bench: Bench, opening: str) -> None:
    async with bench.run() as chat:
        await chat.say("one")
        await chat.press(opening)
        await chat.until(lambda: chat.app.screen is not chat.screen)
        dialog = chat.app.screen
        assert isinstance(dialog, Dialog)
        for _ in range(3):
            dialog.dismiss(None)
        await chat.until(lambda: chat.app.screen is chat.screen)
        await chat.press("h", "i")
        assert chat.app.failure is None


async def test_a_palette_that_is_opened_and_closed_in_haste_ends_nothing(bench: Bench) -> None:
    async with bench.run() as chat:
        for key in ("ctrl+p", "escape", "ctrl+p", "escape", "ctrl+p", "escape") * 3:
            chat.app.post_message(Key(key, None))
        await chat.until(lambda: chat.app.screen is chat.screen)
        await chat.press("h", "i")
        assert chat.app.failure is None


async def test_every_key_may_be_pressed_in_an_empty_chat(bench: Bench) -> None:
    async with bench.run() as chat:
        for key in sorted(keys_of_everything()):
            await chat.press(key, key, "escape", "escape")
            assert chat.app.failure is None, key


async def test_a_message_key_works_under_another_layout(bench: Bench) -> None:
    async with bench.run() as chat:
        await chat.say("one")
        await chat.press("alt+up", "alt+up")
        chat.app.post_message(Key("у", "у"))  # on the key of the e
        await chat.until(lambda: chat.screen.composer.editing_turn == 1)


async def test_what_was_written_comes_back_when_a_message_was_edited(bench: Bench) -> None:
    async with bench.run() as chat:
        await chat.say("one")
        await chat.type("a draft")
        await chat.press("alt+up", "alt+up", "e")
        await chat.until(lambda: chat.screen.composer.text == "one")
        await chat.press("escape")
        assert chat.screen.composer.text == "a draft"
        await chat.press("alt+up", "alt+up", "e")
        await chat.until(lambda: chat.screen.composer.text == "one")
        await chat.press("s", "enter")
        await chat.until(lambda: chat.users == ["ones"])
        assert chat.screen.composer.text == "a draft"


@pytest.mark.parametrize("character", ["🇩🇪", "👨‍👩‍👧", "❤\ufe0f", "e\u0301"])
async def test_keys_take_whole_characters(bench: Bench, character: str) -> None:
    async with bench.run() as chat:
        composer = chat.screen.composer
        await chat.type(f"a{character}b{character}")
        await chat.press("backspace")
        assert composer.text == f"a{character}b"
        await chat.press("left", "left")
        assert composer.cursor_location == (0, 1)
        await chat.press("right")
        assert composer.cursor_location == (0, 1 + len(character))
        await chat.press("left", "delete")
        assert composer.text == "ab"


async def test_what_is_typed_before_the_start_is_kept_when_the_program_is_left(
    bench: Bench, tmp_path: Path
) -> None:
    path = tmp_path / "drafts.json"
    opened = threading.Event()
    service = bench.service()
    last_session = service.last_session

    def slow_last_session() -> SessionSummary | None:
        opened.wait(10)
        return last_session()

    service.last_session = slow_last_session  # type: ignore[method-assign]
    make, bench.service = bench.service, lambda: service  # type: ignore[method-assign]
    async with bench.run(waits=False, drafts_path=path) as chat:
        await chat.press("h", "i", "enter", "y", "o", "u")
        await chat.press("ctrl+q")
    opened.set()
    bench.service = make  # type: ignore[method-assign]
    async with bench.run(drafts_path=path) as chat:
        assert chat.screen.composer.text == "hi\n\nyou"


async def test_two_slashes_send_one(bench: Bench) -> None:
    async with bench.run() as chat:
        await chat.say("//etc is a directory")
        assert chat.users == ["/etc is a directory"]


async def test_an_unknown_command_is_not_sent_and_stays_to_be_mended(bench: Bench) -> None:
    async with bench.run() as chat:
        await chat.say("/frok 1")
        assert chat.users == []
        assert chat.notices[0].startswith("✗ There is no command /frok.\n  Did you mean /fork?")
        assert chat.screen.composer.text == "/frok 1"


async def test_ctrl_c_copies_clears_stops_and_quits(bench: Bench) -> None:
    gate = bench.backend.gate("delta:1")
    async with bench.run() as chat:
        await chat.type("Hello")
        await chat.press("enter")
        await chat.until(lambda: gate.arrived.is_set())
        await chat.type("selected")
        chat.screen.composer.select_all()
        await chat.press("ctrl+c")
        assert chat.app.clipboard == "selected"
        chat.screen.composer.move_cursor((0, 0))
        await chat.press("ctrl+c")
        assert chat.screen.composer.text == ""
        await chat.press("ctrl+z")
        assert chat.screen.composer.text == "selected"
        await chat.press("ctrl+c")
        assert chat.screen.is_answering
        await chat.press("ctrl+c")
        await chat.idle()
        assert "stopped" in chat.footers[0]
        await chat.press("ctrl+c")
        assert "Press Ctrl+C again to quit." in chat.toasts
        assert chat.app.is_running
        await chat.press("ctrl+c")
    assert chat.app.return_code == 0


async def test_the_editor_is_a_command_too(bench: Bench) -> None:
    async with bench.run() as chat:
        await chat.say("/editor")
        assert chat.notices == ["✗ This terminal cannot be lent to an editor."]


async def test_history_is_picked_from_a_list(bench: Bench) -> None:
    async with bench.run() as chat:
        await chat.say("about apples", "about pears")
        await chat.press("ctrl+r")
        await chat.until(lambda: "about pears" in chat.text)
        await chat.press("a", "p", "p", "l", "enter")
        await chat.until(lambda: chat.screen.composer.text == "about apples")


async def test_what_was_written_before_a_pick_comes_back_with_up(bench: Bench) -> None:
    async with bench.run() as chat:
        await chat.say("about apples")
        await chat.type("a draft")
        await chat.press("ctrl+r")
        await chat.until(lambda: chat.app.screen is not chat.screen)
        await chat.press("enter")
        await chat.until(lambda: chat.screen.composer.text == "about apples")
        await chat.press("home", "up")
        assert chat.screen.composer.text == "a draft"


async def test_the_editor_writes_the_message(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("chatcache.frontend.editor.edit_text", lambda text: text + " edited")
    async with bench.run() as chat:
        await chat.type("draft")
        await chat.press("ctrl+g")
        await chat.idle()
        assert chat.notices == ["✗ This terminal cannot be lent to an editor."]
        assert chat.screen.composer.text == "draft"


async def test_drafts_stay_with_their_chat(bench: Bench) -> None:
    async with bench.run() as chat:
        await chat.say("one")
        await chat.type("unfinished")
        await chat.press("ctrl+n")
        await chat.idle()
        assert chat.screen.composer.text == ""
        await chat.say("two", "/switch one")
        assert chat.screen.composer.text == "unfinished"


async def test_drafts_and_waiting_messages_survive_a_restart(bench: Bench, tmp_path: Path) -> None:
    path = tmp_path / "drafts.json"
    gate = bench.backend.gate("delta:1")
    async with bench.run(drafts_path=path) as chat:
        for text in ("one", "waiting"):
            await chat.type(text)
            await chat.press("enter")
        await chat.until(lambda: gate.arrived.is_set() and "1 queued" in chat.status)
        await chat.type("unfinished")
        await chat.press("ctrl+q")
    gate.open()
    assert path.stat().st_mode & 0o077 == 0
    async with bench.run(drafts_path=path) as chat:
        assert chat.users == ["one"]
        assert chat.screen.composer.text == "waiting\n\nunfinished"
    path.write_text("damaged")
    async with bench.run(drafts_path=path) as chat:
        assert chat.screen.composer.text == ""


async def test_what_is_typed_before_the_chat_has_opened_stays(bench: Bench) -> None:
    async with bench.run() as chat:
        await chat.say("one")
    opened = threading.Event()
    service = bench.service()
    last_session = service.last_session

    def slow_last_session() -> SessionSummary | None:
        opened.wait(10)
        return last_session()

    service.last_session = slow_last_session  # type: ignore[method-assign]
    bench.service = lambda: service  # type: ignore[method-assign]
    async with bench.run(waits=False) as chat:
        await chat.press("h", "i")
        opened.set()
        await chat.until(lambda: chat.users == ["one"])
        await chat.idle()
        assert chat.screen.composer.text == "hi"


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGTERM])
async def test_a_draft_survives_the_end_of_the_terminal(
    bench: Bench, tmp_path: Path, number: int
) -> None:
    drafts = tmp_path / "drafts.json"
    async with bench.run(drafts_path=drafts) as chat:
        await chat.type("half a thought")
        os.kill(os.getpid(), number)
        await chat.until(drafts.exists)
    async with bench.run(drafts_path=drafts) as chat:
        assert chat.screen.composer.text == "half a thought"


async def test_the_editor_gives_back_what_was_saved(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = tmp_path / "editor"
    script.write_text('#!/bin/sh\nprintf " and more" >> "$1"\n')
    script.chmod(0o700)
    monkeypatch.setenv("VISUAL", str(script))
    async with bench.run() as chat:
        monkeypatch.setattr(chat.app, "suspend", contextlib.nullcontext)
        await chat.type("some")
        await chat.press("ctrl+g")
        await chat.idle()
        assert chat.screen.composer.text == "some and more"
