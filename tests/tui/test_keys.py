"""Keys, remapping, sizes, themes and the ways in and out."""

from __future__ import annotations

import pytest
from textual.theme import BUILTIN_THEMES
from textual.widgets import Input

from chatcache.backends.switching import SwitchingBackend
from chatcache.frontend import registry
from chatcache.tui import commands
from chatcache.tui.look import layout
from chatcache.tui.screens.dialogs import SystemPromptScreen
from chatcache.tui.widgets.cache_panel import CacheLine, CachePanel
from tests.fakes import FakeBackend
from tests.tui.conftest import NARROW, Bench


def test_every_binding_has_its_own_id() -> None:
    ids = list(registry.binding_ids())
    assert len(set(ids)) == len(ids)
    for scope in registry.SCOPE_TITLES:
        for binding in commands.bindings(scope):
            assert not isinstance(binding, tuple)
            assert binding.id in ids


def test_no_two_bindings_of_a_scope_share_a_key() -> None:
    for scope in registry.SCOPE_TITLES:
        keys: list[str] = []
        for binding in commands.bindings(scope):
            assert not isinstance(binding, tuple)
            keys += binding.key.split(",")
        assert len(set(keys)) == len(keys)


def test_no_command_needs_a_key_that_terminals_mistake() -> None:
    mistaken = {"ctrl+i", "ctrl+m", "ctrl+h", "ctrl+left_square_bracket"}
    for command in registry.COMMANDS:
        keys = set(command.keys.split(","))
        assert not keys or keys - mistaken


@pytest.mark.parametrize("key", ["f2", "ctrl+b"])
async def test_the_panel_goes_from_full_to_a_line_to_nothing(bench: Bench, key: str) -> None:
    async with bench.run() as chat:
        panel, line = chat.screen.query_one(CachePanel), chat.screen.query_one(CacheLine)
        shapes = []
        for _ in range(4):
            shapes.append((panel.display, line.display))
            await chat.press(key)
        assert shapes == [(True, False), (False, True), (False, False), (True, False)]


async def test_the_panel_mode_can_be_said(bench: Bench) -> None:
    async with bench.run(panel="off") as chat:
        assert not chat.screen.query_one(CachePanel).display
        await chat.say("/cache full")
        assert chat.screen.query_one(CachePanel).display
        await chat.say("/cache big")
        assert "no panel mode" in chat.notices[0]


async def test_below_a_hundred_columns_the_panel_is_a_line(bench: Bench) -> None:
    async with bench.run() as chat:
        await chat.say("one", "two")
        panel, line = chat.screen.query_one(CachePanel), chat.screen.query_one(CacheLine)
        await chat.pilot.resize_terminal(80, 24)
        await chat.until(lambda: line.display and not panel.display)
        assert "CACHE  ⟲ hit" in chat.text
        await chat.press("f2", "f2")
        assert panel.display
        await chat.pilot.resize_terminal(120, 36)
        await chat.until(lambda: panel.display and not line.display)
        await chat.until(lambda: chat.screen.transcript.styles.padding.left == 1)


@pytest.mark.parametrize("size", [(60, 20), (40, 10), (300, 80)])
async def test_everything_works_at_any_size(bench: Bench, size: tuple[int, int]) -> None:
    async with bench.run(size) as chat:
        await chat.say("one", "two")
        assert "You said: two" in chat.text
        await chat.press("f4")
        await chat.until(lambda: "all the" in " ".join(chat.text.split()))
        await chat.press("escape", "f1")
        await chat.until(lambda: "Keys and commands" in chat.text)
        await chat.press("escape")


async def test_a_terminal_that_is_too_small_is_told_so(bench: Bench) -> None:
    async with bench.run() as chat:
        await chat.pilot.resize_terminal(39, 9)
        await chat.until(lambda: "39 × 9" in chat.text)
        assert "40 × 10" in chat.text
        await chat.pilot.resize_terminal(80, 24)
        await chat.until(lambda: "Say something" in chat.text)


def test_long_lines_stay_readable_on_a_wide_screen() -> None:
    assert layout.side_margin(80) == 1
    assert 300 - 2 * layout.side_margin(300) == layout.READING_WIDTH


async def test_keys_can_be_remapped(bench: Bench) -> None:
    async with bench.run(keys={"new": "f9", "composer.send": "ctrl+e"}) as chat:
        await chat.type("hello")
        await chat.press("ctrl+e")
        await chat.idle()
        assert chat.users == ["hello"]
        await chat.press("ctrl+n")
        await chat.idle()
        assert chat.users == ["hello"]
        await chat.press("f9")
        await chat.idle()
        assert chat.users == []


async def test_an_unknown_binding_is_named(bench: Bench) -> None:
    async with bench.run(keys={"frok": "f9"}) as chat:
        assert any("'frok'" in toast and "'fork'" in toast for toast in chat.toasts)


