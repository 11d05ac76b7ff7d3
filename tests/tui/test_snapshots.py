"""The main screens as pictures. `pytest --snapshot-update` after a change that is meant."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from textual.pilot import Pilot

from chatcache.tui.app import ChatCacheApp
from tests.fakes import CLOCK, FakeBackend, fake_model_info
from tests.tui.conftest import NARROW, WIDE, Bench, Chat

ANSWERS = [
    "A **KV cache** keeps the keys and values of every token read.\n\n"
    "- The *prompt* is read once.\n- Each new token adds one row.\n\n"
    "```python\ndef attend(q, k, v):\n    return softmax(q @ k.T) @ v\n```",
    "| model | per token |\n|---|---|\n| Qwen3 0.6B | 112 KiB |\n\nLine one,\nline two.",
]
QUESTIONS = ["What is a KV cache?", "How big is it?\nIn bytes."]
SnapCompare = Callable[..., bool]
Script = Callable[[Chat], Awaitable[None]]


@pytest.fixture
def still(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> Bench:
    """A bench on which time stands still."""
    monkeypatch.setattr(time, "time_ns", lambda: int(CLOCK * 1e9))
    info = fake_model_info("builtin")
    bench.backend = FakeBackend(ANSWERS, info=info, tokens_per_char=3, starts_ready=True)
    return bench


async def empty(chat: Chat) -> None:
    """Nothing was said."""


async def talk(chat: Chat) -> None:
    await chat.say(*QUESTIONS)


async def fork_picker(chat: Chat) -> None:
    await talk(chat)
    await chat.press("f4")
    await chat.until(lambda: "1 you" in chat.text)


async def chats(chat: Chat) -> None:
    await chat.say(QUESTIONS[0], "/undo", "/new", "Something else")
    chat.app.clear_notifications()
    await chat.until(lambda: "Forked" not in chat.text)
    await chat.press("ctrl+s")
    await chat.until(lambda: "● Something" in chat.text)


async def command_list(chat: Chat) -> None:
    await chat.say(QUESTIONS[0])
    await chat.press("/", "s")


async def trouble(chat: Chat) -> None:
    await chat.say(QUESTIONS[0], "/frok")


async def help_screen(chat: Chat) -> None:
    await chat.press("f1")
    await chat.until(lambda: "Keys and commands" in chat.text)


@pytest.mark.parametrize(
    ("script", "size", "options"),
    [
        pytest.param(empty, WIDE, {}, id="empty-wide"),
        pytest.param(talk, WIDE, {}, id="talk-wide"),
        pytest.param(talk, NARROW, {}, id="talk-narrow"),
        pytest.param(talk, WIDE, {"theme": "textual-light"}, id="talk-light"),
        pytest.param(fork_picker, WIDE, {}, id="fork-wide"),
        pytest.param(fork_picker, NARROW, {}, id="fork-narrow"),
        pytest.param(chats, WIDE, {}, id="chats-wide"),
        pytest.param(command_list, NARROW, {}, id="commands-narrow"),
        pytest.param(trouble, NARROW, {}, id="trouble-narrow"),
        pytest.param(help_screen, WIDE, {}, id="help-wide"),
    ],
)
def test_picture(
    still: Bench,
    snap_compare: SnapCompare,
    script: Script,
    size: tuple[int, int],
    options: dict[str, Any],
) -> None:
    app = ChatCacheApp(still.service(), clock=lambda: CLOCK, **options)
    still.backend.start()

    async def prepare(pilot: Pilot[None]) -> None:
        chat = Chat(app, pilot, still)
        app.animation_level = "none"
        await chat.until(lambda: chat.app.screen.query("#breadcrumb, #panel-lines"))
        chat.screen.composer.cursor_blink = False
        await chat.idle()
        await script(chat)
        app.clear_notifications()
        await pilot.pause()

    assert snap_compare(app, terminal_size=size, run_before=prepare)
