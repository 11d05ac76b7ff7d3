"""The first second: what it loads, what may be typed in it, and what ends it."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from pathlib import Path

from textual.widgets import TextArea

from chatcache.errors import StorageError
from chatcache.frontend.options import Backstage
from chatcache.frontend.sampling import Sampling
from chatcache.tui.app import ChatCacheApp
from chatcache.tui.screens.help import HelpScreen
from tests.tui.conftest import Bench, Chat


def test_the_first_paint_waits_for_nothing_that_it_does_not_show() -> None:
    late = ["torch", "transformers", "numpy", "sqlite3", "markdown_it", "chatcache.backends.base"]
    late += ["chatcache.chat.service", "chatcache.tui.actions", "chatcache.tui.parts.turns"]
    code = f"import sys, chatcache.tui.app; print([m for m in {late} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


async def test_what_cannot_be_opened_ends_the_program_with_its_reason() -> None:
    def fail() -> Backstage:
        raise StorageError("The conversations cannot be read.", "Look at them.")

    app = ChatCacheApp(fail)
    async with app.run_test() as pilot:
        while app.is_running and app.return_value is None:
            await pilot.pause(0.01)
    assert isinstance(app.return_value, StorageError)


async def test_what_is_typed_before_the_chats_are_open_is_done_when_they_are(bench: Bench) -> None:
    may_open = threading.Event()
    backstage = Backstage(bench.service(), Sampling())

    def wait() -> Backstage:
        may_open.wait(10)
        return backstage

    bench.backend.start()
    app = ChatCacheApp(wait)
    async with app.run_test(size=(120, 36)) as pilot:
        chat = Chat(app, pilot, bench)
        await pilot.press("h", "i", "enter")
        await pilot.press("f1")
        await pilot.pause()
        assert not chat.answers
        may_open.set()
        await chat.until(lambda: isinstance(app.screen, HelpScreen))
        await pilot.press("escape")
        await chat.until(lambda: chat.answers == ["You said: hi"])


async def test_what_is_typed_at_once_keeps_its_order(bench: Bench) -> None:
    may_open = threading.Event()
    backstage = Backstage(bench.service(), Sampling())

    def wait() -> Backstage:
        may_open.wait(10)
        return backstage

    bench.backend.start()
    app = ChatCacheApp(wait)
    async with app.run_test(size=(120, 36)) as pilot:
        chat = Chat(app, pilot, bench)
        for text in ("one", "two"):
            await chat.type(text)
            await pilot.press("enter")
        assert chat.screen.query_one(TextArea).text == ""
        may_open.set()
        await chat.until(lambda: chat.answers == ["You said: one", "You said: two"])
        await chat.idle()
        assert [session.num_turns for session in chat.service.list_sessions()] == [2]


async def test_the_next_start_shows_the_chat_that_was_looked_at(
    bench: Bench, tmp_path: Path
) -> None:
    path = tmp_path / "last_chat.json"
    async with bench.run(last_chat_path=path) as chat:
        await chat.say("first", "/new", "second", "/switch first")
        await chat.press("ctrl+q")
    async with bench.run(last_chat_path=path) as chat:
        assert chat.users == ["first"]
        second = chat.service.find_session("second")
        path.write_text(json.dumps({"session_id": second.session_id, "at": 0}))
    async with bench.run(last_chat_path=path) as chat:
        assert chat.users == ["second"], "it was used after the other one was looked at"
        path.write_text(json.dumps({"session_id": "gone", "at": 1e12}))
    async with bench.run(last_chat_path=path) as chat:
        assert chat.users == ["second"]
