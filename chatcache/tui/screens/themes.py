"""The colours: each theme is shown as it is highlighted; Enter takes it, Esc goes back."""

from __future__ import annotations

from collections.abc import Callable

from textual.content import Content
from textual.theme import Theme
from textual.timer import Timer

from chatcache.tui.screens.filter_list import FilterListScreen, Row
from chatcache.tui.styles import MUTED

# Whoever holds an arrow key down is not shown every theme on the way.
_LOOK_SECONDS = 0.08


class ThemeScreen(FilterListScreen[str]):
    """Returns the name of the theme that was chosen. Who called goes back where there is none."""

    title_text = "Themes"
    keys_text = "↑ ↓ show a theme · Enter takes it, also for the next start · Esc goes back"

    def __init__(self) -> None:
        super().__init__()
        self._before = ""
        self._looking: Timer | None = None

    def on_mount(self) -> None:
        super().on_mount()
        self._before = self.app.theme
        every = self.app.available_themes.values()
        themes = sorted(every, key=lambda one: (one.ansi, not one.dark, one.name))
        self.set_rows([Row(one.name, f"{one.name} {_kind(one)}", _drawer(one)) for one in themes])
        self._filter(self._before)

    def preview(self, row: Row) -> Content:
        if self._looking is not None:
            self._looking.stop()
        self._looking = self.set_timer(_LOOK_SECONDS, lambda: self._show(row.row_id))
        return Content.styled(f"Before: {self._before}", MUTED)

    def _show(self, name: str) -> None:
        self.app.theme = name

    def choose(self, row: Row) -> None:
        self.dismiss(row.row_id)

    def on_unmount(self) -> None:
        if self._looking is not None:
            self._looking.stop()


def _kind(theme: Theme) -> str:
    if theme.ansi:
        return "the terminal's own colours"
    return "dark" if theme.dark else "light"


def _drawer(theme: Theme) -> Callable[[int], Content]:
    def draw(width: int) -> Content:
        name = Content(theme.name).pad_right(max(1, 24 - len(theme.name)))
        return (name + Content.styled(_kind(theme), MUTED)).truncate(width, ellipsis=True)

    return draw
