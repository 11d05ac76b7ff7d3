"""The dialogs: fork picker, chats, tree, help, palette."""

from __future__ import annotations

import pytest

from chatcache.backends.base import CostEstimate
from chatcache.chat.service import ChatService
from chatcache.chat.views import ForkPoint
from chatcache.errors import StorageError
from chatcache.tui.screens.chat import ChatScreen
from chatcache.tui.screens.fork import ForkChoice, fork_rows
from chatcache.tui.screens.sessions import SessionsScreen
from tests.fakes import FakeBackend
from tests.tui.conftest import NARROW, Bench, Chat

RAM = CostEstimate(100, 0, 0, 0.0)


def point(turn: int, answer: str = "answer") -> ForkPoint:
    return ForkPoint(turn, f"question {turn}" if turn else "", answer, turn * 10, RAM)


def test_fork_rows_are_newest_first_and_begin_with_everything() -> None:
    rows = fork_rows([point(2), point(1), point(0, "")])
    assert [(row.turn, row.who) for row in rows] == [
        ("", "all"),
        ("2", "answer"),
        ("2", "you"),
        ("1", "answer"),
        ("1", "you"),
        ("0", "system"),
    ]
    assert rows[0].choice == ForkChoice(None, None)
    assert rows[1].choice == ForkChoice(2, None)
    assert rows[2].choice == ForkChoice(1, "question 2")
    assert rows[2].point.num_tokens == 10


def test_a_turn_without_an_answer_can_only_be_edited() -> None:
    assert [row.who for row in fork_rows([point(1, ""), point(0, "")])] == ["all", "you", "system"]
    assert fork_rows([]) == []


async def open_list(chat: Chat, key: str, needle: str) -> None:
    await chat.press(*key.split(" "))
    await chat.until(lambda: needle in chat.text)


async def chosen(chat: Chat, *keys: str) -> None:
    await chat.press(*keys)
    await chat.until(lambda: isinstance(chat.app.screen, ChatScreen))
    await chat.idle()


@pytest.mark.parametrize("key", ["f4", "ctrl+f", "escape escape"])
async def test_the_fork_picker_shows_costs_and_keeps_an_answer(bench: Bench, key: str) -> None:
    async with bench.run() as chat:
        await chat.say("one", "two")
        await open_list(chat, key, "the whole conversation")
        assert "instant (RAM)" in chat.text
        await chosen(chat, "down", "down", "down", "enter")
        assert chat.users == ["one"]
        assert chat.screen.composer.text == ""
        assert "⑂ from one" in chat.title


async def test_forking_at_a_message_puts_it_into_the_composer(bench: Bench) -> None:
    async with bench.run(NARROW) as chat:
        await chat.say("one", "two")
        await open_list(chat, "f4", "the whole conversation")
        await chosen(chat, "down", "down", "enter")
        assert chat.users == ["one"]
        assert chat.screen.composer.text == "two"


async def test_the_first_row_keeps_everything_and_the_filter_finds(bench: Bench) -> None:
    async with bench.run() as chat:
        await chat.say("apples", "pears")
        await open_list(chat, "f4", "the whole conversation")
        await chosen(chat, "enter")
        assert chat.users == ["apples", "pears"]
        await open_list(chat, "f4", "the whole conversation")
        await chosen(chat, *"apples", "down", "enter")
        assert chat.users == []
        assert chat.screen.composer.text == "apples"


async def test_chats_are_opened_filtered_and_searched(bench: Bench) -> None:
    async with bench.run() as chat:
        await chat.say("about apples", "and more of rutabaga", "/new", "about pears")
        await open_list(chat, "ctrl+s", "● about pears")
        await chosen(chat, *"apples", "enter")
        assert chat.users[0] == "about apples"
        await open_list(chat, "ctrl+s", "● about apples")
        await chat.press(*"rutab")
        await chat.until(lambda: "turn 2" in chat.text)
        await chosen(chat, "enter")
        assert chat.users[0] == "about apples"


