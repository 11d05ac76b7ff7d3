"""A page of the lens for a terminal, in the terminal's own colours.

Owns which of them a mark gets; what it means is said by a letter or a word as well. Heat is left
out: nothing is known of the background that a shade would stand on.
"""

from __future__ import annotations

from collections.abc import Mapping

from chatcache import formatting as fmt
from chatcache.frontend.lens.page import Line, Mark, Page

# Colours and attributes by the names that most toolkits have for them.
WORDS: Mapping[Mark, str] = {
    "muted": "bright_black",
    "strong": "bold",
    "title": "bold",
    "ram": "green",
    "disk": "cyan",
    "computed": "yellow",
    "written": "magenta",
    "control": "italic",
    "cut": "bold red",
    "chosen": "reverse",
    "warning": "red",
}
_CODES = {
    **{"bold": "1", "italic": "3", "reverse": "7", "red": "31", "green": "32", "yellow": "33"},
    **{"magenta": "35", "cyan": "36", "bright_black": "90"},
}


def has_colours(environ: Mapping[str, str]) -> bool:
    """Whether a terminal may be written to in colours: NO_COLOR and dumb terminals say no."""
    return not environ.get("NO_COLOR") and environ.get("TERM", "dumb") != "dumb"


def as_coloured_text(page: Page) -> str:
    """The lines of a page with their marks."""
    return "".join(f"{_coloured(drawn)}\n" for drawn in page.lines)


def _coloured(drawn: Line) -> str:
    parts = []
    for piece in drawn:
        text = fmt.clean(piece.text)
        codes = ";".join(_CODES[word] for word in WORDS.get(piece.mark, "").split())
        parts.append(f"\x1b[{codes}m{text}\x1b[0m" if codes and text else text)
    return "".join(parts).rstrip()
