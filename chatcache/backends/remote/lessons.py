"""What was learned of servers, kept beside the cache: a later process need not be refused again.

Owns one small file of JSON, which can be deleted at any time. It holds no words and no keys.
"""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

from chatcache.atomic_write import write_atomically

log = logging.getLogger(__name__)

MAX_SERVERS = 200
MAX_BYTES = 1 << 20


class Lessons:
    """By server and model. Without a file, and where it cannot be read, nothing is remembered."""

    def __init__(self, path: Path | None) -> None:
        self._path = path

    def recall(self, server: str) -> Any:
        """What was learned of a server; None: nothing."""
        return self._read().get(server)

    def keep(self, server: str, lessons: dict[str, Any]) -> None:
        """Remember it; {}: there is nothing to remember."""
        if self._path is None:
            return
        known = self._read()
        known.pop(server, None)
        if lessons:
            known[server] = lessons
        newest = dict(list(known.items())[-MAX_SERVERS:])
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            write_atomically(self._path, json.dumps(newest, indent=1).encode())
        except OSError:
            log.info("what was learned of a server is not kept", exc_info=True)

    def _read(self) -> dict[str, Any]:
        try:
            if self._path is None or self._path.stat().st_size > MAX_BYTES:
                return {}
            content = json.loads(self._path.read_bytes())
        except (OSError, ValueError, RecursionError):
            return {}
        return content if isinstance(content, dict) else {}
