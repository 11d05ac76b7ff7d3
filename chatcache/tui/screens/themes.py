"""The colours: each theme is shown as it is highlighted; Enter takes it, Esc goes back."""

from __future__ import annotations

from textual.content import Content
from textual.theme import Theme
from textual.timer import Timer

from chatcache.tui.look.formatting import MUTED, padded
from chatcache.tui.screens.filter_list import FilterListScreen

# A theme is shown after this pause, so that a held arrow key does not draw every theme it passes.
_LOOK_SECONDS = 0.08


class ThemeScreen(FilterListScreen[Theme, str]):
    """Returns the name of the chosen theme; without one the caller sets back the old theme."""

    title_text = "Themes"
    keys_text = "↑ ↓ show a theme · Enter takes it, also for the next start · Esc goes back"

    def __init__(self) -> None:
        super().__init__()
        self._before = ""
        self._looking: Timer | None = None

    async def fill(self) -> None:
        self._before = self.app.theme
        themes = sorted(
            self.app.available_themes.values(),
            key=lambda theme: (theme.ansi, not theme.dark, theme.name),
        )
        self.set_items({theme.name: theme for theme in themes}, highlight=self._before)

    def search_text(self, theme: Theme) -> str:
        return f"{theme.name} {_kind(theme)}"

    def draw(self, theme: Theme, width: int) -> Content:
        name = padded(theme.name, max(24, len(theme.name) + 1))
        return (name + Content.styled(_kind(theme), MUTED)).truncate(width, ellipsis=True)

    def preview(self, theme: Theme) -> Content:
        if self._looking is not None:
            self._looking.stop()
        self._looking = self.set_timer(_LOOK_SECONDS, lambda: self._show(theme.name))
        return Content.styled(f"Before: {self._before}", MUTED)

    def _show(self, name: str) -> None:
        self.app.theme = name

    def choose(self, theme: Theme) -> None:
        self.dismiss(theme.name)

    def on_unmount(self) -> None:
        if self._looking is not None:
            self._looking.stop()


def _kind(theme: Theme) -> str:
    if theme.ansi:
        return "the terminal's own colours"
    return "dark" if theme.dark else "light"
