"""Unsent words, one draft per chat, kept over restarts in a small private file.

Losing the file loses drafts and nothing else, so a file that cannot be read or written is ignored.
"""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

from chatcache.atomic_write import write_atomically

NEW_CHAT = ""
_MAX_DRAFTS = 200


class Drafts:
    """Texts by session id; `NEW_CHAT` stands for the chat that has no row yet."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._texts: dict[str, str] = _read(path)

    def keep(self, session_id: str, text: str) -> None:
        self._texts.pop(session_id, None)
        if text.strip():
            self._texts[session_id] = text

    def take(self, session_id: str) -> str:
        return self._texts.pop(session_id, "")

    def save(self) -> None:
        """Replace the file as a whole; the newest drafts stay when there are too many."""
        if self._path is None:
            return
        kept = dict(list(self._texts.items())[-_MAX_DRAFTS:])
        with contextlib.suppress(OSError):
            # As ASCII: half a character must not stop it.
            write_atomically(self._path, json.dumps(kept).encode("ascii"))


def _read(path: Path | None) -> dict[str, str]:
    if path is None:
        return {}
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    if not isinstance(stored, dict):
        return {}
    return {key: text for key, text in stored.items() if isinstance(text, str)}
