"""Turns lines with style names into Textual content: what a style name looks like."""

from __future__ import annotations

from collections.abc import Iterable

from textual.content import Content

from chatcache.tui.look.styles import MUTED, TITLE
from chatcache.tui.panel.drawing import Line

_STYLES = {
    "": "",
    "title": TITLE,
    "strong": "bold",
    "dim": MUTED,
    "good": "bold $text-success",
    "bad": "bold $text-warning",
    "bar": "$primary",
    "rest": "$foreground 35%",
}


def line_content(line: Line) -> Content:
    return Content.assemble(*((piece.text, _STYLES[piece.style]) for piece in line))


def lines_content(lines: Iterable[Line]) -> Content:
    return Content("\n").join(line_content(line) for line in lines)
