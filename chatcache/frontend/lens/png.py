"""A page of the lens as a PNG picture, through Pillow, which is an optional part.

Owns finding fonts: one of equal width for most, others for the characters that it lacks.
"""

from __future__ import annotations

import io
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from chatcache import formatting as fmt
from chatcache.errors import UnavailableError
from chatcache.frontend.lens.page import Marked, Page
from chatcache.frontend.lens.svg import (
    BOLD,
    CELL,
    DARK,
    FONT,
    HOTTEST,
    LIGHT,
    LINE,
    MARGIN,
    SHADES,
    Palette,
    block_of,
    cells_of,
    runs,
)

if TYPE_CHECKING:
    from PIL.ImageDraw import ImageDraw
    from PIL.ImageFont import FreeTypeFont

_SCALE = 2
# No picture is larger: what draws it would take gigabytes.
_MAX_PIXELS = 100_000_000
_PLACES = (
    "/usr/share/fonts",
    "/usr/local/share/fonts",
    "~/.local/share/fonts",
    "~/.fonts",
    "/System/Library/Fonts",
    "/Library/Fonts",
    "~/Library/Fonts",
)
# Fonts of one width by the beginning of their files' names, the best first; then those that have
# what others lack.
_MONOSPACED = ("DejaVuSansMono", "LiberationMono", "NotoSansMono", "Menlo", "SFNSMono", "FreeMono")
_OTHERS = ("NotoSansMonoCJK", "NotoSansCJK", "wqy", "unifont", "DejaVuSans", "Symbola")
_SUFFIXES = (".ttf", ".ttc", ".otf")


def png(page: Page, *, is_dark: bool = False) -> bytes:
    """The picture. Raises UnavailableError without Pillow, or without any font of one width."""
    try:
        from PIL import Image, ImageDraw
    except ImportError as error:
        raise UnavailableError(
            "PNG pictures need Pillow, which is not installed.",
            "Run `pip install 'chatcache[picture]'`, or use --svg.",
        ) from error
    palette = DARK if is_dark else LIGHT
    width = round(_SCALE * (2 * MARGIN + cells_of(page) * CELL))
    height = round(_SCALE * (2 * MARGIN + max(1, len(page.lines)) * LINE))
    if width * height > _MAX_PIXELS:
        raise UnavailableError(
            f"A picture of {len(page.lines):,} lines would be too large.", "Use --svg, or --json."
        )
    image = Image.new("RGB", (width, height), palette.background)
    pen = _Pen(ImageDraw.Draw(image), palette, _Fonts())
    for index, drawn in enumerate(page.lines):
        for run in runs(drawn):
            pen.draw(run.piece, MARGIN + run.column * CELL, MARGIN + index * LINE, run.cells)
    file = io.BytesIO()
    image.save(file, "PNG", optimize=True)
    return file.getvalue()


class _Pen:
    """Draws pieces of lines; places are those of the SVG picture."""

    def __init__(self, canvas: ImageDraw, palette: Palette, fonts: _Fonts) -> None:
        self._canvas, self._palette, self._fonts = canvas, palette, fonts

    def draw(self, piece: Marked, x: float, y: float, cells: int) -> None:
        colour = self._palette.marks.get(piece.mark, self._palette.text)
        behind = self._palette.background
        if piece.heat is not None:
            share = HOTTEST * max(0.0, min(1.0, piece.heat))
            colour, behind = self._palette.text, _mixed(behind, self._palette.heat, share)
        if piece.mark == "chosen":
            colour, behind = behind, self._palette.text
        if behind != self._palette.background:
            self._box(x, y, cells * CELL, LINE, behind)
        for char, left in _placed(piece.text):
            if piece.heat is not None and char in SHADES:
                continue
            self._character(char, x + left * CELL, y, colour, behind, is_bold=piece.mark in BOLD)

    def _character(
        self, char: str, x: float, y: float, colour: str, behind: str, *, is_bold: bool
    ) -> None:
        if (block := block_of(char)) is not None:
            dx, dy, width, height, share = block
            at = (x + dx * CELL, y + dy * LINE, width * CELL, height * LINE)
            self._box(*at, _mixed(behind, colour, share))
        elif char.strip():
            font = self._fonts.font_of(char, is_bold=is_bold)
            at_baseline = (x * _SCALE, (y + LINE * 0.74) * _SCALE)
            self._canvas.text(at_baseline, char, fill=colour, font=font, anchor="ls")

    def _box(self, x: float, y: float, width: float, height: float, colour: str) -> None:
        left, top = round(x * _SCALE), round(y * _SCALE)
        right, bottom = round((x + width) * _SCALE) - 1, round((y + height) * _SCALE) - 1
        if right >= left and bottom >= top:
            self._canvas.rectangle((left, top, right, bottom), fill=colour)


