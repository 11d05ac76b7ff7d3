"""Earlier messages of the user, newest first; the chosen one goes into the composer."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from textual.content import Content

from chatcache.tui.formatting import clean, shorten
from chatcache.tui.screens.filter_list import FilterListScreen, Row


class HistoryScreen(FilterListScreen[str]):
    title_text = "Your earlier messages"
    keys_text = "Enter takes it into the composer · Esc close"
    empty_text = "Nothing has been said in this chat yet."

    def __init__(self, texts: Sequence[str], query: str = "") -> None:
        super().__init__(query)
        self._texts = texts

    def on_mount(self) -> None:
        super().on_mount()
        self.call_after_refresh(self.set_rows, self._make_rows())

    def _make_rows(self) -> list[Row]:
        return [Row(str(i), text, _drawer(text)) for i, text in enumerate(self._texts)]

    def preview(self, row: Row) -> Content:
        return Content(clean(self._texts[int(row.row_id)]))

    def choose(self, row: Row) -> None:
        self.dismiss(self._texts[int(row.row_id)])


def _drawer(text: str) -> Callable[[int], Content]:
    return lambda width: Content(shorten(text, width))