async def test_one_character_can_be_a_word(bench: Bench) -> None:
    async with bench.run() as chat:
        await chat.say("about apples", "来週は京都へ行く", "/new", "about pears")
        await open_list(chat, "ctrl+s", "● about pears")
        await chat.press("京")
        await chat.until(lambda: "turn 2" in chat.text)


async def test_a_deleted_chat_comes_back_until_the_list_is_closed(bench: Bench) -> None:
    async with bench.run() as chat:
        await chat.say("one", "/new", "two")
        await open_list(chat, "ctrl+s", "● two")
        await chat.press("f8")
        assert "Deleted “two”. Ctrl+Z brings it back" in chat.text
        assert len(chat.service.list_sessions()) == 2
        await chat.press("ctrl+z")
        assert "● two" in chat.text
        await chat.press("f8")
        await chosen(chat, "escape")
        assert [session.name for session in chat.service.list_sessions()] == ["one"]
        assert chat.title == "chatcache › one"


async def test_a_chat_is_renamed_in_the_list(bench: Bench) -> None:
    async with bench.run() as chat:
        await chat.say("one")
        await open_list(chat, "ctrl+s", "● one")
        await open_list(chat, "f2", "Rename the chat")
        await chat.press("end", *" more", "enter")
        await chat.until(lambda: isinstance(chat.app.screen, SessionsScreen))
        await chat.until(lambda: "● one more" in chat.text)
        await chosen(chat, "escape")
        assert chat.title == "chatcache › one more"


async def test_chats_are_pinned_and_sorted(bench: Bench) -> None:
    async with bench.run() as chat:
        await chat.say("banana", "and more", "/new", "apple", "/new", "cherry")

        def order() -> list[str]:
            words = ("banana", "apple", "cherry")
            rows = chat.text.split(" used")[1].split("on fake")[0].splitlines()
            return [word for row in rows for word in words if f"{word}  " in row]

        await open_list(chat, "ctrl+s", "● cherry")
        assert order() == ["cherry", "apple", "banana"]
        await chat.press("f7")
        assert "Sorted by name." in chat.text
        assert order() == ["apple", "banana", "cherry"]
        await chat.press("f7")
        assert "Sorted by length." in chat.text
        assert order()[0] == "banana"
        await chat.press("f7", "f6")
        await chat.until(lambda: "* cherry" in chat.text)
        assert "it stays at the top" in chat.text
        await chat.press("f7")
        assert order() == ["cherry", "apple", "banana"]
        await chosen(chat, "escape")
    async with bench.run() as chat:
        await open_list(chat, "ctrl+s", "* cherry")
        await chat.press("f6")
        await chat.until(lambda: "No longer pinned." in chat.text)
        await chosen(chat, "escape")


async def test_an_empty_list_says_so(bench: Bench) -> None:
    async with bench.run() as chat:
        await open_list(chat, "ctrl+s", "There are no chats yet.")
        await chosen(chat, "enter", "escape")


async def branched(chat: Chat) -> None:
    """`one` of two turns, and a fork behind its first one that said something else."""
    await chat.say("one", "two", "/fork 1", "zwei")
    chat.app.clear_notifications()


@pytest.mark.parametrize("key", ["f3", "ctrl+t"])
async def test_the_tree_switches_to_a_branch(bench: Bench, key: str) -> None:
    async with bench.run() as chat:
        await branched(chat)
        await open_list(chat, key, "★ one")
        await chat.until(lambda: "instant (RAM)" in chat.text)
        rows = [line for line in chat.text.splitlines() if "RAM  " in line]
        assert ["├─● 2" in row for row in rows] == [False, True, False]
        await chosen(chat, "down", "enter")
        assert chat.users == ["one", "two"]


async def test_the_tree_is_filtered_and_forks(bench: Bench) -> None:
    async with bench.run() as chat:
        await branched(chat)
        await open_list(chat, "f3", "★ one")
        await chat.press(*"two")
        await chat.until(lambda: "├─" not in chat.text)
        await chosen(chat, "f4")
        assert chat.users == ["one", "two"]
        assert chat.title == "chatcache › one (fork) (2)  ⑂ from one"


