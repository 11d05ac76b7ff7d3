"""What the next start shows again: the unsent words of each chat, and the chat looked at last.

Two small private files. Losing them loses no more than that, so a file that cannot be read or
written is ignored.
"""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from chatcache.atomic_write import write_atomically
from chatcache.errors import NotFoundError

if TYPE_CHECKING:
    from chatcache.chat.service import ChatService
    from chatcache.chat.views import SessionSummary

NEW_CHAT = ""
_MAX_DRAFTS = 200


class Drafts:
    """Texts by session id; `NEW_CHAT` stands for the chat that has no row yet."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        stored = _read(path).items()
        self._texts = {key: text for key, text in stored if isinstance(text, str)}

    def keep(self, session_id: str, text: str) -> None:
        self._texts.pop(session_id, None)
        if text.strip():
            self._texts[session_id] = text

    def take(self, session_id: str) -> str:
        return self._texts.pop(session_id, "")

    def save(self) -> None:
        """Replace the file as a whole; the newest drafts stay when there are too many."""
        _write(self._path, dict(list(self._texts.items())[-_MAX_DRAFTS:]))


def note_last_chat(path: Path | None, session_id: str, at: float) -> None:
    """Note a chat that is being left at `at`, a Unix time."""
    _write(path, {"session_id": session_id, "at": at})


def last_chat(service: ChatService, path: Path | None) -> SessionSummary | None:
    """The chat that was looked at last, unless another one has been used since."""
    last = service.last_session()
    noted = _read(path)
    try:
        if last is None or float(noted["at"]) < last.updated_at:
            return last
        return service.find_session(str(noted["session_id"]))
    except (KeyError, TypeError, ValueError, NotFoundError):  # no such note, or it was deleted
        return last


def _read(path: Path | None) -> dict[str, Any]:
    if path is None:
        return {}
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return stored if isinstance(stored, dict) else {}


def _write(path: Path | None, values: dict[str, Any]) -> None:
    if path is not None:
        with contextlib.suppress(OSError):
            # As ASCII: half a character must not stop it.
            write_atomically(path, json.dumps(values).encode("ascii"))