async def test_walking_leaves_the_view_where_it_is(bench: Bench) -> None:
    async with bench.run() as chat:
        await chat.say("one", "two")
        offset = chat.screen.transcript.scroll_y
        before = chat.text
        await chat.press("alt+up", "alt+up", "alt+up", "alt+up", "alt+up", "pageup", "pagedown")
        assert chat.screen.transcript.scroll_y == offset
        await chat.press("escape")
        assert chat.screen.composer.has_focus
        assert chat.text == before


OPENERS: dict[registry.Scope, str] = {
    "app": "",
    "chat": "",
    "composer": "/",
    "message": "alt+up",
    "list": "f4",
    "sessions": "ctrl+s",
    "tree": "f3",
    "segments": "f7",
    "models": "f5",
    "lens": "f6",
    "ask": "ctrl+s f2",
    "confirm": "alt+up x",
    "help": "f1",
}


ON_THE_CHAT = ("app", "chat", "composer", "message")


@pytest.mark.parametrize("scope", OPENERS)
async def test_every_key_is_bound_where_it_belongs(bench: Bench, scope: registry.Scope) -> None:
    bench.backend = SwitchingBackend(  # type: ignore[assignment]
        lambda model: FakeBackend(model=model, starts_ready=True), "builtin"
    )
    bench.backend.is_started = False
    num_screens = 1 if scope in ON_THE_CHAT else 3 if scope == "ask" else 2
    async with bench.run() as chat:
        await chat.say("one")
        for key in OPENERS[scope].split():
            await chat.press(key)
        await chat.until(lambda: len(chat.app.screen_stack) == num_screens)
        bound = chat.app.screen.active_bindings
        wanted = {key.id: key.keys for key in registry.KEYS if key.scope == scope}
        if scope == "chat":
            wanted |= {one.id: one.keys for one in registry.COMMANDS if one.keys}
        for binding_id, keys in wanted.items():
            for key in keys.split(","):
                assert bound[key].binding.id == binding_id, key


async def test_the_system_prompt_has_its_keys(bench: Bench) -> None:
    async with bench.run() as chat:
        await chat.type("/system")
        await chat.press("enter")
        await chat.until(lambda: isinstance(chat.app.screen, SystemPromptScreen))
        bound = chat.app.screen.active_bindings
        assert bound["ctrl+s"].binding.id == "system.save"
        assert bound["escape"].binding.id == "system.close"


async def test_the_keys_of_a_message_are_shown_while_one_walks(bench: Bench) -> None:
    async with bench.run(NARROW) as chat:
        await chat.say("one")
        assert "F1 help" in chat.text
        await chat.press("alt+up")
        await chat.until(lambda: "e edit" in chat.text and "x delete" in chat.text)
        await chat.press("escape")
        await chat.until(lambda: "F1 help" in chat.text)


async def test_nothing_moves_by_itself_when_that_is_switched_off(bench: Bench) -> None:
    async with bench.run(has_motion=False) as chat:
        assert chat.app.animation_level == "none"
        assert not chat.screen.composer.cursor_blink
        await chat.press("ctrl+s")
        await chat.until(lambda: len(chat.app.screen_stack) == 2)
        assert not chat.app.screen.query_one(Input).cursor_blink
    async with bench.run() as chat:
        assert chat.screen.composer.cursor_blink


async def test_without_colours_the_greys_are_told_apart(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    async with bench.run() as chat:
        assert chat.app.theme == "no-color"
    async with bench.run(theme="nord") as chat:
        assert chat.app.theme == "nord"


@pytest.mark.parametrize("theme", [*sorted(BUILTIN_THEMES)[:3], "textual-light"])
async def test_themes(bench: Bench, theme: str) -> None:
    async with bench.run(theme=theme) as chat:
        await chat.say("one")
        assert chat.app.theme == theme
        assert "You said: one" in chat.text


async def test_an_unknown_theme_is_named(bench: Bench) -> None:
    async with bench.run(theme="gruvbx") as chat:
        assert any("Did you mean 'gruvbox'" in toast for toast in chat.toasts)


async def test_escape_takes_a_panel_away_that_covers_the_chat(bench: Bench) -> None:
    async with bench.run(NARROW) as chat:
        await chat.say("one")
        await chat.press("alt+up", "i")
        await chat.until(lambda: chat.screen.shown_panel_mode == "full")
        await chat.press("escape")
        assert chat.screen.shown_panel_mode == "compact"


async def test_typing_on_a_message_writes_what_is_no_action_on_it(bench: Bench) -> None:
    async with bench.run() as chat:
        await chat.say("one")
        await chat.press("alt+up")
        assert chat.screen.transcript.focused_block is not None
        await chat.press("W", "h", "y", "question_mark")
        assert chat.screen.composer.text == "Why?"
        await chat.press("ctrl+u", "alt+up", "ctrl+end")
        assert chat.screen.focused is chat.screen.composer
