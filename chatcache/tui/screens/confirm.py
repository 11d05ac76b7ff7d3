"""A question before something that cannot be undone. The safe answer has the focus."""

from __future__ import annotations

from textual import on
from textual.app import ComposeResult
from textual.containers import Horizontal, Vertical
from textual.content import Content
from textual.screen import ModalScreen
from textual.widgets import Button, Static

from chatcache.formatting import clean
from chatcache.tui.commands import bindings
from chatcache.tui.look.styles import MUTED


class ConfirmScreen(ModalScreen[bool]):
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
