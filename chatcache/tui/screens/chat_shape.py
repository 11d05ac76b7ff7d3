"""The shape of the chat screen: what is shown at which size, and when the figures are drawn.

Owns the modes of the panel. Knows nothing of turns and chats.
"""

from __future__ import annotations

from textual import on
from textual.containers import Vertical
from textual.events import Resize
from textual.message import Message
from textual.screen import Screen
from textual.widgets import Static

from chatcache.tui.look import layout
from chatcache.tui.messages import PanelModeChosen
from chatcache.tui.panel.state import PanelState
from chatcache.tui.widgets.cache_panel import CacheLine, CachePanel
from chatcache.tui.widgets.transcript import Transcript


class Column(Vertical):
    """Transcript and composer. Tells when it has another size, also because the panel came."""

    class Resized(Message):
        """The column has another size."""

    def on_resize(self, event: Resize) -> None:
        self.post_message(self.Resized())


class ShapedScreen(Screen[None]):
    """Base of the chat screen. `panel_state` is what the panel and its one line show."""

    def __init__(self, panel_mode: layout.PanelMode) -> None:
        super().__init__()
        self.panel_state = PanelState()
        self.panel_mode = self.kept_panel_mode = panel_mode
        self._is_narrow = False
        self._panel_covers = False
        self._is_panel_due = False

    @property
    def now(self) -> float:
        raise NotImplementedError

    def refresh_status(self) -> None:
        raise NotImplementedError

    def tell_above(self, message: Message) -> None:
        """For a dialog that is above this screen, such as the list of segments."""
        if self.app.screen is not self:
            self.app.screen.post_message(message)

    def on_resize(self, event: Resize) -> None:
        width, height = event.size
        is_small = layout.is_too_small(width, height)
        self.set_class(is_small, "-too-small")
        if is_small:
            self.query_one("#too-small", Static).update(
                f"The terminal has {width} × {height} cells.\n"
                f"chatcache needs {layout.MIN_WIDTH} × {layout.MIN_HEIGHT}."
            )
        is_narrow = width < layout.NARROW_BELOW
        if is_narrow != self._is_narrow:
            self._is_narrow, self._panel_covers = is_narrow, False
        self._apply_panel_mode()
        self.refresh_status()

    @on(Column.Resized)
    def _center(self) -> None:
        """Keep lines readable on a wide screen."""
        column = self.query_one("#column").size.width
        margin = layout.side_margin(column)
        top = 0 if self.size.height < layout.TINY_BELOW else 1
        self.query_one(Transcript).styles.padding = (top, margin, 0, margin)
        self.query_one("#writing").styles.padding = (0, max(0, margin - 2))

    @property
    def shown_panel_mode(self) -> layout.PanelMode:
        """Without room the full panel is one line, unless it was asked for: then it covers."""
        if self.panel_mode == "full" and self._is_narrow and not self._panel_covers:
            return "compact"
        return self.panel_mode

    @on(PanelModeChosen)
    def _panel_mode_chosen(self, message: PanelModeChosen) -> None:
        """Set it, and remember it for the next start; where there is no room only if it was said
        by name."""
        mode = message.mode or layout.next_panel_mode(self.shown_panel_mode)
        if message.is_kept and (message.mode is not None or not self._is_narrow):
            self.kept_panel_mode = mode
        if not message.is_kept and mode == self.shown_panel_mode:
            return
        self.panel_mode, self._panel_covers = mode, self._is_narrow
        self._apply_panel_mode()

    def uncover(self) -> bool:
        """Make a panel that covers the chat one line again; False when none does."""
        if not (self._is_narrow and self._panel_covers and self.panel_mode == "full"):
            return False
        self._panel_covers = False
        self._apply_panel_mode()
        return True

    def _apply_panel_mode(self) -> None:
        shown = self.shown_panel_mode
        self.query_one(CachePanel).display = shown == "full"
        has_room = self.app.size.height >= layout.TINY_BELOW
        self.query_one(CacheLine).display = shown == "compact" and has_room
        self.refresh_panel()

    def refresh_panel(self) -> None:
        """Draw the figures anew, once per refresh however often it is asked for."""
        if not self._is_panel_due:
            self._is_panel_due = True
            self.call_after_refresh(self._draw_panel)

    def _draw_panel(self) -> None:
        self._is_panel_due = False
        self.query_one(CachePanel).show(self.panel_state, self.now)
        self.query_one(CacheLine).show(self.panel_state)
