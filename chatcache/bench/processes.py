"""The environment of the processes that the bench starts: this chatcache, in a home of its own."""

from __future__ import annotations

import os
from pathlib import Path

import chatcache

_NOT_OURS = ("NO_COLOR", "COLUMNS", "LINES", "TMUX", "CHATCACHE_MODEL")


def child_environment() -> dict[str, str]:
    """Ours, and the place of a chatcache that is not installed, but run from a checkout."""
    environment = {
        name: value
        for name, value in os.environ.items()
        if name not in _NOT_OURS and not name.startswith("TEXTUAL")
    }
    root = str(Path(chatcache.__file__).resolve().parents[1])
    others = environment.get("PYTHONPATH")
    environment["PYTHONPATH"] = os.pathsep.join([root, *([others] if others else [])])
    return environment


def home_environment(home: Path) -> dict[str, str]:
    """The same, with settings, conversations and segments below `home`: nobody's chats."""
    return child_environment() | {
        "CHATCACHE_DATA_DIR": str(home / "data"),
        "CHATCACHE_CACHE_DIR": str(home / "cache"),
        "CHATCACHE_CONFIG": str(home / "config.toml"),
        "HF_HUB_OFFLINE": "1",
        "TERM": "xterm-256color",
        "COLORTERM": "truecolor",
    }
