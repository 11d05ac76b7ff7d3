"""What the next start shows again: the unsent words of each chat, and the chat looked at last.

Two small private files. Losing them loses no more than that, so a file that cannot be read or
written is ignored.
"""

from __future__ import annotations

import contextlib
import json
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

from chatcache.atomic_write import write_atomically
from chatcache.errors import NotFoundError

if TYPE_CHECKING:
    from chatcache.chat.service import ChatService
    from chatcache.chat.views import SessionSummary

NEW_CHAT = ""
UNPLACED = "?"
_MAX_DRAFTS = 200


class Drafts:
    """Texts by session id; `NEW_CHAT` stands for the chat that has no row yet, `UNPLACED` for what
    was written before any was open. Several programs may share the file: each changes only the
    texts that it has touched. `save` may be called from any thread."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._touched: dict[str, str] = {}
        self._saving = threading.Lock()

    def keep(self, session_id: str, text: str) -> None:
        self._touched[session_id] = text

    def take(self, session_id: str) -> str:
        """The text, which whoever takes it keeps again."""
        text = self._touched.get(session_id)
        if text is None:
            text = self._stored().get(session_id, "")
        self._touched[session_id] = ""
        return text if text.strip() else ""

    def save(self) -> None:
        """Replace the file as a whole; the newest drafts stay when there are too many."""
        with self._saving:
            stored = self._stored()
            texts = dict(stored)
            for session_id, text in list(self._touched.items()):
                if not text.strip():
                    texts.pop(session_id, None)
                elif texts.get(session_id) != text:
                    texts.pop(session_id, None)
                    texts[session_id] = text
            if texts != stored:
                _write(self._path, dict(list(texts.items())[-_MAX_DRAFTS:]))

    def _stored(self) -> dict[str, str]:
        return {key: text for key, text in _read(self._path).items() if isinstance(text, str)}


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
