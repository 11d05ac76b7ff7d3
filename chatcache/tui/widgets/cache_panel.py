"""The side panel, and the one line that it becomes where there is no room or by choice.

Owns what the style names of the panel's lines look like.
"""

from __future__ import annotations

from textual.app import ComposeResult
from textual.containers import VerticalScroll
from textual.content import Content
from textual.events import Resize

from chatcache.tui.look.formatting import MUTED, TITLE
from chatcache.tui.panel import drawing
from chatcache.tui.panel.state import PanelState
from chatcache.tui.widgets.words import Words

_STYLES = {
    "": "",
    "title": TITLE,
    "strong": "bold",
    "dim": MUTED,
    "good": "bold $text-success",
    "bad": "bold $text-warning",
    "bar": "$primary",
    "rest": "$foreground 35%",
}


class CachePanel(VerticalScroll, can_focus=False):
    """What was reused in the last turn, what it saved, and what the tiers hold."""

    _state: PanelState | None = None
    _now = 0.0

    def compose(self) -> ComposeResult:
        yield Words(id="panel-lines")

    def show(self, state: PanelState, now: float) -> None:
        self._state, self._now = state, now
        if self.display:
            self._draw()

    def on_resize(self, event: Resize) -> None:
        self._draw()

    def _draw(self) -> None:
        width = self.scrollable_content_region.width
        if self._state is not None and width > 0:
            drawn = drawing.lines(self._state, width, self._now)
            content = Content("\n").join(_content(line) for line in drawn)
            self.query_one("#panel-lines", Words).say(content)


class CacheLine(Words):
    """The panel in one line."""

    _state: PanelState | None = None

    def show(self, state: PanelState) -> None:
        self._state = state
        self._draw()

    def on_resize(self, event: Resize) -> None:
        self._draw()

    def _draw(self) -> None:
        if self._state is not None and self.content_size.width > 0:
            self.say(_content(drawing.compact_line(self._state, self.content_size.width)))


def _content(line: drawing.Line) -> Content:
    return Content.assemble(*((piece.text, _STYLES[piece.style]) for piece in line))