async def test_a_branch_is_renamed_and_deleted_in_the_tree(bench: Bench) -> None:
    async with bench.run() as chat:
        await branched(chat)
        await open_list(chat, "f3", "★ one")
        await open_list(chat, "f2", "Rename the chat")
        await chat.press("end", *" two", "enter")
        await chat.until(lambda: "one (fork) two" in chat.text and "★ one" in chat.text)
        await open_list(chat, "f8", "Delete this branch?")
        assert "1 turn, with all K and V." in chat.text
        await chat.press("y")
        await chat.until(lambda: "Deleted 1 turn." in chat.text)
        await chosen(chat, "escape")
        assert chat.title == "chatcache › one"
        assert chat.users == ["one", "two"]


async def test_only_one_path_is_kept(bench: Bench) -> None:
    async with bench.run() as chat:
        await branched(chat)
        await open_list(chat, "f3", "★ one")
        await open_list(chat, "f6", "Keep only the path to turn 2?")
        await chat.press("n")
        await open_list(chat, "f6", "Keep only the path to turn 2?")
        await chat.press("y")
        await chat.until(lambda: "Deleted 1 turn." in chat.text)
        await chosen(chat, "escape")
        assert [session.name for session in chat.service.list_sessions()] == ["one (fork)"]
        assert chat.users == ["one", "zwei"]


async def test_another_answer_can_be_followed_and_deleted(bench: Bench) -> None:
    bench.backend = FakeBackend(["red", "green"], starts_ready=True)
    async with bench.run() as chat:
        await chat.say("A colour?", "/regen")
        await open_list(chat, "f3", "answer: red")
        await chosen(chat, "up", "enter")
        assert chat.answers == ["red"]
        await open_list(chat, "f3", "answer: green")
        await open_list(chat, "f8", "Delete this branch?")
        assert "This chat goes on" in chat.text
        await chat.press("y")
        await chat.until(lambda: "Deleted 1 message." in chat.text)
        await chosen(chat, "escape")
        assert chat.answers == ["green"]


async def test_a_running_answer_keeps_the_tree_as_it_is(bench: Bench) -> None:
    async with bench.run() as chat:
        await branched(chat)
        gate = bench.backend.gate("delta:1")
        await chat.type("slow")
        await chat.press("enter")
        await chat.until(lambda: gate.arrived.is_set())
        await open_list(chat, "f3", "★ one")
        await chat.press("f8")
        assert "An answer is being written." in chat.text
        await chat.press("down", "enter")
        assert "An answer is being written." in chat.text
        gate.open()
        await chosen(chat, "escape")


@pytest.mark.parametrize(("key", "method"), [("f4", "fork_points"), ("ctrl+s", "list_sessions")])
async def test_a_picker_without_its_items_says_why_and_closes(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, key: str, method: str
) -> None:
    async with bench.run() as chat:
        await chat.say("one")

        def fail(*arguments: object) -> None:
            raise StorageError("The chats cannot be read.", "Look at the disk.")

        monkeypatch.setattr(ChatService, method, fail)
        await chat.press(key)
        await chat.until(lambda: "The chats cannot be read. Look at the disk." in chat.toasts)
        await chat.until(lambda: isinstance(chat.app.screen, ChatScreen))


async def test_help_lists_every_key_as_it_is_bound(bench: Bench) -> None:
    async with bench.run(keys={"fork": "f9"}) as chat:
        await open_list(chat, "f1", "Keys and commands")
        line = next(line for line in chat.text.splitlines() if "/fork" in line)
        assert "F9" in line
        assert "F4" not in line


async def test_the_palette_runs_commands(bench: Bench) -> None:
    async with bench.run() as chat:
        await chat.press("ctrl+p")
        await chat.until(lambda: "/regen" in chat.text)
        await chat.press(*"cache panel")
        await chat.until(lambda: "full, one line, off" in chat.text)
        await chat.press("down", "enter")
        await chat.until(lambda: chat.screen.panel_mode == "compact")
