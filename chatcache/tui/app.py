"""The terminal application: theme, keymap and the way out. The rest is in its screens."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, ClassVar

from textual import constants
from textual.app import App
from textual.binding import BindingType
from textual.command import CommandPalette, Provider
from textual.driver import Driver
from textual.events import Event, Key, Paste
from textual.screen import ModalScreen
from textual.theme import Theme
from textual.widgets import Input, TextArea

from chatcache.errors import did_you_mean
from chatcache.frontend import registry
from chatcache.frontend.options import ChatOptions
from chatcache.terminal.layouts import latin_of
from chatcache.tui import commands
from chatcache.tui.look import contrast, few_colours, layout
from chatcache.tui.screens.chat import ChatScreen

if TYPE_CHECKING:
    from chatcache.frontend.options import Backstage

QUIT_SECONDS = 2.0
SCREEN_SECONDS = 2.0
# Without colours (NO_COLOR) the blue of a theme would be a dark grey: greys chosen as such instead.
OWN_COLOURS = "ansi-dark"
PLAIN_THEME = Theme(
    name="no-color",
    primary="#d0d0d0",
    secondary="#b0b0b0",
    accent="#f0f0f0",
    warning="#e0e0e0",
    error="#f0f0f0",
    success="#e0e0e0",
    foreground="#e0e0e0",
    background="#121212",
    surface="#1e1e1e",
    panel="#2a2a2a",
    dark=True,
)


class ChatCacheApp(App[Exception | None]):
    """Shows a chat service. `open_backstage` is called in a thread once the screen is there; the
    caller closes what it opened. `run` returns the failure to open it; `failure` is what ended the
    program otherwise."""

    CSS_PATH = "chatcache.tcss"
    TITLE = "chatcache"
    BINDINGS: ClassVar[list[BindingType]] = commands.bindings("app")
    HORIZONTAL_BREAKPOINTS = layout.HORIZONTAL_BREAKPOINTS
    VERTICAL_BREAKPOINTS = layout.VERTICAL_BREAKPOINTS
    COMMANDS: ClassVar[set[type[Provider] | Callable[[], type[Provider]]]] = {
        commands.CommandProvider
    }

    def __init__(
        self, open_backstage: Callable[[], Backstage], options: ChatOptions | None = None
    ) -> None:
        super().__init__()
        self._open_backstage = open_backstage
        self._options = options or ChatOptions()
        self._interrupted_at = 0.0
        self.failure: Exception | None = None
        if not self._options.has_motion:
            self.animation_level = "none"

    def get_driver_class(self) -> type[Driver]:
        """Textual's own, except for a terminal and a browser, which are read in our way."""
        found = super().get_driver_class()
        if found.__name__ == "LinuxDriver":
            from chatcache.tui.driver import ChatDriver

            return ChatDriver
        if found.__name__ == "WebDriver":
            from chatcache.tui.browser import BrowserDriver

            return BrowserDriver
        return found

    def get_css_variables(self) -> dict[str, str]:
        variables = super().get_css_variables()
        if self._colours == "256":
            variables |= few_colours.backgrounds(variables)
        variables["quiet"] = contrast.quiet(variables)
        return variables

    @property
    def _colours(self) -> str | None:
        """How many colours the terminal has. Where there is none, nothing of the environment is to
        change what is drawn."""
        is_guessed = self.is_headless and constants.COLOR_SYSTEM == "auto"
        return "truecolor" if is_guessed else self.console.color_system

    def get_default_screen(self) -> ChatScreen:
        return ChatScreen(self._open_backstage, self._options)

    def on_mount(self) -> None:
        self.set_keymap(dict(self._options.keys))
        self._check_keys()
        self._leave_on_signals()
        theme = self._options.theme
        if theme is None:
            if os.environ.get("NO_COLOR"):
                self.register_theme(PLAIN_THEME)
                self.theme = PLAIN_THEME.name
            elif self._colours in ("standard", "windows"):
                self.theme = OWN_COLOURS  # of 16 colours the grey of the bars would be too light
            return
        if theme in self.available_themes:
            self.theme = theme
        else:
            hint = did_you_mean(theme, self.available_themes)
            self.notify(f"There is no theme {theme!r}. {hint}", severity="warning", markup=False)

    def _leave_on_signals(self) -> None:
        """A terminal that is closed, or a machine that shuts down, must not cost a draft."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGHUP, signal.SIGTERM):
            with contextlib.suppress(NotImplementedError, RuntimeError, ValueError):
                loop.add_signal_handler(number, self.exit)

    def _check_keys(self) -> None:
        known = set(registry.binding_ids())
        for unknown in sorted(set(self._options.keys) - known):
            hint = did_you_mean(unknown, known)
            text = f"[keys] names {unknown!r}, which is no binding. {hint}"
            self.notify(text, severity="warning", markup=False)

    # What nobody expected

    def _handle_exception(self, error: Exception) -> None:
        """Whatever ends the program: what is written is kept, and the caller tells the error."""
        if self.failure is None:
            self.failure = error
            try:
                self._keep_words()
            except Exception as second:
                error.add_note(f"What was being written could not be kept: {second!r}")
        super()._handle_exception(error)

    def _keep_words(self) -> None:
        screen = self.screen_stack[0]
        if isinstance(screen, ChatScreen):
            screen.drafts.keep_now()

    def _fatal_error(self) -> None:
        self._close_messages_no_wait()  # Textual would print a traceback, with all local variables

    # What is typed where nothing can be written

    async def on_event(self, event: Event) -> None:
        if isinstance(event, Key | Paste) and not event.is_forwarded:
            await self._wait_for_screen()
        if isinstance(event, Key | Paste) and not event.is_forwarded and not self._is_field_focused:
            screen = self.screen_stack[0]
            if isinstance(event, Key):
                event = _on_latin_key(event)
            elif isinstance(screen, ChatScreen):
                screen.composer.post_message(event)
                return
        await super().on_event(event)

    async def _wait_for_screen(self) -> None:
        """What is typed ahead of a dialog is for the dialog, and that may not be there yet."""
        chat = self.screen_stack[0]
        if isinstance(chat, ChatScreen) and len(self.screen_stack) == 1:
            await chat.wait_settled()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self.screen._mounted_event.wait(), SCREEN_SECONDS)

    def action_command_palette(self) -> None:
        """Not while the last one is still being taken down: Textual would end the program."""
        if not any(isinstance(node, CommandPalette) for node in self._nodes):
            super().action_command_palette()

    @property
    def _is_field_focused(self) -> bool:
        return isinstance(self.focused, Input | TextArea)

    # Ctrl+C

    def action_interrupt(self) -> None:
        """Copy what is selected, else leave a dialog, empty the composer, stop; twice: quit."""
        if self._copy_selection():
            return
        screen = self.screen
        if isinstance(screen, ModalScreen):
            screen.dismiss(None)
        elif isinstance(screen, ChatScreen) and (
            screen.composer.clear_text() or screen.stop_answer()
        ):
            return
        elif time.monotonic() - self._interrupted_at < QUIT_SECONDS:
            self.exit()
        else:
            self._interrupted_at = time.monotonic()
            self.notify("Press Ctrl+C again to quit.", timeout=QUIT_SECONDS, markup=False)

    def _copy_selection(self) -> bool:
        focused = self.focused
        text = focused.selected_text if isinstance(focused, Input | TextArea) else ""
        text = text or self.screen.get_selected_text() or ""
        if not text:
            return False
        self.copy_to_clipboard(text)
        self.screen.clear_selection()
        self.notify("Copied.", timeout=1.5, markup=False)
        return True

    async def action_quit(self) -> None:
        """Everything is on disk already; an answer in progress is kept as far as it got."""
        self.exit()

    def on_exit_app(self) -> None:
        """Whoever ends it: a key, a signal, a browser that was closed, a failure to begin."""
        screen = self.screen_stack[0]
        if isinstance(screen, ChatScreen):
            screen.leave()


def _on_latin_key(event: Key) -> Key:
    """A key that is a letter of another script, as the shortcut in its place."""
    character = event.character
    if character is None or len(character) != 1 or character.isascii():
        return event
    latin = latin_of(character)
    return Key(latin, latin) if latin != character else event
