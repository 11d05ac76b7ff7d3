"""The imports that come with what stands behind the screen. The first paint needs none of them:
they are brought in by a thread when the screen is there."""

from __future__ import annotations

import gc
import importlib

_FOR_THE_CHAT = ("chatcache.tui.parts.wiring",)
_FOR_THE_REST = ("chatcache.tui.actions.table", "pygments.lexers.python")


def load_chat() -> None:
    """Import what shows a chat. Called in a thread."""
    _load(_FOR_THE_CHAT)


def load_rest() -> None:
    """Import what the first command would wait for, and end the start. Called in a thread."""
    _load(_FOR_THE_REST)
    if not gc.isenabled():
        # What a start makes stays: the collector need not walk through it while somebody types.
        gc.freeze()
        gc.enable()


def _load(names: tuple[str, ...]) -> None:
    for name in names:
        importlib.import_module(name)
