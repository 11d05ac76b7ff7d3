"""Earlier messages of all chats, newest first; the chosen one goes into the composer."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from textual.content import Content

from chatcache.formatting import clean
from chatcache.tui.formatting import shorten
from chatcache.tui.screens.filter_list import FilterListScreen, Row

_FUZZY_LENGTH = 200


class HistoryScreen(FilterListScreen[str]):
    title_text = "Your earlier messages"
    keys_text = "Enter takes it into the composer · Esc close"
    placeholder = "type to filter: words in any order, or letters in this order"
    empty_text = "Nothing has been said yet."

    def __init__(self, texts: Sequence[str], query: str = "") -> None:
        super().__init__(query)
        self._texts = texts

    def on_mount(self) -> None:
        super().on_mount()
        self.call_after_refresh(self.set_rows, self._make_rows())

    def _make_rows(self) -> list[Row]:
        return [Row(str(i), text, _drawer(text)) for i, text in enumerate(self._texts)]

    def is_match(self, row: Row, words: Sequence[str]) -> bool:
        """All words occur, or else all letters in their order."""
        if super().is_match(row, words):
            return True
        letters = ".*?".join(map(re.escape, "".join(words)))
        return re.search(letters, row.search[:_FUZZY_LENGTH].casefold()) is not None

    def ordered(self, rows: list[Row], words: Sequence[str]) -> list[Row]:
        """Words before scattered letters; within both the newest first."""
        return sorted(rows, key=lambda row: not super(HistoryScreen, self).is_match(row, words))

    def preview(self, row: Row) -> Content:
        return Content(clean(self._texts[int(row.row_id)]))

    def choose(self, row: Row) -> None:
        self.dismiss(self._texts[int(row.row_id)])


def _drawer(text: str) -> Callable[[int], Content]:
    return lambda width: Content(shorten(text, width))
