"""What every group of commands has: the screen, and the refusal while an answer is written."""

from __future__ import annotations

from typing import TYPE_CHECKING

from chatcache.errors import UsageError

if TYPE_CHECKING:
    from chatcache.tui.screens.chat import ChatScreen


class ActionGroup:
    """Base of the groups; each has one method per command of the registry, named `_do_ID`."""

    def __init__(self, screen: ChatScreen) -> None:
        self._screen = screen

    def _require_idle(self) -> None:
        if self._screen.turns.running is not None:
            raise UsageError("An answer is being written.", "Esc stops it and keeps what is there.")
