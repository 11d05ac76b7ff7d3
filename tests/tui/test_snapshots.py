"""The main screens as pictures. `pytest --snapshot-update` after a change that is meant."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from textual.pilot import Pilot

from chatcache.backends.local.model import shelf
from chatcache.backends.switching import SwitchingBackend
from chatcache.personas import Persona
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


async def tree(chat: Chat) -> None:
    await chat.say(*QUESTIONS, "/fork 1", "And where is it?")
    chat.app.clear_notifications()
    await chat.press("f3")
    await chat.until(lambda: "instant (RAM)" in chat.text or "RAM" in chat.text)


async def personas(chat: Chat) -> None:
    await chat.say(QUESTIONS[0])
    await chat.type("/persona")
    await chat.press("enter")
    await chat.until(lambda: "tokens to recompute" in chat.text)


async def params(chat: Chat) -> None:
    await chat.say(QUESTIONS[0], "/persona tutor", "/set seed 7", "/params")
    chat.app.clear_notifications()


async def segments(chat: Chat) -> None:
    await talk(chat)
    await chat.press("f7")
    await chat.until(lambda: "ram-0" in chat.text)


async def lens(chat: Chat) -> None:
    await talk(chat)
    await chat.type("/lens")
    await chat.press("enter")
    await chat.until(lambda: "of context" in chat.text and "What was computed?" in chat.text)


async def first_run(chat: Chat) -> None:
    await chat.until(lambda: "picks another" in chat.text)


async def models(chat: Chat) -> None:
    await chat.say(QUESTIONS[0])
    await chat.press("f5")
    await chat.until(lambda: "context of" in chat.text)
    await chat.press("down")
    await chat.until(lambda: "read anew by it" in chat.text)


async def walking(chat: Chat) -> None:
    await talk(chat)
    await chat.press("alt+up", "alt+up")
    await chat.until(lambda: "e edit" in chat.text)


SHELF = [
    shelf.ShelfModel("builtin", "built in", "Qwen3ForCausalLM", 7_300_000, 15_000_000, "any token"),
    shelf.ShelfModel(
        "org/model", "hub", "LlamaForCausalLM", 1_200_000_000, 2_400_000_000, "any token"
    ),
    shelf.ShelfModel(
        *("ollama:qwen3:0.6b", "ollama", "qwen3", 751_632_384, 522_640_000),
        quantization="Q4_K_M",
    ),
    shelf.ShelfModel("org/broken", "hub", problem="model.safetensors is missing"),
]
PERSONAS = {
    "tutor": Persona("tutor", "Explain one step at a time.", {"temperature": 0.3}),
    "editor": Persona("editor", "Mend the text, and say what you changed."),
}


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
        pytest.param(tree, WIDE, {}, id="tree-wide"),
        pytest.param(tree, NARROW, {}, id="tree-narrow"),
        pytest.param(personas, WIDE, {"personas": PERSONAS}, id="personas-wide"),
        pytest.param(params, NARROW, {"personas": PERSONAS}, id="params-narrow"),
        pytest.param(segments, WIDE, {}, id="segments-wide"),
        pytest.param(lens, WIDE, {}, id="lens-wide"),
        pytest.param(first_run, NARROW, {}, id="first-run-narrow"),
        pytest.param(models, WIDE, {}, id="models-wide"),
        pytest.param(walking, NARROW, {"theme": "ansi-dark"}, id="walking-ansi"),
        pytest.param(talk, WIDE, {"theme": "no-color"}, id="talk-no-color"),
    ],
)
def test_picture(
    still: Bench,
    monkeypatch: pytest.MonkeyPatch,
    snap_compare: SnapCompare,
    script: Script,
    size: tuple[int, int],
    options: dict[str, Any],
) -> None:
    if script in (first_run, models):
        monkeypatch.setattr(shelf, "shelf", lambda *_: SHELF)
        fake = still.backend
        still.backend = SwitchingBackend(lambda model: fake, "builtin")  # type: ignore[assignment]
    if options.get("theme") == "no-color":
        monkeypatch.setenv("NO_COLOR", "1")
        options = {}
    app = still.app(clock=lambda: CLOCK, **options)
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
