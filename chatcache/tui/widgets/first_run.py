"""The bar of the first run: the built-in model is small, and one key leads to another one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from textual.app import ComposeResult
from textual.containers import Horizontal
from textual.content import Content
from textual.widgets import Static

from chatcache.formatting import size
from chatcache.tui.look.formatting import shorten
from chatcache.tui.look.layout import NARROW_BELOW
from chatcache.tui.look.styles import MUTED

if TYPE_CHECKING:
    from chatcache.backends.local.model.shelf import ShelfModel

_LONGEST_NAME = 40


class FirstRunBar(Horizontal):
    """Hidden until there is something to offer; Esc and the first message hide it again."""

    def compose(self) -> ComposeResult:
        yield Static(id="first-run-offer", markup=False)
        yield Static(Content.styled("Esc hides", MUTED), id="first-run-hide", markup=False)

    def on_mount(self) -> None:
        self.display = False

    def offer(self, key: str, models: Sequence[ShelfModel], *, is_offline: bool) -> None:
        """Show what the picker has: a model that is here already, else where to get one."""
        here = [model for model in models if model.place != "built in" and not model.problem]
        what = "a directory with a model" if is_offline else "a download, or a directory"
        if here:
            name = shorten(here[0].name, _LONGEST_NAME)
            what = f"{name} is on this machine ({size(here[0].num_bytes)})"
            if here[0].place == "server":
                what = f"{name} at a server of yours"
            if len(here) > 1:
                what += f", and {len(here) - 1} more"
        why = "This model is small. " if self.app.size.width >= NARROW_BELOW else ""
        text = Content.assemble(why, (key, "bold"), f" picks another: {what}")
        self.query_one("#first-run-offer", Static).update(text)
        self.display = True

    def hide(self) -> bool:
        """False when it was not there."""
        was_shown = bool(self.display)
        self.display = False
        return was_shown
