"""Tells the front end what the cache of a model does, and what it holds."""

from __future__ import annotations

import time
from collections.abc import Callable

from chatcache.backends.base import BackendEvent, CacheEvent, CacheSnapshot
from chatcache.backends.local.run.live_path import LivePath
from chatcache.cache.prefix import PrefixCache

_SNAPSHOT_ROWS = 50


class CacheReporter:
    """`prefixes` is set before anything is reported: the cache itself reports here."""

    prefixes: PrefixCache

    def __init__(self, emit: Callable[[BackendEvent], None], path: LivePath):
        self._emit = emit
        self._path = path

    def note(self, kind: str, text: str) -> None:
        """Something has happened; what is held is shown, too, where that changed."""
        self._emit(CacheEvent(time.time(), kind, text))  # type: ignore[arg-type]
        if kind in ("spilled", "evicted"):
            self.show()

    def show(self) -> None:
        """What is held in RAM and on disk, and what is live."""
        ram, disk = self.prefixes.use()
        rows = self.prefixes.rows(self._path.ids, _SNAPSHOT_ROWS)
        live = self._path.kv
        self._emit(CacheSnapshot(ram, disk, live.num_tokens, live.num_bytes, tuple(rows)))
