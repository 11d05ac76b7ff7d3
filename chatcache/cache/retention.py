"""What a person keeps or drops on disk by name: pins, and the deletion of paths and namespaces.

It owns which segments a pin or a deletion covers. A segment is useless without those before it, so
whole paths are pinned and whole subtrees are dropped. It knows neither models nor texts.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from dataclasses import dataclass

from chatcache.cache.book.segment_book import lineage
from chatcache.cache.files import index, pins
from chatcache.cache.files.pins import PinBook
from chatcache.cache.files.store import SegmentStore, namespaces
from chatcache.cache.inspect import CacheInspector, NamespaceUse, Removed, remove_files
from chatcache.cache.views import SegmentRow
from chatcache.places import path_of
from chatcache.token_ids import TokenIds

_NOTES = (
    "namespace.json",
    "rates.json",
    "chunk.json",
    "steps.json",
    pins.FILE_NAME,
    *index.FILE_NAMES,
)


@dataclass(frozen=True, slots=True)
class Unpinned:
    """`num_still_pinned` have to stay: other pinned segments build on them."""

    num_unpinned: int
    num_still_pinned: int


class Keeper:
    """The segments of one namespace, as far as they are on disk."""

    def __init__(self, inspector: CacheInspector, namespace: str):
        self._inspector = inspector
        self._rows = {row.segment_id: row for row in inspector.rows() if row.namespace == namespace}
        self._store = SegmentStore(inspector.cache_dir, namespace)
        self._pins = PinBook(self._store.directory)
        self._namespace = namespace

    def rows_of(self, segment_ids: Iterable[str]) -> list[SegmentRow]:
        return [self._rows[segment_id] for segment_id in segment_ids]

    def path(self, segment_id: str) -> set[str]:
        """A segment and all that it builds on."""
        return set(lineage(segment_id, lambda known: self._rows[known].parent_id, self._rows))

    def paths(self, journals: Iterable[TokenIds]) -> set[str]:
        """The segments of some journals, and all that they build on."""
        used = self._inspector.on_paths(self._namespace, journals)
        return set().union(*map(self.path, used))

    def num_held(self, journal: TokenIds) -> int:
        """How many leading tokens of a journal are on disk."""
        return self._inspector.num_held(self._namespace, journal)

    def subtree(self, segment_ids: Iterable[str]) -> set[str]:
        """Segments and all that builds on them."""
        found = set(segment_ids)
        for row in sorted(self._rows.values(), key=lambda row: (row.start, row.stop)):
            if row.parent_id in found:
                found.add(row.segment_id)
        return found

    def pinned(self, segment_ids: set[str]) -> set[str]:
        return segment_ids & self._pins.read()

    def pin(self, segment_ids: set[str]) -> int:
        """Returns how many were not pinned before. Raises OSError."""
        return self._pins.add(segment_ids)

    def unpin(self, segment_ids: set[str]) -> Unpinned:
        """Unpin all but what other pinned segments build on. Raises OSError."""
        others = self._pins.read() - segment_ids
        needed = set().union(*map(self.path, others))
        return Unpinned(self._pins.remove(segment_ids - needed), len(segment_ids & needed))

    def drop(self, segment_ids: set[str]) -> Removed:
        """Delete the files, the last of a path first, and their pins. Raises OSError."""
        if self.pinned(segment_ids):
            self._pins.remove(segment_ids)
        rows = sorted(self.rows_of(segment_ids), key=lambda row: -row.start)
        removed = remove_files([self._inspector.path_of(row) for row in rows])
        self._store.forget_deleted()
        return removed


def dead_namespaces(inspector: CacheInspector) -> list[NamespaceUse]:
    """Those whose model was a directory that is no longer there, and in which nothing is pinned."""
    return [use for use in inspector.namespaces() if _is_dead(inspector, use)]


def remove_namespace(inspector: CacheInspector, namespace: str) -> Removed:
    """Delete its segments and what is noted beside them. Raises OSError."""
    store = SegmentStore(inspector.cache_dir, namespace)
    removed = remove_files(store.paths())
    remove_files([store.directory / name for name in _NOTES])
    with contextlib.suppress(OSError):
        store.directory.rmdir()  # not empty: somebody is writing there, or put something there
    return removed


def forget_lost_pins(inspector: CacheInspector) -> None:
    """Pins of files that are gone. Raises OSError."""
    for store in namespaces(inspector.cache_dir):
        book = PinBook(store.directory)
        if lost := book.read() - {stamp.segment_id for _, stamp in store.stamps()}:
            book.remove(lost)


def _is_dead(inspector: CacheInspector, use: NamespaceUse) -> bool:
    model = path_of(use.fields.get("soft.name", ""))
    pins = PinBook(SegmentStore(inspector.cache_dir, use.namespace).directory)
    return model.is_absolute() and not model.exists() and not pins.read()
