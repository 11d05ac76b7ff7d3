"""Files in a message: the list behind an @, /attach, and what is refused."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from textual.events import Key

from chatcache.errors import NotFoundError, UsageError
from chatcache.frontend import files
from tests.tui.conftest import Bench, Chat


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with a few files."""
    place = tmp_path / "work"
    (place / "notes").mkdir(parents=True)
    (place / ".hidden").mkdir()
    (place / "readme.md").write_text("# Read me\n")
    (place / "notes" / "todo.txt").write_text("buy milk\n")
    (place / ".hidden" / "secret.txt").write_text("hidden\n")
    (place / "image.bin").write_bytes(b"\x00\x01\xff")
    monkeypatch.chdir(place)
    return place


async def type_keys(chat: Chat, text: str) -> None:
    names = {" ": "space", "@": "at", "/": "slash", ".": "full_stop"}
    await chat.press(*(names.get(char, char) for char in text))
    await chat.idle()


async def test_a_file_behind_an_at_is_sent_with_its_text(bench: Bench, place: Path) -> None:
    async with bench.run() as chat:
        await type_keys(chat, "see @tdo")
        assert "notes/todo.txt" in chat.text
        await chat.press("down", "enter")
        await chat.idle()
        assert chat.screen.composer.text == "see [file todo.txt: 9 B] "
        await chat.press(*"now", "enter")
        await chat.idle()
        assert chat.users == ["see File todo.txt:\n```\nbuy milk\n``` now"]


async def test_what_is_typed_behind_a_file_waits_for_it(bench: Bench, place: Path) -> None:
    async with bench.run() as chat:
        await type_keys(chat, "see @tdo")
        await chat.press("down")
        for key in ("enter", "n", "o", "w", "enter", "x"):
            chat.screen.composer.post_message(Key(key, key if len(key) == 1 else None))
        await chat.until(lambda: chat.users == ["see File todo.txt:\n```\nbuy milk\n``` now"])
        assert chat.screen.composer.text == "x"


async def test_a_path_elsewhere_is_completed_step_by_step(bench: Bench, place: Path) -> None:
    async with bench.run() as chat:
        await type_keys(chat, "@./no")
        assert "./notes/" in chat.text
        await chat.press("tab")
        await chat.idle()
        assert chat.screen.composer.text == "@./notes/"
        await chat.press("tab")
        await chat.idle()
        assert chat.screen.composer.text == "[file todo.txt: 9 B] "
        await chat.press("backspace", "backspace")
        assert chat.screen.composer.text == ""


async def test_what_is_no_file_is_sent_as_it_is(bench: Bench, place: Path) -> None:
    async with bench.run() as chat:
        await type_keys(chat, "me@home @nobody")
        await chat.press("enter")
        await chat.idle()
        assert chat.users == ["me@home @nobody"]


async def test_attach_says_what_is_wrong(bench: Bench, place: Path) -> None:
    (place / "big.txt").write_bytes(b"a" * (files.MAX_BYTES + 1))
    async with bench.run() as chat:
        await chat.say("/attach readme.md")
        assert chat.screen.composer.text == "[file readme.md: 10 B] "
        chat.screen.composer.reset()
        await chat.say("/attach image.bin", "/attach notes", "/attach none", "/attach big.txt")
        assert ["no text file" in chat.notices[0], "is a directory" in chat.notices[1]] == [
            True
        ] * 2
        assert ["cannot be read" in chat.notices[2], "at most 1.0 MB" in chat.notices[3]] == [
            True
        ] * 2


def test_files_are_listed_without_what_is_hidden_or_ignored(place: Path) -> None:
    assert files.list_files(place) == ["image.bin", "readme.md", "notes/todo.txt"]
    assert files.list_directory("./no") == ["./notes/"]
    assert files.list_directory("/no/such/place") == []


def test_the_name_of_a_file_counts_more_than_its_directories() -> None:
    names = ["cache/plan.md", "cache.py", "my/cache_old.py", "c/a.he"]
    assert files.best_matches("cache", names, 9) == ["cache.py", "my/cache_old.py", "cache/plan.md"]
    assert files.best_matches("cpy", names, 9) == ["cache.py", "my/cache_old.py"]


def test_a_fence_is_longer_than_any_in_the_text() -> None:
    assert files.quoted("a.md", "````\nx\n````\n").startswith("File a.md:\n`````\n")


def test_reading_says_why_it_fails(place: Path) -> None:
    with pytest.raises(UsageError, match="no text file"):
        files.read_attachment("image.bin")
    with pytest.raises(NotFoundError, match="cannot be read"):
        files.read_attachment("missing")
    os.mkfifo("pipe")  # opening it would wait for somebody who writes
    for name in ("pipe", "/dev/zero"):
        with pytest.raises(UsageError, match="device or a pipe"):
            files.read_attachment(name)
