"""Earlier messages of all chats, newest first; the chosen one goes into the composer."""

from __future__ import annotations

import re
from collections.abc import Sequence

from textual.content import Content

from chatcache.formatting import clean
from chatcache.tui.look.formatting import shorten
from chatcache.tui.screens.filter_list import FilterListScreen

_FUZZY_LENGTH = 200


class HistoryScreen(FilterListScreen[str, str]):
    title_text = "Your earlier messages"
    keys_text = "Enter takes it into the composer · Esc close"
    placeholder = "type to filter: words in any order, or letters in this order"
    empty_text = "Nothing has been said yet."

    def __init__(self, texts: Sequence[str], query: str = "") -> None:
        super().__init__(query)
        self._texts = texts

    async def fill(self) -> None:
        self.set_items({str(index): text for index, text in enumerate(self._texts)})

    def search_text(self, text: str) -> str:
        return text

    def found(self, words: Sequence[str]) -> dict[str, str]:
        """Those with all words, then those with all letters in this order; the newest first."""
        whole = super().found(words)
        letters = re.compile(".*?".join(map(re.escape, "".join(words))))
        scattered = {
            key: text
            for key, text in self.items.items()
            if key not in whole and letters.search(text[:_FUZZY_LENGTH].casefold())
        }
        return whole | scattered

    def draw(self, text: str, width: int) -> Content:
        return Content(shorten(text, width))

    def preview(self, text: str) -> Content:
        return Content(clean(text))

    def choose(self, text: str) -> None:
        self.dismiss(text)
