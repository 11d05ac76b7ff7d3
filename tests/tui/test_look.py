"""What a careful eye would find: contrast, rows on one line, nothing over something else."""

from __future__ import annotations

import pytest
from rich.color import ColorSystem
from textual import constants
from textual.color import Color
from textual.content import Content
from textual.theme import BUILTIN_THEMES

from chatcache.backends.base import BackendFailed, ModelReady
from chatcache.errors import EngineDiedError, ModelLoadError
from chatcache.tui.look import few_colours
from chatcache.tui.look.contrast import quiet, ratio
from chatcache.tui.look.formatting import gist
from chatcache.tui.screens.tree import TreeScreen
from chatcache.tui.widgets.command_popup import CommandPopup
from chatcache.tui.widgets.words import Words
from tests.tui.conftest import NARROW, WIDE, Bench, plain


@pytest.mark.parametrize("name", [name for name, theme in BUILTIN_THEMES.items() if not theme.ansi])
def test_notes_are_as_quiet_as_they_may_be(name: str) -> None:
    variables = BUILTIN_THEMES[name].to_color_system().generate()
    text = Color.parse(quiet(variables))
    behind = Color.parse(variables["background"])
    shown, full = behind.blend(text.with_alpha(1), text.a), text.with_alpha(1)
    assert ratio(behind, shown) >= min(4.5, 0.7 * ratio(behind, full))
    assert 0.6 <= text.a <= 0.86


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("| a | b | |---|--:| | 1 | 2 |", "a · b · 1 · 2"),
        ("# Head\n\n- **bold** `code`", "Head\n\nbold code"),
        ("a | b --- no table, __init__ and 2 * 3", "a | b --- no table, __init__ and 2 * 3"),
    ],
)
def test_a_gist_has_no_signs_of_markdown(text: str, shown: str) -> None:
    assert gist(text) == shown


async def test_the_list_of_commands_stays_beside_the_panel(bench: Bench) -> None:
    async with bench.run(WIDE) as chat:
        await chat.press("/")
        await chat.until(lambda: chat.screen.query_one(CommandPopup).is_open)
        popup, column = chat.screen.query_one(CommandPopup), chat.screen.query_one("#column")
        assert popup.region.right <= column.region.right


@pytest.mark.parametrize("size", [(60, 20), NARROW])
async def test_rows_of_a_list_stay_on_one_line(bench: Bench, size: tuple[int, int]) -> None:
    async with bench.run(size) as chat:
        await chat.say("What is a KV cache?", "/fork 0", "Something else, and longer than that")
        await chat.press("f3")
        await chat.until(lambda: isinstance(chat.app.screen, TreeScreen) and "now" in chat.text)
        rows = [line for line in chat.text.splitlines() if " now" in line]
        assert all("RAM" in row for row in rows), chat.text


async def test_the_keys_shown_fit_the_moment(bench: Bench) -> None:
    async with bench.run(NARROW) as chat:
        hints = chat.screen.query_one("#hints")
        assert plain(hints) == "F1 help   F5 models   Ctrl+S chats   F2 cache"
        await chat.say("one")
        assert plain(hints) == "F1 help   F4 fork   Ctrl+S chats   F2 cache"
        died = EngineDiedError("The engine ended.", "")
        bench.backend.emit(BackendFailed(died, will_restart=True))
        await chat.until(lambda: plain(hints) == "")
        bench.backend.emit(bench.backend.snapshot())
        bench.backend.emit(ModelReady(bench.backend.info))
        await chat.until(lambda: plain(hints) == "F1 help   F4 fork   Ctrl+S chats   F2 cache")
        await chat.say("/new")
        assert plain(hints) == "F1 help   F5 models   Ctrl+S chats   F2 cache"
        await chat.say("/switch one")
        assert plain(hints) == "F1 help   F4 fork   Ctrl+S chats   F2 cache"
        bench.backend.emit(BackendFailed(ModelLoadError("No model.", "Pick one.")))
        await chat.until(lambda: plain(hints) == "F5 models   F1 help")


async def test_words_ask_for_a_layout_only_when_they_need_other_room(bench: Bench) -> None:
    async with bench.run() as chat:
        layouts: list[bool] = []
        state = chat.screen.query_one("#state", Words)
        state.update = lambda content, *, layout=True: layouts.append(layout)  # type: ignore[method-assign]
        for text in ("one", "one", "a longer one"):
            state.say(Content(text))
        model = chat.screen.query_one("#model-name", Words)
        model.update = lambda content, *, layout=True: layouts.append(layout)  # type: ignore[method-assign]
        model.say(Content("another width"))
        assert layouts == [False, False, True]


def test_with_256_colours_the_bars_are_grey_not_navy() -> None:
    dark = few_colours.backgrounds(
        {"background": "#121212", "surface": "#1E1E1E", "panel": "#242F38"}
    )
    for name, color in dark.items():
        found = Color.parse(color)
        assert found.r == found.g == found.b, name
        # What is in the palette is sent as it is.
        code = found.rich_color.downgrade(ColorSystem.EIGHT_BIT)
        assert tuple(code.get_truecolor()) == found.rgb
    own = {"background": "ansi_default", "surface": "ansi_default", "panel": "ansi_default"}
    assert few_colours.backgrounds(own) == {}


async def test_the_theme_is_drawn_with_the_colours_that_a_terminal_has(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "COLOR_SYSTEM", "256")
    async with bench.run() as chat:
        panel = Color.parse(chat.app.get_css_variables()["panel"])
        assert panel.r == panel.g == panel.b


@pytest.mark.parametrize(
    ("width", "shown", "left_out"),
    [
        (120, "F2 cache", ""),
        (80, "F2 cache", ""),
        (60, "F2 cache", ""),
        (42, "F4 fork", "F2 cache"),
    ],
)
async def test_as_many_keys_are_shown_as_have_room(
    bench: Bench, width: int, shown: str, left_out: str
) -> None:
    async with bench.run((width, 24)) as chat:
        await chat.say("one")
        last = chat.text.splitlines()[-1]
        assert shown in last
        assert not left_out or left_out not in last
        # What stands where one writes is whole, too.
        line = next(line for line in chat.text.splitlines() if "Say something." in line)
        assert "commands" in line


@pytest.mark.parametrize("width", [100, 60, 44])
async def test_no_key_of_a_dialog_is_broken_or_cut(bench: Bench, width: int) -> None:
    async with bench.run((width, 24)) as chat:
        await chat.say("one")
        for key in ("f4", "f3", "ctrl+s"):
            await chat.press(key)
            await chat.until(lambda: "Esc close" in chat.text)
            await chat.press("escape")
        await chat.press("f6")
        await chat.until(lambda: "Esc close" in chat.text)


async def test_with_16_colours_the_terminal_s_own_are_taken(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "COLOR_SYSTEM", "standard")
    async with bench.run() as chat:
        assert chat.app.theme == "ansi-dark"
    async with bench.run(theme="nord") as chat:
        assert chat.app.theme == "nord"
