"""Small dialogs: a question before something is done, one line of text, the system prompt."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from textual import on
from textual.app import App, ComposeResult
from textual.containers import Horizontal, Vertical
from textual.content import Content
from textual.widgets import Button, Input, Static, TextArea

from chatcache.formatting import clean
from chatcache.tui.commands import bindings
from chatcache.tui.look.formatting import MUTED
from chatcache.tui.screens.modal import Dialog
from chatcache.tui.widgets.fields import LineField, TextField

if TYPE_CHECKING:
    from chatcache.chat.service import ChatService
    from chatcache.chat.views import SessionSummary


class ConfirmScreen(Dialog[bool]):
    """True only for an explicit yes."""

    BINDINGS = bindings("confirm")
    AUTO_FOCUS = "#no"

    def __init__(self, question: str, detail: str, yes: str, no: str = "Keep") -> None:
        super().__init__(classes="small")
        self._question, self._detail = clean(question), clean(detail)
        self._yes, self._no = yes, no

    def compose(self) -> ComposeResult:
        with Vertical(classes="dialog"):
            yield Static(Content.styled(self._question, "bold"), markup=False)
            yield Static(Content.styled(self._detail, MUTED), markup=False)
            with Horizontal(classes="buttons"):
                yield Button(f"{self._yes} (y)", id="yes", variant="error", compact=True)
                yield Button(f"{self._no} (n)", id="no", variant="primary", compact=True)

    @on(Button.Pressed)
    def _pressed(self, event: Button.Pressed) -> None:
        event.stop()
        self.dismiss(event.button.id == "yes")

    def action_answer(self, is_yes: bool) -> None:
        self.dismiss(is_yes)


class AskTextScreen(Dialog[str | None]):
    """Returns the text, None when it was left or is empty."""

    BINDINGS = bindings("ask")

    def __init__(self, title: str, text: str) -> None:
        super().__init__(classes="small")
        self._title_text, self._text = title, text

    def compose(self) -> ComposeResult:
        with Vertical(classes="dialog"):
            yield Static(self._title_text, classes="dialog-title", markup=False)
            yield LineField(self._text, compact=True)
            yield Static("Enter save · Esc leave", classes="dialog-keys", markup=False)

    @on(Input.Submitted)
    def _submitted(self, event: Input.Submitted) -> None:
        event.stop()
        self.dismiss(event.value.strip() or None)


class SystemPromptScreen(Dialog[str | None]):
    """Returns the text to use from now on, None when it was left alone."""

    BINDINGS = bindings("system")

    def __init__(self, text: str, cost: str) -> None:
        super().__init__(classes="medium")
        self._text, self._cost = text, cost

    def compose(self) -> ComposeResult:
        with Vertical(classes="dialog"):
            yield Static("System prompt", classes="dialog-title", markup=False)
            yield TextField(self._text, placeholder="none", highlight_cursor_line=False)
            yield Static(self._cost, classes="note", markup=False)
            yield Static("Ctrl+S save · Esc leave it", classes="dialog-keys", markup=False)

    def action_save(self) -> None:
        self.dismiss(self.query_one(TextArea).text.strip())


async def rename_chat(app: App[Any], service: ChatService, session: SessionSummary) -> bool:
    """Ask for another name and give it; False when the name stays."""
    name = await app.push_screen_wait(AskTextScreen("Rename the chat", session.name))
    if name is None or name == session.name:
        return False
    await asyncio.to_thread(service.rename, session.session_id, name)
    return True
