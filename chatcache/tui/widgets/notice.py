"""A line of the program in the transcript: an error with its hint, or the answer of a command."""

from __future__ import annotations

from textual.content import Content
from textual.widgets import Static

from chatcache.formatting import clean
from chatcache.tui.look.styles import MUTED


class Notice(Static):
    """Calm, marked by a word and not only by colour. Not part of the conversation."""

    def __init__(self, message: str, hint: str = "", *, is_error: bool = False) -> None:
        mark = ("✗ ", "bold $text-error") if is_error else ("· ", MUTED)
        style = "" if is_error else MUTED
        parts: list[tuple[str, str]] = [mark, (clean(message), style)]
        if hint:
            parts.append((f"\n  {clean(hint)}", MUTED))
        super().__init__(Content.assemble(*parts), markup=False)
        self.set_class(is_error, "-error")
