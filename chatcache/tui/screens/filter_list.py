"""The common shape of all pickers: a filter, a list, a preview, a line of keys.

Owns loading, filtering, moving, and what is said where something fails or is refused. What an item
is, how it is drawn and what choosing it means is for the screen that inherits.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Mapping, Sequence
from itertools import islice
from typing import Any, Generic, TypeVar

from textual import on
from textual.app import ComposeResult
from textual.containers import Vertical
from textual.content import Content
from textual.events import Resize
from textual.widgets import Input, OptionList, Static
from textual.widgets.option_list import Option

from chatcache.tui.commands import bindings
from chatcache.tui.failures import as_user_error
from chatcache.tui.look.formatting import MUTED, gist, key_lines, shorten
from chatcache.tui.screens.modal import Dialog
from chatcache.tui.widgets.fields import LineField

MAX_ROWS = 500
Item = TypeVar("Item")
Result = TypeVar("Result")


class FilterListScreen(Dialog[Result | None], Generic[Item, Result]):
    """Type to filter, arrows to move, Enter to choose, Esc to leave."""

    BINDINGS = bindings("list")
    title_text = ""
    placeholder = "type to filter"
    keys_text = "Enter choose · Esc close"
    empty_text = "nothing here"

    def __init__(self, query: str = "", *, is_answering: bool = False) -> None:
        super().__init__(classes="picker")
        self._initial_query = query
        self._is_answering = is_answering
        self.items: Mapping[str, Item] = {}
        self._shown: dict[str, Item] = {}
        self.is_loaded = False
        self._drawn_width = 0

    # For the screen that inherits

    async def fill(self) -> None:
        """Get the items and show them with `set_items`. Where it fails the screen closes."""
        raise NotImplementedError

    def search_text(self, item: Item) -> str:
        """What the filter looks at."""
        raise NotImplementedError

    def draw(self, item: Item, width: int) -> Content:
        """The row of an item, in so many cells."""
        raise NotImplementedError

    def columns(self, width: int) -> Content:
        """The headings above the list."""
        return Content("")

    def preview(self, item: Item) -> Content:
        """What is said of the highlighted item below the list."""
        return Content("")

    def choose(self, item: Item) -> None:
        raise NotImplementedError

    def is_match(self, item: Item, words: Sequence[str]) -> bool:
        """All words occur, in any order."""
        text = self.search_text(item).casefold()
        return all(word in text for word in words)

    def found(self, words: Sequence[str]) -> dict[str, Item]:
        """The items that match by their ids, in the order of showing."""
        return {key: item for key, item in self.items.items() if self.is_match(item, words)}

    # The frame

    def compose(self) -> ComposeResult:
        with Vertical(classes="dialog"):
            yield Static(Content(self.title_text), classes="dialog-title", markup=False)
            yield LineField(self._initial_query, placeholder=self.placeholder, compact=True)
            yield Static("", classes="columns", markup=False)
            yield OptionList(markup=False, compact=True)
            yield Static("", classes="preview", markup=False)
            yield Static(self.keys_text, classes="dialog-keys", markup=False)

    def on_mount(self) -> None:
        self.query_one(Input).cursor_blink = self.app.animation_level != "none"
        self.query_one(OptionList).can_focus = False
        self.query_one(".preview", Static).update(Content.styled("loading …", MUTED))
        self.run_worker(self._load(), exit_on_error=False)

    async def _load(self) -> None:
        try:
            await self.fill()
        except Exception as failure:
            error = as_user_error(failure)
            self.dismiss(None)
            self.app.notify(f"{error.message} {error.hint}", severity="error", markup=False)

    def do(self, work: Coroutine[Any, Any, None]) -> None:
        """Run a coroutine beside the message loop; what goes wrong is said."""
        self.run_worker(self._guarded(work), exit_on_error=False)

    async def _guarded(self, work: Coroutine[Any, Any, None]) -> None:
        try:
            await work
        except Exception as failure:
            error = as_user_error(failure)
            self.say(f"{error.message} {error.hint}".strip())

    def is_refused(self) -> bool:
        """While an answer is written nothing may change below it; True says so to the user."""
        if self._is_answering:
            self.say("An answer is being written. Esc, then Esc again stops it.")
        return self._is_answering

    # Rows

    def set_items(self, items: Mapping[str, Item], highlight: str | None = None) -> None:
        """Show these, filtered by what has been typed. Without `highlight` it stays where it is."""
        self.items, self.is_loaded = items, True
        self.filter(highlight or self.highlighted_id)

    @property
    def highlighted_id(self) -> str | None:
        index = self.query_one(OptionList).highlighted
        return None if index is None else next(islice(self._shown, index, None), None)

    @property
    def highlighted(self) -> Item | None:
        key = self.highlighted_id
        return None if key is None else self._shown[key]

    @property
    def query_text(self) -> str:
        return self.query_one(Input).value

    def filter(self, highlight: str | None = None) -> None:
        """Show what matches, and highlight this item, else the first one."""
        options = self.query_one(OptionList)
        words = self.query_text.casefold().split()
        self._shown = dict(islice(self.found(words).items(), MAX_ROWS))
        self._drawn_width = width = self._width
        self.query_one(".columns", Static).update(self.columns(width).stylize(MUTED))
        options.set_options(Option(self.draw(item, width)) for item in self._shown.values())
        index = next((i for i, key in enumerate(self._shown) if key == highlight), 0)
        options.highlighted = index if self._shown else None
        if not self._shown:
            text = self.empty_text if not words else "no match"
            self.query_one(".preview", Static).update(Content.styled(text, MUTED))
        self._when_drawn(self._draw_again)

    def _when_drawn(self, callback: Callable[[], None]) -> None:
        """Call it once the dialog is on the screen, unless it has been closed by then."""
        self.call_after_refresh(lambda: callback() if self.query(OptionList) else None)

    def _draw_again(self) -> None:
        """Rows that were drawn before the dialog had its size are drawn for the one it has."""
        if self._drawn_width != self._width:
            self.filter(self.highlighted_id)

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
        if self.is_loaded:
            self.filter()

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
        if (item := self.highlighted) is not None:
            self.query_one(".preview", Static).update(self.preview(item))

    def on_resize(self, event: Resize) -> None:
        self._when_drawn(self._show_keys)
        if self.is_loaded:
            self._when_drawn(self._draw_again)

    def _choose(self) -> None:
        if (item := self.highlighted) is not None:
            self.choose(item)

    def action_move(self, step: int) -> None:
        self._show_keys()
        options = self.query_one(OptionList)
        if self._shown:
            index = (options.highlighted or 0) + step
            options.highlighted = max(0, min(len(self._shown) - 1, index))

    def action_leave(self) -> None:
        self.dismiss(None)

    def _show_keys(self) -> None:
        text = key_lines(self.keys_text, self._width + 2)
        self.query_one(".dialog-keys", Static).update(Content(text))

    def say(self, text: str) -> None:
        """A word about what has just happened, in place of the keys until one moves or types."""
        self.query_one(".dialog-keys", Static).update(Content.styled(text, "bold"))
