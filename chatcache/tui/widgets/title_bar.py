"""The top line: which chat this is, where it came from, and which model answers."""

from __future__ import annotations

from textual.app import ComposeResult
from textual.containers import Horizontal
from textual.content import Content

from chatcache.formatting import one_line
from chatcache.tui.look.formatting import shorten
from chatcache.tui.look.styles import MUTED, TITLE
from chatcache.tui.widgets.words import Words


class TitleBar(Horizontal):
    """Breadcrumb on the left, model on the right."""

    def compose(self) -> ComposeResult:
        yield Words(id="breadcrumb")
        yield Words(id="model-name")

    def show_session(
        self, name: str | None, forked_from: str | None, *, is_append: bool = False
    ) -> None:
        title = Content.assemble(
            ("chatcache", TITLE),
            (" › ", MUTED),
            (one_line(name) if name else "new chat", "bold" if name else "italic"),
        )
        if forked_from:
            title += Content.assemble((f"  ⑂ from {shorten(forked_from, 40)}", MUTED))
        if is_append:
            title += Content.styled("  append mode", MUTED)
        self.query_one("#breadcrumb", Words).say(title)

    def show_model(self, text: str) -> None:
        self.query_one("#model-name", Words).say(Content(shorten(text, 40)))
