"""What a view of the lens shows, before anybody draws it: lines of marked text, sentences, data.

Owns the form that the screen, plain mode, `chatcache lens` and its pictures share. Knows no
toolkit and no colours: a mark says what a text means, and each of them draws it in its own way.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from chatcache import formatting as fmt
from chatcache.formatting import flow as flow

# What a text is. Never colour alone: every fate has a letter too (`LETTERS`).
Mark = Literal[
    "",
    "muted",
    "strong",
    "title",
    "ram",
    "disk",
    "computed",
    "written",
    "control",
    "cut",
    "chosen",
    "warning",
]
LETTERS: Mapping[Mark, str] = {
    "ram": "R",
    "disk": "D",
    "computed": "C",
    "written": "W",
    "control": "X",
}


@dataclass(frozen=True, slots=True)
class Marked:
    """A piece of a line. `heat` from 0 to 1 is drawn as a shade behind the text."""

    text: str
    mark: Mark = ""
    heat: float | None = None


Line = tuple[Marked, ...]


@dataclass(frozen=True, slots=True)
class Page:
    """One view, drawn for a width in cells.

    `sentences` say the same to who cannot see it: no boxes, no columns, no colour. `data` is the
    JSON of `chatcache lens --view NAME --json`. `keys` are what can be pressed here, in words.
    """

    title: str
    lines: tuple[Line, ...]
    sentences: tuple[str, ...]
    data: Mapping[str, Any] = field(default_factory=dict)
    keys: str = ""


def line(*parts: str | Marked) -> Line:
    """A line of texts and marked texts."""
    return tuple(Marked(part) if isinstance(part, str) else part for part in parts)


def page_of(
    title: str,
    sentences: Iterable[str],
    width: int,
    data: Mapping[str, Any],
    keys: str = "",
) -> Page:
    """A page of sentences alone: there is nothing to draw."""
    told = tuple(sentences)
    lines = tuple(line(text) for words in told for text in flow(words, width))
    return Page(title, lines, told, data, keys)


def text_of(drawn: Line) -> str:
    return "".join(span.text for span in drawn)


def wrapped(parts: Iterable[Marked], width: int) -> list[Line]:
    """Parts beside each other on lines of at most `width` cells; one is broken only where it does
    not fit on a line of its own."""
    lines: list[list[Marked]] = [[]]
    used = 0
    for part in parts:
        for text in flow(part.text, width):
            space = "  " if lines[-1] else ""
            if used + len(space) + fmt.width(text) > width and lines[-1]:
                lines.append([])
                used, space = 0, ""
            lines[-1] += [Marked(space)] * bool(space) + [replace(part, text=text)]
            used += len(space) + fmt.width(text)
    return [tuple(parts) for parts in lines if parts]
