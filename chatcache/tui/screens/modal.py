"""What all dialogs have in common: each is left once, however fast the keys come."""

from __future__ import annotations

from textual.await_complete import AwaitComplete
from textual.screen import ModalScreen, ScreenResultType


class Dialog(ModalScreen[ScreenResultType]):
    """Above the chat, until it is left with a result."""

    def dismiss(self, result: ScreenResultType | None = None) -> AwaitComplete:
        """Textual takes away whatever screen is on top, also when this one is gone already."""
        if self.app.screen is not self:
            return AwaitComplete()
        return super().dismiss(result)
