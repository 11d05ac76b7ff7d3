"""The segment files of all namespaces that are not in the book, as far as the disk is concerned.

All models and all processes share one budget. Not in the book of an engine is what lies in other
namespaces, and what no prompt has reached in its own. An engine may push out what was not used for
longer than its own segments. To open a store only names are listed, and sizes taken from the index;
times are looked up once they are needed.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Container, Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

from chatcache.cache.book.eviction import Candidate
from chatcache.cache.book.policy import is_over
from chatcache.cache.files.index import by_id, sizes, unpack_row
from chatcache.cache.files.names import id_of
from chatcache.cache.files.pins import PinBook
from chatcache.cache.files.store import (
    FileStamp,
    SegmentStore,
    StoredSegment,
    namespaces,
)


class DiskFile(NamedTuple):
    """A file, with the time of the last look (Unix time; 0: there was none yet)."""

    store: SegmentStore
    name: str
    num_bytes: int
    last_used: float

    @property
    def stamp(self) -> FileStamp:
        return FileStamp(id_of(self.name), self.num_bytes, self.last_used)


class _Listing:
    """The files of one namespace by segment id: names, sizes in bytes, times."""

    def __init__(self, store: SegmentStore):
        self.store = store
        self.names: dict[str, str] = {}
        self.sizes: dict[str, int] = {}
        self.times: dict[str, float] = {}

    def survey(self, rows: Mapping[str, bytes]) -> list[str]:
        """List names, with sizes from the index; returns the names that are not in it."""
        self.names = {id_of(name): name for name in self.store.names()}
        known = sizes(rows)
        self.sizes = {one: known[one] for one in self.names if one in known}
        unknown = [name for one, name in self.names.items() if one not in known]
        for stamp in filter(None, map(self.store.stamp, unknown)):
            self.sizes[stamp.segment_id] = stamp.num_bytes
        return unknown

    def look(self, own: Container[str]) -> dict[str, FileStamp]:
        """Look at each file; those in `own` are not listed, but returned by name."""
        stamps = dict(self.store.stamps())
        theirs = [(name, stamp) for name, stamp in stamps.items() if name not in own]
        self.names = {stamp.segment_id: name for name, stamp in theirs}
        self.sizes = {stamp.segment_id: stamp.num_bytes for _, stamp in theirs}
        self.times = {stamp.segment_id: stamp.last_used for _, stamp in theirs}
        return {name: stamps[name] for name in stamps.keys() - self.names.values()}

    def add(self, name: str, stamp: FileStamp) -> None:
        self.names[stamp.segment_id] = name
        self.sizes[stamp.segment_id] = stamp.num_bytes
        self.times[stamp.segment_id] = stamp.last_used

    def file(self, segment_id: str) -> DiskFile:
        name, num_bytes = self.names[segment_id], self.sizes.get(segment_id, 0)
        return DiskFile(self.store, name, num_bytes, self.times.get(segment_id, 0.0))

    def pop(self, segment_id: str) -> DiskFile:
        file = self.file(segment_id)
        for one in (self.names, self.sizes, self.times):
            one.pop(segment_id, None)
        return file


class DiskFiles:
    """What lies below `cache_dir` and is not in the book of `store`'s engine."""

    def __init__(self, cache_dir: Path, store: SegmentStore):
        self._cache_dir = cache_dir
        self._own = _Listing(store)
        self._listings = [self._own]
        self._parents: dict[str, str | None] = {}
        self._pins: dict[str, PinBook] = {}
        self._is_looked_at = False
        self.num_bytes = 0

    def survey(self, own_rows: Mapping[str, bytes]) -> list[str]:
        """List all files; `own_rows` is the index of the own namespace. Returns the names in the
        own namespace that are not in it. Times are unknown until the next look."""
        self._is_looked_at = False
        self._list()
        for one in self._listings:
            if one is not self._own:
                one.survey(by_id(one.store.index.read()))
        unknown = self._own.survey(own_rows)
        self._count()
        return unknown

    def look(self, own: Container[str]) -> dict[str, FileStamp]:
        """Look at all files again. `own` are names of files in this engine's book; returns, by
        name, those of them that are still there."""
        self._is_looked_at = True
        self._list()
        found: dict[str, FileStamp] = {}
        for one in self._listings:
            found.update(one.look(own if one is self._own else ()))
        self._count()
        return found

    def __contains__(self, segment_id: str) -> bool:
        """Whether it is one of the own namespace."""
        return segment_id in self._own.names

    @property
    def num_own(self) -> int:
        return len(self._own.names)

    def own(self) -> list[DiskFile]:
        """The files of the own namespace, with the times of the last look."""
        return list(map(self._own.file, self._own.names))

    def bytes_of(self, segment_ids: Iterable[str]) -> int:
        """What some of the own namespace take."""
        return sum(self._own.sizes.get(one, 0) for one in segment_ids)

    def add(self, name: str) -> bool:
        """A new file in the own namespace; False if it is gone by now."""
        stamp = self._own.store.stamp(name)
        if stamp is None:
            return False
        self.disown(stamp.segment_id)
        self._own.add(name, stamp)
        self.num_bytes += stamp.num_bytes
        return True

    def disown(self, segment_id: str) -> DiskFile | None:
        """It is in the engine's own book now, or gone."""
        for one in self._listings:
            if segment_id in one.names:
                file = one.pop(segment_id)
                self.num_bytes -= file.num_bytes
                return file
        return None

    def delete(self, segment_id: str) -> DiskFile | None:
        """Remove a file and return what it was; None if it is unknown here."""
        file = self.disown(segment_id)
        if file is not None:
            with contextlib.suppress(OSError):
                file.store.delete(file.store.directory / file.name)
        return file

    def may_have_expired(self, ttl: float | None, now: float) -> bool:
        """Whether the time of any of them is over; without a look, whether it could be."""
        if ttl is None:
            return False
        if not self._is_looked_at:
            return any(one.names for one in self._listings)
        oldest = min((min(one.times.values(), default=now) for one in self._listings), default=now)
        return is_over(oldest, ttl, now)

    def candidates(
        self, own_parents: Callable[[str], str | None], book: Container[str], ttl: float | None
    ) -> list[Candidate]:
        """All of them, for `choose_victims`, with the times of the last look.

        What builds on a segment that is neither here nor in the book cannot be used: it goes
        first."""
        found = []
        for one in self._listings:
            is_own = one is self._own
            parent_of = own_parents if is_own else self._parents_in(one).get
            pins = self._pins_of(one.store)
            for segment_id in one.names:
                file, parent_id = one.file(segment_id), parent_of(segment_id)
                is_lost = is_own and not (
                    parent_id is None or parent_id in one.names or parent_id in book
                )
                used = 0.0 if is_lost else file.last_used
                is_held, ends = segment_id in pins, None if ttl is None else file.last_used + ttl
                found.append(Candidate(segment_id, parent_id, file.num_bytes, used, is_held, ends))
        return found

    def _parents_in(self, listing: _Listing) -> dict[str, str | None]:
        """The parents in another namespace; a header that its index does not know is read once."""
        rows = map(unpack_row, listing.store.index.read())
        found = {row.segment_id: row.parent_id for row in rows}
        for segment_id, name in listing.names.items():
            if segment_id not in found:
                if segment_id not in self._parents:
                    loaded = listing.store.load(name)
                    header = loaded.header if isinstance(loaded, StoredSegment) else None
                    self._parents[segment_id] = header.parent_id if header else None
                found[segment_id] = self._parents[segment_id]
        return found

    def _list(self) -> None:
        """Notice namespaces that are new or gone."""
        known = {one.store.namespace: one for one in self._listings}
        there = {
            store.namespace: known.get(store.namespace) or _Listing(store)
            for store in namespaces(self._cache_dir)
        }
        there[self._own.store.namespace] = self._own
        self._listings = list(there.values())

    def _count(self) -> None:
        self.num_bytes = sum(sum(one.sizes.values()) for one in self._listings)

    def _pins_of(self, store: SegmentStore) -> frozenset[str]:
        pins = self._pins.get(store.namespace)
        if pins is None:
            pins = self._pins[store.namespace] = PinBook(store.directory)
        return pins.read()
