"""Asks for one line of text, such as a new name."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from textual import on
from textual.app import App, ComposeResult
from textual.containers import Vertical
from textual.screen import ModalScreen
from textual.widgets import Input, Static

from chatcache.tui.commands import bindings

if TYPE_CHECKING:
    from chatcache.chat.service import ChatService
    from chatcache.chat.views import SessionSummary


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


async def rename_chat(app: App[Any], service: ChatService, session: SessionSummary) -> bool:
    """Ask for another name and give it; False when the name stays."""
    name = await app.push_screen_wait(AskTextScreen("Rename the chat", session.name))
    if name is None or name == session.name:
        return False
    await asyncio.to_thread(service.rename, session.session_id, name)
    return True
