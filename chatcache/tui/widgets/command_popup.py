"""The list of commands that opens above the composer after a slash."""

from __future__ import annotations

from collections.abc import Sequence

from textual.content import Content
from textual.widgets import OptionList
from textual.widgets.option_list import Option

from chatcache.tui.commands import Command
from chatcache.tui.formatting import shorten
from chatcache.tui.styles import MUTED

MAX_ROWS = 8
_BORDER = 2
_BESIDE = 6  # rows of the screen that are not for the list


class CommandPopup(OptionList, can_focus=False):
    """Driven by the composer, which keeps the focus."""

    def __init__(self) -> None:
        super().__init__(id="command-popup", markup=False)
        self._commands: list[Command] = []

    @property
    def is_open(self) -> bool:
        return bool(self.display)

    @property
    def chosen(self) -> Command | None:
        return None if self.highlighted is None else self._commands[self.highlighted]

    def show(self, commands: Sequence[Command]) -> None:
        """Offer these commands; none closes the list."""
        self.display = bool(commands)
        if list(commands) == self._commands:
            return
        self._commands = list(commands)
        width = max((len(command.usage) for command in commands), default=0)
        room = self.app.size.width - width - _BORDER - 8
        self.set_options(
            Option(
                Content.assemble(
                    (f"{command.usage:<{width}}", "bold"),
                    (f"  {shorten(command.summary, room)}", MUTED),
                )
            )
            for command in commands
        )
        if commands:
            self.highlighted = 0
        rows = max(1, min(MAX_ROWS, len(commands), self.app.size.height - _BESIDE))
        self.styles.max_height = rows + _BORDER
        self.styles.offset = (0, -rows - _BORDER)

    def close(self) -> None:
        self.display = False

    def move(self, step: int) -> None:
        if self._commands:
            self.highlighted = ((self.highlighted or 0) + step) % len(self._commands)
