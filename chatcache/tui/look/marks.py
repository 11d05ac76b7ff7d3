"""What the marks of the lens look like: colours of the theme that can be read on its background,
and a shade behind a text for heat.

Contrast is that of `contrast.py`. What a mark means is said by a letter or a word as well.
"""

from __future__ import annotations

from collections.abc import Mapping

from rich.style import Style
from textual.color import Color

from chatcache.frontend.lens.ansi import WORDS
from chatcache.frontend.lens.page import Mark
from chatcache.tui.look.contrast import ratio

_WANTED = 4.5
# The variable of the theme that a mark begins with; what cannot be read comes nearer to the text.
_VARIABLES: Mapping[Mark, str] = {
    "ram": "success",
    "disk": "primary",
    "computed": "warning",
    "written": "accent",
    "warning": "error",
}
# With the colours of the terminal itself nothing can be computed.
_ANSI: Mapping[Mark, Style] = {
    "": Style(),
    **{mark: Style.parse(words) for mark, words in WORDS.items()},
}
_STEP = 0.1


class MarkStyles:
    """The styles for the variables of a theme."""

    def __init__(self, variables: Mapping[str, str]) -> None:
        self._is_ansi = variables["foreground"].startswith("ansi")
        if self._is_ansi:
            self._styles, self._hottest = dict(_ANSI), 0.0
            return
        self._text = Color.parse(variables["foreground"])
        self._behind = Color.parse(variables["background"])
        self._heat = Color.parse(variables["primary"])
        self._styles = self._made(variables)
        self._hottest = self._limit()

    def _made(self, variables: Mapping[str, str]) -> dict[Mark, Style]:
        plain = Style(color=self._text.rich_color)
        styles: dict[Mark, Style] = {
            "": plain,
            "muted": Style(color=self._quiet(variables).rich_color),
            "strong": plain + Style(bold=True),
            "title": plain + Style(bold=True),
            "control": Style(color=self._quiet(variables).rich_color, italic=True),
            "cut": Style(
                color=self._readable(Color.parse(variables["error"])).rich_color, bold=True
            ),
            "chosen": Style(color=self._behind.rich_color, bgcolor=self._text.rich_color),
        }
        for mark, name in _VARIABLES.items():
            color = self._readable(Color.parse(variables[name]))
            styles[mark] = Style(color=color.rich_color)
        return styles

    def _quiet(self, variables: Mapping[str, str]) -> Color:
        found = Color.parse(variables.get("quiet", variables["foreground"]))
        return self._behind.blend(Color(found.r, found.g, found.b), found.a)

    def _readable(self, color: Color) -> Color:
        """The colour, or one on the way from it to that of the text."""
        share = 0.0
        while share < 1.0 and ratio(color.blend(self._text, share), self._behind) < _WANTED:
            share += _STEP
        return color.blend(self._text, min(1.0, share))

    def _limit(self) -> float:
        """How much of the heat's colour can stand behind a text that is still to be read."""
        share = 0.9
        while share > _STEP and ratio(self._text, self._shade(share)) < _WANTED:
            share -= _STEP / 2
        return share

    def _shade(self, share: float) -> Color:
        return self._behind.blend(self._heat, share)

    def style(self, mark: Mark, heat: float | None = None) -> Style:
        """Heat takes the colour of the mark away: the shade is what is to be seen."""
        if heat is None or self._is_ansi:
            return self._styles[mark]
        shade = self._shade(max(0.0, min(1.0, heat)) * self._hottest)
        style = Style(color=self._text.rich_color, bgcolor=shade.rich_color)
        return style + Style(reverse=True) if mark == "chosen" else style
