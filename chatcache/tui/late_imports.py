"""The imports that come with what stands behind the screen. The first paint needs none of them:
they are brought in by a thread when the screen is there."""

from __future__ import annotations

import gc
import importlib


def load_chat() -> None:
    """Import what shows a chat. Called in a thread."""
    importlib.import_module("chatcache.tui.parts.wiring")


def load_rest() -> None:
    """Import what the first command would wait for, and end the start. Called in a thread."""
    importlib.import_module("chatcache.tui.actions.table")
    importlib.import_module("pygments.lexers.python")
    if not gc.isenabled():
        # What a start makes stays: the collector need not walk through it while somebody types.
        gc.freeze()
        gc.enable()
