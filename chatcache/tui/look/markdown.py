"""Markdown from a model, shown faithfully and safely.

Differs from Textual's widget in that single newlines are kept, HTML is shown as text instead of
being swallowed, code without a language is not guessed at, tables are aligned and never cut, and
only web and mail links can be opened.
"""

from __future__ import annotations

from collections.abc import Iterator
from urllib.parse import urlsplit

from markdown_it import MarkdownIt
from markdown_it.rules_core import StateCore
from textual.app import ComposeResult
from textual.content import Content
from textual.geometry import Size
from textual.widgets import Markdown
from textual.widgets._markdown import MarkdownBlock, MarkdownFence, MarkdownTable, MarkdownTH

from chatcache.tui.look.tables import Align, Table, lines

_OPENABLE = frozenset({"http", "https", "mailto"})


def make_parser() -> MarkdownIt:
    """GitHub's Markdown, minus HTML, plus line breaks where the model wrote them.

    A line of dashes makes no heading of the line above it: while an answer is written, each list
    below a sentence begins with such a line, and the sentence would flash.
    """
    parser = MarkdownIt("gfm-like", {"html": False})
    parser.disable("lheading")
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


class ChatTable(MarkdownTable):
    """A table drawn as text for the width that there is; Textual's own ignores `:---:` and cuts."""

    _table = Table((), ())

    def compose(self) -> ComposeResult:
        self._take(self)
        return iter(())

    def _take(self, block: MarkdownTable) -> None:
        headers, rows = block._get_headers_and_rows()
        self._table = Table(
            headers, rows, [_align(cell) for cell in _below(block) if isinstance(cell, MarkdownTH)]
        )
        block._blocks.clear()

    async def _update_from_block(self, block: MarkdownBlock) -> None:
        if isinstance(block, ChatTable):
            self._take(block)
            self.refresh(layout=True)
        else:
            await super()._update_from_block(block)

    def get_content_height(self, container: Size, viewport: Size, width: int) -> int:
        return len(lines(self._table, width))

    def render(self) -> Content:
        return Content("\n").join(lines(self._table, self.content_size.width))


def _below(block: MarkdownBlock) -> Iterator[MarkdownBlock]:
    for child in block._blocks:
        yield child
        yield from _below(child)


def _align(header: MarkdownBlock) -> Align:
    """What `:---`, `:---:` and `---:` below a header mean."""
    style = str(header._token.attrs.get("style", ""))
    return "right" if "right" in style else "center" if "center" in style else "left"


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
