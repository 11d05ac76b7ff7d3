"""The backgrounds of a theme on a terminal with 256 colours.

Left to itself, the bluish dark grey of a bar becomes pure navy there: each component is rounded by
itself. Here the colour that looks most alike is taken, which is a grey.
"""

from __future__ import annotations

from collections.abc import Mapping

from textual.color import Color

_BACKGROUNDS = ("background", "surface", "panel")
_LEVELS = (0, 95, 135, 175, 215, 255)  # of the cube of 216 colours
_GREYS = tuple(range(8, 248, 10))
_PALETTE = (
    *(Color(red, green, blue) for red in _LEVELS for green in _LEVELS for blue in _LEVELS),
    *(Color(level, level, level) for level in _GREYS),
)


def backgrounds(variables: Mapping[str, str]) -> dict[str, str]:
    """Those of a theme's variables that change; the terminal's own colours are left alone."""
    found = {}
    for name in _BACKGROUNDS:
        if not variables[name].startswith("ansi"):
            found[name] = nearest(Color.parse(variables[name])).hex
    return found


def nearest(color: Color) -> Color:
    """The colour of the palette that is least far away, as the eye weighs it."""

    def distance(other: Color) -> float:
        red, green, blue = color.r - other.r, color.g - other.g, color.b - other.b
        return 2 * red * red + 4 * green * green + 3 * blue * blue

    return min(_PALETTE, key=distance)
