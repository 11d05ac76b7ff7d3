"""The colour of notes: as quiet as it may be and still be read, on the backgrounds of a theme.

Contrast is that of WCAG 2, which asks for 4.5. Some themes give their muted text 2.2.
"""

from __future__ import annotations

from collections.abc import Mapping

from textual.color import Color

_WANTED = 4.5
_BACKGROUNDS = ("background", "surface")
# Opacity in percent, where the search begins and ends: a note always stays quieter than text.
_QUIETEST, _LOUDEST = 60, 85


def quiet(variables: Mapping[str, str]) -> str:
    """The colour, from the variables of a theme; the terminal's own colours are left alone."""
    if variables["foreground"].startswith("ansi"):
        return variables["foreground-muted"]
    text = Color.parse(variables["foreground"])
    behind = [Color.parse(variables[name]) for name in _BACKGROUNDS]
    percent = _QUIETEST
    while percent < _LOUDEST and _contrast(text, behind, percent) < _WANTED:
        percent += 5
    return text.with_alpha(percent / 100).hex


def _contrast(text: Color, behind: list[Color], percent: int) -> float:
    """The least ratio of the text, so opaque, to one of the backgrounds."""
    return min(ratio(color.blend(text, percent / 100), color) for color in behind)


def ratio(color: Color, other: Color) -> float:
    """The contrast of two opaque colours, from 1 to 21."""
    lighter, darker = sorted((_luminance(color), _luminance(other)), reverse=True)
    return (lighter + 0.05) / (darker + 0.05)


def _luminance(color: Color) -> float:
    red, green, blue = (_linear(part / 255) for part in (color.r, color.g, color.b))
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def _linear(part: float) -> float:
    return part / 12.92 if part <= 0.03928 else float(((part + 0.055) / 1.055) ** 2.4)
