"""The common shape of all pickers: a filter, a list, a preview, a line of keys.

Owns filtering and moving. What a row means is for the screen that inherits.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from textual import on
from textual.app import ComposeResult
from textual.containers import Vertical
from textual.content import Content
from textual.events import Resize
from textual.screen import ModalScreen
from textual.widgets import Input, OptionList, Static
from textual.widgets.option_list import Option

from chatcache.tui.commands import bindings
from chatcache.tui.failures import as_user_error
from chatcache.tui.formatting import gist, shorten
from chatcache.tui.styles import MUTED

MAX_ROWS = 500
Result = TypeVar("Result")
Loaded = TypeVar("Loaded")


@dataclass(frozen=True, slots=True)
class Row:
    """`draw` makes the row for a width in cells; `search` is what the filter looks at."""

    row_id: str
    search: str
    draw: Callable[[int], Content]


class FilterListScreen(ModalScreen[Result | None], Generic[Result]):
    """Type to filter, arrows to move, Enter to choose, Esc to leave."""

    BINDINGS = bindings("list")
    title_text = ""
    placeholder = "type to filter"
    keys_text = "Enter choose · Esc close"
    empty_text = "nothing here"

    def __init__(self, query: str = "") -> None:
        super().__init__(classes="picker")
        self._initial_query = query
        self._rows: Sequence[Row] = ()
        self._shown: list[Row] = []
        self._is_loaded = False
        self._drawn_width = 0

    def compose(self) -> ComposeResult:
        with Vertical(classes="dialog"):
            yield Static(Content(self.title_text), classes="dialog-title", markup=False)
            yield Input(self._initial_query, placeholder=self.placeholder, compact=True)
            yield Static("", classes="columns", markup=False)
            yield OptionList(markup=False, compact=True)
            yield Static("", classes="preview", markup=False)
            yield Static(self.keys_text, classes="dialog-keys", markup=False)

    async def loaded(self, load: Callable[[], Loaded]) -> Loaded | None:
        """What `load` gives, from a thread; where it fails, it is said and the screen closes."""
        try:
            return await asyncio.to_thread(load)
        except Exception as failure:
            error = as_user_error(failure)
            self.dismiss(None)
            self.app.notify(f"{error.message} {error.hint}", severity="error", markup=False)
            return None

    def on_mount(self) -> None:
        self.query_one(Input).cursor_blink = self.app.animation_level != "none"
        self.query_one(OptionList).can_focus = False
        self.query_one(".preview", Static).update(Content.styled("loading …", MUTED))

    # Rows

    def set_rows(self, rows: Sequence[Row]) -> None:
        """Show these rows, filtered by what has been typed."""
        self._rows, self._is_loaded = rows, True
        self._filter()

    @property
    def highlighted_row(self) -> Row | None:
        index = self.query_one(OptionList).highlighted
        return self._shown[index] if index is not None and index < len(self._shown) else None

    @property
    def query_text(self) -> str:
        return self.query_one(Input).value

    def is_match(self, row: Row, words: Sequence[str]) -> bool:
        """All words occur, in any order."""
        text = row.search.casefold()
        return all(word in text for word in words)

    def ordered(self, rows: list[Row], words: Sequence[str]) -> list[Row]:
        """The rows that match, in the order of showing."""
        return rows

    def preview(self, row: Row) -> Content:
        """What is said of the highlighted row below the list."""
        return Content("")

    def columns(self, width: int) -> Content:
        """The headings above the list."""
        return Content("")

    def _filter(self, keep: str | None = None) -> None:
        options = self.query_one(OptionList)
        words = self.query_text.casefold().split()
        matching = [row for row in self._rows if self.is_match(row, words)]
        self._shown = self.ordered(matching, words)[:MAX_ROWS]
        self._drawn_width = width = self._width
        self.query_one(".columns", Static).update(self.columns(width))
        options.set_options(Option(row.draw(width)) for row in self._shown)
        index = next((i for i, row in enumerate(self._shown) if row.row_id == keep), 0)
        options.highlighted = index if self._shown else None
        if not self._shown:
            text = self.empty_text if not words else "no match"
            self.query_one(".preview", Static).update(Content.styled(text, MUTED))
        self.call_after_refresh(self._draw_again)

    def _draw_again(self) -> None:
        """Rows that were drawn before the dialog had its size are drawn for the one it has."""
        if self._drawn_width != self._width:
            row = self.highlighted_row
            self._filter(row.row_id if row else None)

    @property
    def _width(self) -> int:
        """The cells that a row has: the list without its scrollbar."""
        return max(20, self.query_one(OptionList).scrollable_content_region.width - 2)

    def fit(self, text: str) -> str:
        """The text on one line of the preview."""
        return shorten(gist(text), self._width)

    # Events

    @on(Input.Changed)
    def _query_changed(self, event: Input.Changed) -> None:
        event.stop()
        self._show_keys()
        if self._is_loaded:
            self._filter()

    @on(Input.Submitted)
    def _submitted(self, event: Input.Submitted) -> None:
        event.stop()
        self._choose()

    @on(OptionList.OptionSelected)
    def _selected(self, event: OptionList.OptionSelected) -> None:
        event.stop()
        self._choose()

    @on(OptionList.OptionHighlighted)
    def _highlighted(self, event: OptionList.OptionHighlighted) -> None:
        event.stop()
        if (row := self.highlighted_row) is not None:
            self.query_one(".preview", Static).update(self.preview(row))

    def on_resize(self, event: Resize) -> None:
        self.call_after_refresh(self._show_keys)
        if self._is_loaded:
            self.call_after_refresh(self._draw_again)

    def _choose(self) -> None:
        if (row := self.highlighted_row) is not None:
            self.choose(row)

    def choose(self, row: Row) -> None:
        raise NotImplementedError

    def action_move(self, step: int) -> None:
        self._show_keys()
        options = self.query_one(OptionList)
        if self._shown:
            index = (options.highlighted or 0) + step
            options.highlighted = max(0, min(len(self._shown) - 1, index))

    def action_leave(self) -> None:
        self.dismiss(None)

    def _show_keys(self) -> None:
        text, room = self.keys_text, self._width + 2
        if len(text) > room:
            text = text.replace(" · Esc close", " · Esc")
        self.query_one(".dialog-keys", Static).update(Content(text))

    def say(self, text: str) -> None:
        """A word about what has just happened, in place of the keys until one moves or types."""
        self.query_one(".dialog-keys", Static).update(Content.styled(text, "bold"))
