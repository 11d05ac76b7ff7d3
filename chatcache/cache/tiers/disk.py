"""The disk tier: the files of all namespaces below one cache directory, under one budget.

All models and all processes share the budget, so an engine may push out what was not used for
longer than its own segments. Sizes are known from the indexes; files are looked at one by one, for
their times, once something has to go. Takes no part in a turn.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from chatcache.cache.book.entries import Entry
from chatcache.cache.book.eviction import Candidate, choose_victims
from chatcache.cache.book.policy import TierPolicy, is_over
from chatcache.cache.book.segment_book import SegmentBook
from chatcache.cache.files.names import parse_name
from chatcache.cache.files.pins import PinBook
from chatcache.cache.files.store import (
    FileStamp,
    LostSegment,
    SegmentStore,
    StoredSegment,
    namespaces,
)
from chatcache.cache.tiers.notices import Notices
from chatcache.cache.views import TierUse

_LOOKS_PER_BUDGET = 64


class FileSeen(NamedTuple):
    """A file as it was seen last."""

    store: SegmentStore
    name: str
    stamp: FileStamp


class DiskTier:
    """The files, and how they are given up. `is_reading` and `is_writing`: whether what lies there
    may be used and changed."""

    def __init__(
        self,
        cache_dir: Path,
        namespace: str,
        book: SegmentBook,
        budget: int,
        policy: TierPolicy,
        notices: Notices,
        clock: Callable[[], float],
    ):
        self.store = SegmentStore(cache_dir, namespace)
        self.budget = budget
        self.is_reading, self.is_writing = True, policy.spill != "never"
        self._cache_dir = cache_dir
        self._book = book
        self._policy = policy
        self._notices = notices
        self._clock = clock
        self._pins = PinBook(self.store.directory)
        self._parents: dict[str, str | None] = {}
        # What the index of the own namespace does not count; None: it was not looked at yet.
        self._bytes_elsewhere: int | None = None
        self._bytes_unseen = 0  # written since the last look
        self._oldest = -math.inf  # the last use of what is not in the book; -inf: not looked at yet

    def open(self) -> None:
        """Find out what is there. Headers are read only of files that the index does not know."""
        with self._book.lock:
            self._notices.damaged += self.store.quarantined()
            self.store.index.open(is_writing=self.is_writing)
            self._bring_up_to_date()
            self.refresh_pins()
            if self._policy.disk_kept > self.budget:
                self.budget = max(self.budget, min(self.num_bytes, self._policy.disk_kept))
            self.enforce()

    def open_again(self) -> None:
        """Begin again in the place of a directory that somebody removed."""
        self.store.prepare_again()
        self.store.index.open(is_writing=self.is_writing)

    def close(self) -> None:
        self.store.index.close()

    def refresh_pins(self) -> None:
        """Notice what a command has pinned or unpinned meanwhile."""
        self._book.set_pinned(self._pins.read())

    @property
    def num_segments(self) -> int:
        """How many of this namespace there are."""
        return self.store.index.totals()[0]

    @property
    def num_bytes(self) -> int:
        """What all namespaces take, as far as this process knows."""
        if self._bytes_elsewhere is None:
            others = self._other_stores() if self.is_reading else []
            self._bytes_elsewhere = sum(map(_bytes_in, others))
        return self._bytes_elsewhere + self.store.index.totals()[1]

    def use(self) -> TierUse:
        """Bytes of all namespaces, segments of this one."""
        return TierUse(self.num_bytes, self.budget, self.num_segments)

    # segments of the book

    def note_written(self, entry: Entry, path: Path, size: int) -> None:
        """A segment is on disk now."""
        with self._book.lock:
            entry.path, entry.disk_bytes = path, size
            self._book.log.note("spilled", entry, "disk", num_bytes=size)
            self._bytes_unseen += size
            self._notices.settled("floor")
            self.enforce()

    def note_use_by_others(self, entry: Entry) -> None:
        stamp = None if entry.path is None else self.store.stamp(entry.path.name)
        if stamp is not None:
            entry.last_used = max(entry.last_used, stamp.last_used)

    def give_up(self, entry: Entry) -> None:
        """Delete the file of a segment; where nothing may be deleted, it is no longer known."""
        if entry.path is not None and self.is_writing:
            self.store.delete(entry.path)
        self.store.index.remove([entry.segment_id])
        entry.path, entry.disk_bytes = None, 0

    def set_aside(self, file: LostSegment) -> None:
        """Remember a damaged file, and move it where it is not read again."""
        self._notices.damaged.append(file)
        self.store.index.remove([file.segment_id])
        if self.is_writing:
            self.store.quarantine(self.store.path_of(file), file.inode)
        text = f"set aside segment {file.segment_id[:8]}: {file.problem}"
        self._notices.tell("quarantined", text)

    def lose(self, entry: Entry, problem: str, damaged_inode: int | None) -> None:
        """A segment could not be used: its file is damaged (its inode is given) or gone."""
        with self._book.lock:
            if damaged_inode is None:
                self.store.index.remove([entry.segment_id])  # it is not looked for again
            else:
                self.set_aside(
                    LostSegment(entry.segment_id, entry.start, entry.stop, problem, damaged_inode)
                )
            self._book.remove(entry)
            self._book.log.note("given_up", entry, is_gone=True)

    # the budget

    def enforce(self, bytes_wanted: int = 0, *, is_all_or_nothing: bool = False) -> None:
        """Delete files whose time is over and, over the budget, leaves and least recently used ones
        first, of whatever model and process. With `bytes_wanted`, at least as much is freed; if
        that is impossible, `is_all_or_nothing` frees nothing."""
        with self._book.lock:
            if not self.is_writing:
                return
            if self._bytes_unseen > self.budget // _LOOKS_PER_BUDGET:
                self._look()
            if self._excess(bytes_wanted) <= 0 and not self._has_expired():
                return
            self.refresh_pins()
            files = {file.stamp.segment_id: file for file in self._look()}
            excess = self._excess(bytes_wanted)
            candidates = self._candidates(files.values())
            if excess > bytes_wanted:
                excess += self.budget // _LOOKS_PER_BUDGET  # not again for the next segment
            victims = choose_victims(candidates, max(0, excess), self._clock())
            if is_all_or_nothing and sum(victim.num_bytes for victim in victims) < bytes_wanted:
                return
            if excess > 0:
                pinned = files.keys() & self._book.pinned
                num_bytes = sum(files[segment_id].stamp.num_bytes for segment_id in pinned)
                self._notices.warn_of_pins(num_bytes, "the disk", self.budget)
            self._evict(victims, files)
            self._note(files.values())

    def _excess(self, bytes_wanted: int) -> int:
        return max(self.num_bytes - self.budget, bytes_wanted)

    def _has_expired(self) -> bool:
        now, ttl = self._clock(), self._policy.disk_ttl
        is_own = ttl is not None and any(e.is_over(ttl, now) for e in self._book.on_disk())
        return is_own or is_over(self._oldest, ttl, now)

    def look_at_own(self) -> dict[str, FileStamp]:
        """The files of this namespace by name, and what other processes did to them meanwhile."""
        self._bring_up_to_date()
        stamps = dict(self.store.stamps())
        for entry in self._book.on_disk():
            if entry.path is not None and (stamp := stamps.get(entry.path.name)):
                entry.last_used = max(entry.last_used, stamp.last_used)
            elif entry.num_leases == 0:
                entry.path, entry.disk_bytes, entry.can_spill = None, 0, False
                is_gone = self._book.remove_if_gone(entry)
                self._book.log.note("given_up", entry, "disk", is_gone=is_gone)
        return stamps

    def _look(self) -> list[FileSeen]:
        """See what is there of all namespaces."""
        files = [FileSeen(self.store, *named) for named in self.look_at_own().items()]
        for store in self._other_stores():
            files += [FileSeen(store, *named) for named in store.stamps()]
        self._bytes_unseen = 0
        self._note(files)
        return files

    def _note(self, files: Collection[FileSeen]) -> None:
        """Remember of all files what they take, and which was used last the longest time ago."""
        num_bytes = sum(file.stamp.num_bytes for file in files)
        self._bytes_elsewhere = num_bytes - self.store.index.totals()[1]
        kept = self._book.pinned
        seen = [stamp for _, _, stamp in files if stamp.segment_id not in kept]
        times = (stamp.last_used for stamp in seen if stamp.segment_id not in self._book)
        self._oldest = min(times, default=math.inf)

    def _bring_up_to_date(self) -> None:
        for damaged in self.store.bring_index_up_to_date():
            self.set_aside(damaged)

    def _other_stores(self) -> list[SegmentStore]:
        found = namespaces(self._cache_dir)
        return [store for store in found if store.namespace != self.store.namespace]

    def _candidates(self, files: Collection[FileSeen]) -> Iterator[Candidate]:
        """All files. What builds on a segment that is nowhere cannot be used: it goes first."""
        by_store: dict[SegmentStore, list[FileSeen]] = {}
        for file in files:
            by_store.setdefault(file.store, []).append(file)
        for store, seen in by_store.items():
            is_own = store is self.store
            parents = self._parents_in(store, seen)
            pins = self._book.pinned if is_own else PinBook(store.directory).read()
            there = {file.stamp.segment_id for file in seen}
            for file in seen:
                segment_id, num_bytes, last_used = file.stamp
                entry = self._book.get(segment_id) if is_own else None
                if entry is not None and entry.path is not None:
                    yield entry.candidate(entry.disk_bytes, self._policy.disk_ttl)
                    continue
                parent_id, ttl = parents.get(segment_id), self._policy.disk_ttl
                has_parent = parent_id is None or parent_id in there or parent_id in self._book
                yield Candidate(
                    segment_id=segment_id,
                    parent_id=parent_id,
                    num_bytes=num_bytes,
                    last_used=last_used if has_parent or not is_own else 0.0,
                    is_held=segment_id in pins,
                    expires_at=None if ttl is None else last_used + ttl,
                )

    def _parents_in(
        self, store: SegmentStore, files: Iterable[FileSeen]
    ) -> Mapping[str, str | None]:
        """In another namespace, a header that its index does not know is read once."""
        if store is self.store:
            return store.index.parents()
        with store.index.opened() as index:
            parents = index.parents()
        for _, name, stamp in files:
            segment_id = stamp.segment_id
            if segment_id not in parents and segment_id not in self._parents:
                stored = store.load(name)
                self._parents[segment_id] = (
                    stored.row.parent_id if isinstance(stored, StoredSegment) else None
                )
        return {**self._parents, **parents}

    def _evict(self, victims: Iterable[Candidate], files: dict[str, FileSeen]) -> None:
        """Delete the files of the victims, which are then no longer in `files`."""
        now = self._clock()
        lengths: dict[bool, list[int]] = {False: [], True: []}
        own = []
        for victim in victims:
            file = files.pop(victim.segment_id)
            with contextlib.suppress(OSError):
                file.store.delete(file.store.directory / file.name)
            if file.store is not self.store:
                continue
            is_expired = victim.expires_at is not None and victim.expires_at <= now
            name = parse_name(file.name)
            own.append(name.segment_id)
            lengths[is_expired].append(name.stop - name.start)
            entry = self._book.get(name.segment_id)
            if entry is not None and entry.path is not None:
                entry.path, entry.disk_bytes = None, 0
                entry.can_spill = is_expired  # what did not fit would not fit again
                is_gone = self._book.remove_if_gone(entry)
                self._book.log.note(
                    "evicted", entry, "disk", num_bytes=victim.num_bytes, is_gone=is_gone
                )
            else:
                is_gone = entry is None
            if is_gone and is_expired:
                self._notices.note_expired(name)
        self.store.index.remove(own)
        for is_expired, of_each in lengths.items():
            self._notices.tell_evicted(of_each, "disk", is_expired=is_expired)


def _bytes_in(store: SegmentStore) -> int:
    with store.index.opened() as index:
        num_segments, num_bytes = index.totals()
    if num_segments == 0:
        return sum(stamp.num_bytes for _, stamp in store.stamps())
    return num_bytes
