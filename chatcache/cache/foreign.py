"""Segments of other namespaces, as far as the shared disk budget is concerned.

All models share one disk budget. A model that is in use may push out what belongs to models that
were not used for longer; it never reads their segments.
"""

from __future__ import annotations

import contextlib
from pathlib import Path

from chatcache.cache.eviction import Candidate
from chatcache.cache.segments import StoredSegment, namespaces


class ForeignSegments:
    """What lies below `cache_dir` in other namespaces than `namespace`."""

    def __init__(self, cache_dir: Path, namespace: str):
        self._stores = [store for store in namespaces(cache_dir) if store.namespace != namespace]
        self._segments: dict[str, StoredSegment] | None = None
        self.num_bytes = sum(_size(path) for store in self._stores for path in store.paths())

    def candidates(self) -> list[Candidate]:
        """All of them, for `choose_victims`. Headers are read on the first call only."""
        if self._segments is None:
            found = [stored for store in self._stores for stored in store.scan()[0]]
            self._segments = {stored.header.segment_id: stored for stored in found}
        return [
            Candidate(
                segment_id=stored.header.segment_id,
                parent_id=stored.header.parent_id,
                num_bytes=stored.header.num_bytes,
                last_used=stored.last_used,
            )
            for stored in self._segments.values()
        ]

    def delete(self, segment_id: str) -> bool:
        """Remove one if it is ours to remove; False if it is unknown here."""
        stored = (self._segments or {}).pop(segment_id, None)
        if stored is None:
            return False
        with contextlib.suppress(OSError):
            stored.path.unlink()
        self.num_bytes -= stored.header.num_bytes
        return True


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0
