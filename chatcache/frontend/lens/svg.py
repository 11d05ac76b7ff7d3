"""A page of the lens as an SVG picture: text in cells of one width, readable on light and dark.

Owns the colours of pictures. Every run of text says how wide it is, so that the columns stand where
they are on a terminal whatever font there is; blocks and shades are drawn, not written.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from xml.sax.saxutils import escape

from chatcache import formatting as fmt
from chatcache.frontend.lens.page import Line, Mark, Marked, Page

CELL, LINE, FONT = 8.4, 19.0, 14
MARGIN = 16
# Shades say in letters what heat says in colour.
SHADES = "░▒▓█"
# Blocks of one kind beside each other, one block that does not fill its cell, or words.
_PARTS = re.compile(r"([▀-█░-▓])\1*|[▉-▐]|[^▀-▟\s]+(?: [^▀-▟\s]+)*")
# What XML cannot hold, beside what no picture should: controls and halves of characters.
_NOT_XML = re.compile("[\ud800-\udfff\ufffe\uffff]")


@dataclass(frozen=True, slots=True)
class Palette:
    """The colours of a picture. All texts have a contrast of 4.5 to the background and more."""

    background: str
    text: str
    heat: str
    marks: Mapping[Mark, str]


LIGHT = Palette(
    background="#ffffff",
    text="#1f2328",
    heat="#54aeff",
    marks={
        "muted": "#59636e",
        "ram": "#116329",
        "disk": "#0550ae",
        "computed": "#953800",
        "written": "#6639ba",
        "control": "#59636e",
        "cut": "#cf222e",
        "warning": "#cf222e",
    },
)
DARK = Palette(
    background="#0d1117",
    text="#e6edf3",
    heat="#1f6feb",
    marks={
        "muted": "#9198a1",
        "ram": "#56d364",
        "disk": "#79c0ff",
        "computed": "#f0883e",
        "written": "#d2a8ff",
        "control": "#9198a1",
        "cut": "#ff7b72",
        "warning": "#ff7b72",
    },
)
BOLD: frozenset[Mark] = frozenset({"strong", "title", "cut"})
# How much of the heat's colour stands behind the hottest text, so that it can still be read.
HOTTEST = 0.7


@dataclass(frozen=True, slots=True)
class Run:
    """A piece of a line where it stands: `column` and `cells` wide."""

    column: int
    cells: int
    piece: Marked


def runs(drawn: Line) -> Iterator[Run]:
    """The pieces of a line, without what no picture can hold."""
    column = 0
    for piece in drawn:
        text = _NOT_XML.sub("�", fmt.clean(piece.text).replace("\n", " ").replace("\t", " "))
        cells = fmt.width(text)
        yield Run(column, cells, Marked(text, piece.mark, piece.heat))
        column += cells


def cells_of(page: Page) -> int:
    """How wide a page is."""
    return max((run.column + run.cells for drawn in page.lines for run in runs(drawn)), default=1)


def svg(page: Page, caption: str = "") -> str:
    """The picture, whole. Follows the light or dark of whoever looks at it."""
    width = round(2 * MARGIN + cells_of(page) * CELL)
    height = round(2 * MARGIN + max(1, len(page.lines)) * LINE)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
        f'width="{width}" height="{height}" role="img">',
        f"<title>{escape(_NOT_XML.sub('', fmt.one_line(caption or page.title)))}</title>",
        f"<style>{_style()}</style>",
        f'<rect class="page" width="{width}" height="{height}" rx="8"/>',
    ]
    for index, drawn in enumerate(page.lines):
        parts += _drawn(drawn, MARGIN + index * LINE)
    return "\n".join([*parts, "</svg>", ""])


def _style() -> str:
    font = f'{FONT}px ui-monospace, "DejaVu Sans Mono", Menlo, Consolas, monospace'
    rules = [f"text {{ font: {font}; white-space: pre; }} .bold {{ font-weight: 700; }}"]
    rules += [".control { font-style: italic; }", *_colours(LIGHT)]
    rules.append("@media (prefers-color-scheme: dark) {")
    rules += [*_colours(DARK), "}"]
    return "\n".join(["", *rules, ""])


def _colours(palette: Palette) -> Iterator[str]:
    yield f".page {{ fill: {palette.background}; }} text {{ fill: {palette.text}; }}"
    yield f".heat {{ fill: {palette.heat}; }} .behind {{ fill: {palette.text}; }}"
    yield f".chosen {{ fill: {palette.background}; }} .block {{ fill: {palette.text}; }}"
    for mark, colour in palette.marks.items():
        yield f".{mark} {{ fill: {colour}; }}"


def _drawn(drawn: Line, y: float) -> Iterator[str]:
    for run in runs(drawn):
        x, piece = MARGIN + run.column * CELL, run.piece
        if piece.heat is not None:
            opacity = HOTTEST * max(0.0, min(1.0, piece.heat))
            yield _rect(x, y, run.cells * CELL, LINE, "heat", opacity)
        if piece.mark == "chosen":
            yield _rect(x, y, run.cells * CELL, LINE, "behind")
        if piece.text.strip():
            yield from _text(piece, x, y)


def _text(piece: Marked, x: float, y: float) -> Iterator[str]:
    """The words of a piece, each where it stands; blocks between them are rectangles."""
    # Heat takes the colour of the mark away: the shade is what is to be seen.
    is_hot = piece.heat is not None
    colour = piece.mark if not is_hot or piece.mark == "chosen" else ""
    names = " ".join(filter(None, (colour, "bold" if piece.mark in BOLD else "")))
    for match in _PARTS.finditer(piece.text):
        left = x + fmt.width(piece.text[: match.start()]) * CELL
        word = match[0]
        if (block := block_of(word[0])) is not None:
            if is_hot and word[0] in SHADES:
                continue
            dx, dy, width, height, opacity = block
            yield _rect(
                left + dx * CELL,
                y + dy * LINE,
                (len(word) - 1 + width) * CELL,
                height * LINE,
                colour or "block",
                opacity,
            )
            continue
        length = fmt.width(word) * CELL
        yield (
            f'<text x="{left:.1f}" y="{y + LINE * 0.74:.1f}" textLength="{length:.1f}" '
            f'lengthAdjust="spacingAndGlyphs" class="{names}">{escape(word)}</text>'
        )


def _rect(x: float, y: float, width: float, height: float, name: str, opacity: float = 1.0) -> str:
    shade = f' fill-opacity="{opacity:.2f}"' if opacity < 1 else ""
    return (
        f'<rect class="{name}" x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" '
        f'height="{height:.1f}"{shade}/>'
    )


def block_of(char: str) -> tuple[float, float, float, float, float] | None:
    """Where in its cell a block or a shade is, in shares of the cell: x, y, width, height; and how
    dense. None for any other character."""
    if len(char) != 1 or not "▀" <= char <= "▓":
        return None
    if "░" <= char <= "▓":
        return 0.0, 0.0, 1.0, 1.0, (ord(char) - ord("░") + 1) / 4
    if char == "▀":
        return 0.0, 0.0, 1.0, 0.5, 1.0
    if char == "▐":
        return 0.5, 0.0, 0.5, 1.0, 1.0
    eighths = ord(char) - ord("▁") + 1
    if eighths <= 8:  # from below: ▁ to █
        return 0.0, 1 - eighths / 8, 1.0, eighths / 8, 1.0
    return 0.0, 0.0, (16 - eighths) / 8, 1.0, 1.0  # from the left: ▉ to ▏
