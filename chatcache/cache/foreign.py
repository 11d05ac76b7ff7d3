"""Files of others in the cache directory, as far as the shared disk budget is concerned.

All models and all processes share one budget. Of others is what lies in other namespaces, and what
other processes wrote into this one since it was opened. An engine may push out what was not used
for longer than its own segments; it never reads what is not in its own book.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Container
from dataclasses import dataclass
from pathlib import Path

from chatcache.cache.eviction import Candidate
from chatcache.cache.pins import PinBook
from chatcache.cache.policy import is_over
from chatcache.cache.segfile import SegmentDamagedError, SegmentFile, SegmentMissingError
from chatcache.cache.segments import FileStamp, SegmentStore, namespaces


@dataclass(frozen=True, slots=True)
class _ForeignFile:
    path: Path
    stamp: FileStamp
    store: SegmentStore


class ForeignSegments:
    """What lies below `cache_dir` and is not in the book of `namespace`'s engine."""

    def __init__(self, cache_dir: Path, namespace: str):
        self._cache_dir = cache_dir
        self._namespace = namespace
        self._files: dict[str, _ForeignFile] = {}
        self._parents: dict[str, str | None] = {}
        self._pins: dict[str, PinBook] = {}
        self.num_bytes = 0

    def look(self, own: Container[str]) -> dict[str, FileStamp]:
        """Look at all files again. `own` are names of files in this engine's book; returns, by
        name, those of them that are still there."""
        found: dict[str, FileStamp] = {}
        self._files = {}
        for store in namespaces(self._cache_dir):
            for path, stamp in store.stamps():
                if store.namespace == self._namespace and path.name in own:
                    found[path.name] = stamp
                else:
                    self._files[stamp.segment_id] = _ForeignFile(path, stamp, store)
        self._parents = {one: self._parents[one] for one in self._parents if one in self._files}
        self.num_bytes = sum(file.stamp.num_bytes for file in self._files.values())
        return found

    def has_expired(self, ttl: float | None, now: float) -> bool:
        files = self._files.values()
        return ttl is not None and any(is_over(f.stamp.last_used, ttl, now) for f in files)

    def candidates(self, expires_at: Callable[[float], float | None]) -> list[Candidate]:
        """All of them, for `choose_victims`. A header is read once, for the parent."""
        return [
            Candidate(
                segment_id=segment_id,
                parent_id=self._parent(segment_id, file.path),
                num_bytes=file.stamp.num_bytes,
                last_used=file.stamp.last_used,
                is_held=segment_id in self._pins_of(file.store),
                expires_at=expires_at(file.stamp.last_used),
            )
            for segment_id, file in self._files.items()
        ]

    def delete(self, segment_id: str) -> bool:
        """Remove one if it is ours to remove; False if it is unknown here."""
        file = self.disown(segment_id)
        if file is None:
            return False
        with contextlib.suppress(OSError):
            file.path.unlink()
        return True

    def disown(self, segment_id: str) -> _ForeignFile | None:
        """It is in the engine's own book now."""
        file = self._files.pop(segment_id, None)
        if file is not None:
            self.num_bytes -= file.stamp.num_bytes
        return file

    def _parent(self, segment_id: str, path: Path) -> str | None:
        if segment_id not in self._parents:
            try:
                with SegmentFile(path) as file:
                    self._parents[segment_id] = file.header.parent_id
            except (SegmentDamagedError, SegmentMissingError):
                self._parents[segment_id] = None
        return self._parents[segment_id]

    def _pins_of(self, store: SegmentStore) -> frozenset[str]:
        book = self._pins.setdefault(store.namespace, PinBook(store.directory))
        return book.read()
