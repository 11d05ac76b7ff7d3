"""Which chat was looked at last, so that the next start shows it again.

A small private file; without it the chat that was used last is shown.
"""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import TYPE_CHECKING

from chatcache.atomic_write import write_atomically
from chatcache.errors import NotFoundError

if TYPE_CHECKING:
    from chatcache.chat.service import ChatService
    from chatcache.chat.views import SessionSummary


def remember(path: Path | None, session_id: str, at: float) -> None:
    """Note a chat that is being left at `at`, a Unix time."""
    if path is not None:
        with contextlib.suppress(OSError):
            write_atomically(path, json.dumps({"session_id": session_id, "at": at}).encode())


def find(service: ChatService, path: Path | None) -> SessionSummary | None:
    """The chat that was looked at last, unless another one has been used since."""
    last = service.last_session()
    noted = _read(path)
    if last is None or noted is None or noted[1] < last.updated_at:
        return last
    try:
        return service.find_session(noted[0])
    except NotFoundError:  # it was deleted
        return last


def _read(path: Path | None) -> tuple[str, float] | None:
    if path is None:
        return None
    try:
        stored = json.loads(path.read_text())
        return str(stored["session_id"]), float(stored["at"])
    except (OSError, ValueError, TypeError, KeyError):
        return None
