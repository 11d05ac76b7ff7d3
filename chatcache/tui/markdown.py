"""Markdown from a model, shown faithfully and safely.

Differs from Textual's widget in that single newlines are kept, HTML is shown as text instead of
being swallowed, code without a language is not guessed at, no markup reaches a tooltip, and only
web and mail links can be opened.
"""

from __future__ import annotations

from urllib.parse import urlsplit

from markdown_it import MarkdownIt
from markdown_it.rules_core import StateCore
from textual.app import ComposeResult
from textual.content import Content
from textual.widgets import Markdown
from textual.widgets._markdown import (
    MarkdownFence,
    MarkdownTable,
    MarkdownTableCellContents,
    MarkdownTableContent,
)

_OPENABLE = frozenset({"http", "https", "mailto"})


def make_parser() -> MarkdownIt:
    """GitHub's Markdown, minus HTML, plus line breaks where the model wrote them."""
    parser = MarkdownIt("gfm-like", {"html": False})
    parser.core.ruler.push("keep_newlines", _keep_newlines)
    return parser


def _keep_newlines(state: StateCore) -> None:
    for token in state.tokens:
        for child in token.children or ():
            if child.type == "softbreak":
                child.type = "hardbreak"


class ChatFence(MarkdownFence):
    """A code block. Guessing the language would import every lexer there is, at each new word."""

    @classmethod
    def highlight(cls, code: str, language: str, ansi: bool = False, dark: bool = False) -> Content:
        words = language.split()
        return super().highlight(code, words[0] if words else "text", ansi, dark)


class ChatTableContent(MarkdownTableContent):
    """The cells of a table, without tooltips: a tooltip would read a cell as markup."""

    def compose(self) -> ComposeResult:
        for header in self.headers:
            yield MarkdownTableCellContents(header, classes="header")
        for row_index, row in enumerate(self.rows, 1):
            for cell_index, cell in enumerate(row, 1):
                yield MarkdownTableCellContents(
                    cell,
                    classes=f"row{row_index} cell",
                    name=f"cell{row_index}.{cell_index}",
                )
            self.last_row = row_index


class ChatTable(MarkdownTable):
    def compose(self) -> ComposeResult:
        self._headers, self._rows = self._get_headers_and_rows()
        yield ChatTableContent(self._headers, self._rows)


class ChatMarkdown(Markdown):
    """The text of an answer. `source` is what the model wrote, for copying."""

    BLOCKS = {  # noqa: RUF012
        **Markdown.BLOCKS,
        "fence": ChatFence,
        "code_block": ChatFence,
        "table_open": ChatTable,
    }

    def __init__(self, text: str = "", *, classes: str | None = None) -> None:
        super().__init__(text, parser_factory=make_parser, open_links=False, classes=classes)

    def on_markdown_link_clicked(self, event: Markdown.LinkClicked) -> None:
        event.stop()
        if urlsplit(event.href).scheme in _OPENABLE:
            self.app.open_url(event.href)
        else:
            self.notify("Only web and mail links are opened.", severity="warning", markup=False)
