"""Commands on the program itself: earlier messages, segments, keys, checks; deletion of a turn."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from textual.widgets import OptionList

from chatcache.backends.base import SegmentRow
from chatcache.errors import NotFoundError
from chatcache.frontend import keycheck
from chatcache.frontend.desk import Verified
from chatcache.tui.screens.chat import ChatScreen
from chatcache.tui.screens.dialogs import ConfirmScreen
from chatcache.tui.screens.history import HistoryScreen
from chatcache.tui.screens.segments import SegmentsScreen
from tests.tui.conftest import Bench, Chat


async def opened(chat: Chat, screen: type, *keys: str) -> None:
    await chat.press(*keys)
    await chat.until(lambda: isinstance(chat.app.screen, screen))


async def test_history_finds_messages_of_all_chats(bench: Bench) -> None:
    async with bench.run() as chat:
        await chat.say("about apples", "about pears", "/new", "about pears", "plums")
        await opened(chat, HistoryScreen, "ctrl+r")
        await chat.until(lambda: "about apples" in chat.text)
        assert len(chat.app.screen.query_one(OptionList).options) == 3
        await chat.press(*"aap")
        await chat.press("enter")
        await chat.until(lambda: isinstance(chat.app.screen, ChatScreen))
        await chat.idle()
        assert chat.screen.composer.text == "about apples"


async def test_a_turn_is_deleted_from_where_it_is_focused(bench: Bench) -> None:
    async with bench.run() as chat:
        await chat.say("one", "two", "three")
        await chat.press("alt+up", "alt+up", "alt+up", "alt+up")
        await opened(chat, ConfirmScreen, "x")
        assert "Delete turn 2 from here on?" in chat.text
        assert "4 messages" in chat.text
        await chat.press("y")
        await chat.idle()
        assert chat.users == ["one"]
        await chat.say("zwei")
        assert chat.users == ["one", "zwei"]


async def test_deleting_the_first_turn_deletes_the_chat(bench: Bench) -> None:
    async with bench.run() as chat:
        await chat.say("one")
        await chat.press("alt+up", "alt+up")
        await opened(chat, ConfirmScreen, "x")
        await chat.press("y")
        await chat.idle()
        assert chat.users == []
        assert chat.service.list_sessions() == []


async def test_a_chat_is_exported_and_imported(bench: Bench, tmp_path: Path) -> None:
    path = tmp_path / "chat.json"
    async with bench.run() as chat:
        await chat.say("one", f"/export {path}", "/new", f"/import {path}")
        assert chat.users == ["one"]
        assert chat.title == "chatcache › one (2)"
        path.write_text("no json")
        await chat.say(f"/import {path}", "/import", "/import /no/such/file")
        assert ["is not JSON" in chat.notices[0], "missing" in chat.notices[1]] == [True, True]
        assert "cannot be read" in chat.notices[2]


class Desk:
    """Stands for the disk: says what it was asked."""

    def inspect(self, row: SegmentRow) -> list[str]:
        return ["4 tensors", f"of {row.segment_id}"]

    def __init__(self) -> None:
        self.rows: list[SegmentRow] = []
        self.checked = threading.Semaphore(0)

    def stored(self) -> list[SegmentRow]:
        return self.rows

    def verify(self, row: SegmentRow) -> str:
        raise NotFoundError("This segment is in memory only.", "")

    def verify_all(self) -> Iterator[Verified]:
        for number in range(1, 4):
            self.checked.acquire(timeout=10)
            yield Verified(number, 3, number * 1000, int(number >= 2))

    def toggle_pin(self, row: SegmentRow) -> str:
        self.rows = [replace(row, on_disk=True, is_pinned=True)]
        return "Pinned 1 segment."

    def drop(self, row: SegmentRow) -> str:
        self.rows = []
        return f"Dropped {row.segment_id}."


async def test_segments_are_looked_at_pinned_verified_and_dropped(bench: Bench) -> None:
    async with bench.run(desk=Desk()) as chat:
        await chat.say("one")
        await opened(chat, SegmentsScreen, "f7")
        await chat.until(lambda: "ram-0" in chat.text)
        await chat.press("enter")
        await chat.until(lambda: "of ram-0" in chat.text)
        await chat.press("f6")
        await chat.until(lambda: "Pinned 1 segment." in chat.text)
        assert "both pinned" in chat.text
        await chat.press("f7")
        await chat.until(lambda: "in memory only" in chat.text)
        await opened(chat, ConfirmScreen, "f8")
        await chat.press("y")
        await chat.until(lambda: "Dropped ram-0." in chat.text)
        assert "pinned" not in chat.text.split("Dropped")[0].split("tokens  where")[1]
        await chat.press("escape")


async def test_all_segments_are_verified_and_escape_stops_it(bench: Bench) -> None:
    desk = Desk()
    async with bench.run(desk=desk) as chat:
        await chat.say("one")
        await opened(chat, SegmentsScreen, "f7")
        desk.checked.release()
        desk.checked.release()
        await chat.press("f5")
        await chat.until(lambda: "verified 2 of 3 segments, 2.0 kB · 1 damaged" in chat.text)
        await chat.press("escape")
        desk.checked.release()
        await chat.until(lambda: "Stopped. Verified 3 of 3" in chat.text)
        for _ in range(3):
            desk.checked.release()
        await chat.press("f5")
        await chat.until(lambda: "Verified 3 of 3, 3.0 kB: 1 damaged." in chat.text)
        await chat.press("escape")
        await chat.until(lambda: isinstance(chat.app.screen, ChatScreen))


async def test_one_segment_is_written_to_disk_when_asked(bench: Bench) -> None:
    async with bench.run(desk=Desk()) as chat:
        await chat.say("one")
        await opened(chat, SegmentsScreen, "f7")
        await chat.until(lambda: "ram-0" in chat.text)
        await chat.press("f9")
        await chat.until(lambda: "It is being written" in chat.text)
        assert bench.backend.spilled == ["ram-0"]
        journal = bench.backend.ram_journals.pop()
        bench.backend.disk_journals.append(journal)
        bench.backend.emit(bench.backend.snapshot())
        await chat.until(lambda: "disk-0" in chat.text)
        await chat.press("f9")
        await chat.until(lambda: "It is on disk already." in chat.text)


async def test_keys_says_what_clashes(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("STY", raising=False)
    monkeypatch.delenv("ZELLIJ", raising=False)
    async with bench.run(keys={"new": "ctrl+i,f4"}) as chat:
        await chat.say("/keys")
        assert "new: terminals send Ctrl+I as Tab." in chat.notices[0]
        assert "F4 is bound twice" in chat.notices[0]


def test_the_default_keys_clash_only_with_multiplexers() -> None:
    assert keycheck.findings({}, {}) == []
    (found,) = keycheck.findings({}, {"TMUX": "/tmp/socket"})
    assert found == "panel: tmux keeps Ctrl+B for itself; F2 does the same."
    (found,) = keycheck.findings({}, {"ZELLIJ": "0"})
    assert "press it twice" in found
    found = " ".join(keycheck.findings({"composer.send": "shift+enter"}, {}))
    assert "Shift+Enter is bound twice" in found
    assert "not every terminal sends Shift+Enter" in found


async def test_doctor_shows_its_findings(bench: Bench) -> None:
    async with bench.run(examine=lambda report: iter(["ok  python: 3", "ok  torch: 2"])) as chat:
        await chat.say("/doctor")
        assert "ok  python: 3\n  ok  torch: 2" in chat.notices[0]
    async with bench.run() as chat:
        await chat.say("/doctor")
        assert "chatcache doctor" in chat.notices[0]
