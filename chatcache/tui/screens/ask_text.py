"""Asks for one line of text, such as a new name."""

from __future__ import annotations

from textual import on
from textual.app import ComposeResult
from textual.containers import Vertical
from textual.screen import ModalScreen
from textual.widgets import Input, Static

from chatcache.tui.commands import bindings


class AskTextScreen(ModalScreen[str | None]):
    """Returns the text, None when it was left or is empty."""

    BINDINGS = bindings("ask")

    def __init__(self, title: str, text: str) -> None:
        super().__init__(classes="small")
        self._title_text, self._text = title, text

    def compose(self) -> ComposeResult:
        with Vertical(classes="dialog"):
            yield Static(self._title_text, classes="dialog-title", markup=False)
            yield Input(self._text, compact=True)
            yield Static("Enter save · Esc leave", classes="dialog-keys", markup=False)

    @on(Input.Submitted)
    def _submitted(self, event: Input.Submitted) -> None:
        event.stop()
        self.dismiss(event.value.strip() or None)

    def action_leave(self) -> None:
        self.dismiss(None)
