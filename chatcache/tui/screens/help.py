"""F1: every key and every command, from the registry, as they are bound now."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from textual.app import ComposeResult
from textual.containers import Vertical, VerticalScroll
from textual.content import Content
from textual.widgets import Static

from chatcache.frontend.registry import CHATS, COMMANDS, KEYS, SCOPE_TITLES, TALK, VIEW, key_words
from chatcache.tui.commands import bindings
from chatcache.tui.look.formatting import MUTED, TITLE
from chatcache.tui.screens.modal import Dialog

_KEY_COLUMN, _KEYS_OF_COMMAND = 32, 14
_SLASH_COLUMN = 2 + max(len(command.usage) for command in COMMANDS)
_TWO_LINES_BELOW = 112


class HelpScreen(Dialog[None]):
    """Scrolls; any of its keys closes it."""

    BINDINGS = bindings("help")

    def __init__(self, keymap: Mapping[str, str]) -> None:
        super().__init__()
        self._keymap = keymap

    def compose(self) -> ComposeResult:
        with Vertical(classes="dialog"):
            yield Static("Keys and commands", classes="dialog-title", markup=False)
            with VerticalScroll():
                yield Static(Content("\n").join(self._lines()), markup=False)
            yield Static("↑ ↓ scroll · Esc close", classes="dialog-keys", markup=False)

    def _lines(self) -> Iterator[Content]:
        for group in (TALK, CHATS, VIEW):
            yield Content.styled(group, TITLE)
            for command in COMMANDS:
                if command.group == group:
                    keys = ", ".join(key_words(command.id, self._keymap))
                    yield self._entry(command.usage, keys, command.summary)
            yield Content("")
        for scope, title in SCOPE_TITLES.items():
            yield Content.styled(title, TITLE)
            for key in KEYS:
                if key.scope == scope:
                    keys = ", ".join(key_words(key.id, self._keymap))
                    yield Content.assemble(
                        (f"{keys:<{_KEY_COLUMN}}", "bold"),
                        f"{key.summary}  ",
                        (key.id, MUTED),
                    )
            yield Content("")
        yield Content("Other keys: [keys] in the config file, by the ids on the right.")

    def _entry(self, usage: str, keys: str, summary: str) -> Content:
        """One command; on a narrow screen what it does stands below it."""
        parts = [
            (f"{usage:<{_SLASH_COLUMN}}", "bold"),
            (f"{keys:<{_KEYS_OF_COMMAND}}", "bold $text-accent"),
        ]
        start = "\n  " if self.app.size.width < _TWO_LINES_BELOW else ""
        return Content.assemble(*parts, f"{start}{summary}")
