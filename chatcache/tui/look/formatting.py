"""What only a screen of cells needs: bars, sparklines, short words, text cut to cells, two colours.

How numbers, times and foreign text are written everywhere is in `chatcache.formatting`.
"""

from __future__ import annotations

import re
import time
from collections.abc import Sequence

from rich.cells import cell_len, set_cell_size
from textual.content import Content

from chatcache.formatting import one_line

# Textual style strings that can be read on the background of every theme; `$primary` and
# `$foreground-muted` cannot. `$quiet` is computed for each theme in `contrast.py`.
MUTED = "$quiet"
TITLE = "bold $text-primary"
_SPARKS = "▁▂▃▄▅▆▇█"
_GIST_CHARACTERS = 1_000
_TABLE_RULE = re.compile(r"\|?([ \t]*:?-{2,}:?[ \t]*\|)+([ \t]*:?-{2,}:?)?")
_CELL_BORDERS = re.compile(r"(?:\s*\|)+\s*")
_LINE_SIGNS = re.compile(r"^[ \t]*(?:#{1,6}|>|[-*+])[ \t]+|^[ \t]*```.*$|\*\*|`", re.MULTILINE)


def gist(text: str) -> str:
    """The beginning of a message without the signs of Markdown, which mean nothing in one line."""
    text, num_rules = _TABLE_RULE.subn("", text[:_GIST_CHARACTERS])
    if num_rules:
        text = _CELL_BORDERS.sub(" · ", text).strip(" ·\n")
    return _LINE_SIGNS.sub("", text).strip()


def shorten(text: str, width: int) -> str:
    """The text on one line of at most `width` cells, as Textual counts them."""
    text = one_line(text)
    if cell_len(text) <= width:
        return text
    return set_cell_size(text, max(0, width - 1)).rstrip() + "…" if width > 0 else ""


def age(seconds: float) -> str:
    """How long ago, in one short word: `now`, `9m`, `3h`, `12d`."""
    if seconds < 60:
        return "now"
    for limit, unit, divisor in ((3600, "m", 60), (86_400, "h", 3600), (31_557_600, "d", 86_400)):
        if seconds < limit:
            return f"{int(seconds // divisor)}{unit}"
    return f"{int(seconds // 31_557_600)}y"


def clock_time(at: float, *, seconds: bool = False) -> str:
    return time.strftime("%H:%M:%S" if seconds else "%H:%M", time.localtime(at))


def bar(fraction: float, width: int) -> tuple[str, str]:
    """A bar as its filled and its empty part; the two differ in shape, not only in colour."""
    halves = round(max(0.0, min(1.0, fraction)) * width * 2)
    if fraction > 0 and halves == 0:
        halves = 1
    filled = "━" * (halves // 2) + "╸" * (halves % 2)
    return filled, "─" * (width - len(filled))


def sparkline(values: Sequence[float], width: int) -> str:
    """The last `width` values as eighth blocks, zero at the bottom."""
    shown = values[-width:]
    top = max(shown, default=0.0)
    if top <= 0:
        return _SPARKS[0] * len(shown)
    return "".join(_SPARKS[min(7, int(value / top * 7.999))] for value in shown)


def padded(text: str | Content, width: int) -> Content:
    """The text with blanks behind it up to `width` cells."""
    content = Content(text) if isinstance(text, str) else text
    return content.pad_right(max(0, width - content.cell_length))


def fitting(texts: Sequence[str], width: int) -> str:
    """The first of these, from long to short, that has room; else the last."""
    return next((text for text in texts if len(text) <= width), texts[-1])


def key_lines(text: str, width: int) -> str:
    """Keys with what they do, separated by ` · `; none is broken at the end of a line."""
    lines = [""]
    for key in text.split(" · "):
        longer = f"{lines[-1]} · {key}" if lines[-1] else key
        if len(longer) <= width:
            lines[-1] = longer
        else:
            lines.append(key)
    return "\n".join(lines)
