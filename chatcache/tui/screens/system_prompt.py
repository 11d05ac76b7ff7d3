"""The system prompt, to be read and changed; says beforehand what a change costs."""

from __future__ import annotations

from textual.app import ComposeResult
from textual.containers import Vertical
from textual.screen import ModalScreen
from textual.widgets import Static, TextArea

from chatcache.tui.commands import bindings


class SystemPromptScreen(ModalScreen[str | None]):
    """Returns the text to use from now on, None when it was left alone."""

    BINDINGS = bindings("system")

    def __init__(self, text: str, cost: str) -> None:
        super().__init__(classes="medium")
        self._text, self._cost = text, cost

    def compose(self) -> ComposeResult:
        with Vertical(classes="dialog"):
            yield Static("System prompt", classes="dialog-title", markup=False)
            yield TextArea(self._text, placeholder="none", highlight_cursor_line=False)
            yield Static(self._cost, classes="note", markup=False)
            yield Static("Ctrl+S save · Esc leave it", classes="dialog-keys", markup=False)

    def action_save(self) -> None:
        self.dismiss(self.query_one(TextArea).text.strip())
