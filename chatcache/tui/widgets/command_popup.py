"""The list that opens above the composer: commands after a slash, files after an @."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from textual.content import Content
from textual.widgets import OptionList
from textual.widgets.option_list import Option

from chatcache.frontend.registry import Command
from chatcache.tui.look.formatting import MUTED, shorten

MAX_ROWS = 8
_BORDER, _PADDING = 2, 3  # the scrollbar is within
_BESIDE = 6  # rows of the screen that are not for the list
_MAX_WIDTH = 80
_LABEL_WIDTH = 16


@dataclass(frozen=True, slots=True)
class Offer:
    """One row. `command` is None for a file; `text` is what is typed so far, completed."""

    text: str
    label: str
    hint: str = ""
    command: Command | None = None


def command_offers(commands: Sequence[Command]) -> list[Offer]:
    return [
        Offer(f"/{command.slash} ", command.usage, command.summary, command) for command in commands
    ]


def file_offers(names: Sequence[str]) -> list[Offer]:
    return [Offer(name, name, "directory" if name.endswith("/") else "") for name in names]


class CommandPopup(OptionList, can_focus=False):
    """Driven by the composer, which keeps the focus."""

    def __init__(self) -> None:
        super().__init__(id="command-popup", markup=False)
        self._offers: list[Offer] = []
        self._has_moved = False

    @property
    def is_open(self) -> bool:
        return bool(self.display)

    @property
    def chosen(self) -> Offer | None:
        """The row that the person moved to; None as long as nobody moved."""
        return self.suggested if self._has_moved else None

    @property
    def suggested(self) -> Offer | None:
        """The row that Tab takes."""
        index = self.highlighted or 0
        return self._offers[index] if index < len(self._offers) else None

    def show(self, offers: Sequence[Offer]) -> None:
        """Offer these; none closes the list."""
        was_open = self.is_open
        self.display = bool(offers)
        if list(offers) == self._offers and was_open:
            return
        self._has_moved = False
        self._offers = list(offers)
        beside = self.screen.query_one("#writing").size.width  # never over the panel
        room = min(_MAX_WIDTH, beside - _BORDER - _PADDING)
        longest = max((len(offer.label) for offer in offers), default=0)
        has_hints = any(offer.hint and offer.command for offer in offers)
        width = min(max(_LABEL_WIDTH, room * 2 // 5) if has_hints else room, longest)
        self.set_options(Option(_drawn(offer, width, room - width)) for offer in offers)
        # Enter sends a message, whatever files it might name: none is marked unasked.
        self.highlighted = 0 if offers and offers[0].command is not None else None
        rows = max(1, min(MAX_ROWS, len(offers), self.app.size.height - _BESIDE))
        self.styles.max_height = rows + _BORDER
        self.styles.offset = (0, -rows - _BORDER)

    def close(self) -> None:
        self.display = False

    def move(self, step: int) -> None:
        if self._offers:
            self._has_moved = True
            before = -1 if self.highlighted is None and step > 0 else self.highlighted or 0
            self.highlighted = (before + step) % len(self._offers)


def _drawn(offer: Offer, width: int, room: int) -> Content:
    label = Content.styled(shorten(offer.label, width), "bold")
    hint = f"  {shorten(offer.hint, room - 2)}" if offer.hint else ""
    return label.pad_right(max(0, width - label.cell_length)) + Content.styled(hint, MUTED)