def _placed(text: str) -> Iterator[tuple[str, int]]:
    """The characters with what combines with them, and the column where each begins."""
    column, start = 0, 0
    for index in range(1, len(text) + 1):
        if index < len(text) and (
            unicodedata.combining(text[index]) or fmt.width(text[index]) == 0
        ):
            continue
        yield text[start:index], column
        column += fmt.width(text[start:index])
        start = index


def _mixed(colour: str, other: str, share: float) -> str:
    pairs = zip(_parts(colour), _parts(other), strict=True)
    return "#" + "".join(f"{round(a + (b - a) * share):02x}" for a, b in pairs)


def _parts(colour: str) -> tuple[int, ...]:
    return tuple(bytes.fromhex(colour[1:]))


class _Fonts:
    """The fonts of this machine, each opened when a character needs it."""

    def __init__(self) -> None:
        files = _font_files()
        if (found := _monospaced(files)) is None:
            raise UnavailableError(
                "There is no font of one width on this machine to draw a picture with.",
                "Install one, such as DejaVu Sans Mono (`fonts-dejavu`), or use --svg.",
            )
        self._plain, self._bold = found
        self._others = [file for name in (*_MONOSPACED, *_OTHERS) for file in _named(files, name)]
        self._opened: dict[Path, Any] = {}
        self._lacking: dict[Path, bytes] = {}
        self._chosen: dict[tuple[str, bool], Any] = {}

    def font_of(self, char: str, *, is_bold: bool) -> FreeTypeFont:
        key = (char, is_bold)
        if key not in self._chosen:
            first = self._bold if is_bold else self._plain
            usable = (file for file in (first, *self._others) if self._has(file, char[0]))
            self._chosen[key] = self._open(next(usable, first))
        font: FreeTypeFont = self._chosen[key]
        return font

    def _open(self, file: Path) -> Any:
        from PIL import ImageFont

        if file not in self._opened:
            self._opened[file] = ImageFont.truetype(str(file), FONT * _SCALE)
        return self._opened[file]

    def _has(self, file: Path, char: str) -> bool:
        """Whether a font draws a character otherwise than one that nobody has."""
        try:
            font = self._open(file)
            if file not in self._lacking:
                self._lacking[file] = bytes(font.getmask("\U0010fffd"))
            return bytes(font.getmask(char)) != self._lacking[file]
        except OSError:
            return False


def _font_files() -> list[Path]:
    return sorted(
        file
        for place in _PLACES
        for file in Path(place).expanduser().rglob("*")
        if file.suffix.lower() in _SUFFIXES
    )


def _named(files: list[Path], name: str) -> list[Path]:
    return [
        file
        for file in files
        if file.stem.replace("-", "").replace(" ", "").casefold().startswith(name.casefold())
        and not any(word in file.stem for word in ("Oblique", "Italic", "Bold", "Condensed"))
    ]


def _monospaced(files: list[Path]) -> tuple[Path, Path] | None:
    """The best font and its bold one, which are the same where there is no bold one."""
    for name in _MONOSPACED:
        for plain in _named(files, name):
            bold = plain.with_name(f"{name}-Bold{plain.suffix}")
            return plain, bold if bold in files else plain
    return None
