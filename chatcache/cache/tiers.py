"""Where each segment of a namespace lies, and how long: RAM, disk, pins, times to live, budgets.

It owns the book (the segments that are in RAM, or that a prompt has reached since the cache was
opened) and every decision to write one to disk or to give one up. It takes no part in a turn
(`prefix.py` does). All methods take the lock themselves; callers that need several steps to be one
take it around them.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Collection, Iterable
from pathlib import Path
from typing import Literal

from chatcache import formatting
from chatcache.cache.attach import Attacher
from chatcache.cache.book.entries import Entry
from chatcache.cache.book.eviction import Candidate, choose_victims
from chatcache.cache.book.policy import LOW_WATER, TierPolicy, is_over
from chatcache.cache.book.radix import MatchResult, RadixTree
from chatcache.cache.disk import DiskFiles
from chatcache.cache.files.index import by_id, pack_row, unpack_row
from chatcache.cache.files.names import file_name, parse_name
from chatcache.cache.files.pins import PinBook
from chatcache.cache.files.store import (
    DamagedFile,
    FileStamp,
    SegmentStore,
    StoredSegment,
    index_row,
)
from chatcache.cache.spill import Spiller
from chatcache.cache.views import SegmentRow
from chatcache.token_ids import TokenIds

_MAX_REMEMBERED = 1000
_LOOKS_PER_BUDGET = 64
_EXPIRED = "was not used within its time to live"


class Tiers:
    """The segments of one namespace by id, and the tree over those that can be matched."""

    def __init__(
        self,
        cache_dir: Path,
        namespace: str,
        budgets: tuple[int, int],
        policy: TierPolicy,
        on_event: Callable[[str, str], None],
        clock: Callable[[], float],
        *,
        needs_states: bool = False,
    ):
        self.ram_budget, self.disk_budget = budgets
        self.policy = policy
        self.tell = on_event
        self.clock = clock
        self.lock = threading.RLock()
        self.tree = RadixTree()
        self.entries: dict[str, Entry] = {}
        self.damaged: list[DamagedFile] = []
        self.expired: deque[DamagedFile] = deque(maxlen=_MAX_REMEMBERED)
        self.store = SegmentStore(cache_dir, namespace)
        self.disk = DiskFiles(cache_dir, self.store)
        self.spiller = Spiller(self)
        self._attacher = Attacher(
            self.tree, self.store, self._attached, self.set_aside, needs_all=needs_states
        )
        self._catalog = self._attacher.catalog
        self._pins = PinBook(self.store.directory)
        self._pinned: frozenset[str] = frozenset()
        self.is_reading = True  # what lies on disk may be used
        self._bytes_unseen = 0
        self._warned: set[str] = set()

    @property
    def is_writing(self) -> bool:
        """Whether anything on disk may be changed."""
        return self.policy.spill != "never"

    # the book

    def open(self) -> None:
        """Find out what is on disk. Headers are read only of files that the index does not know."""
        with self.lock:
            self.damaged = self.store.quarantined()
            rows = by_id(self.store.index.read())
            new = []
            for name in self.disk.survey(rows):
                loaded = self.store.load(name)
                if isinstance(loaded, StoredSegment):
                    new.append(pack_row(index_row(loaded.header, loaded.header.num_bytes)))
                elif loaded is not None:
                    self.set_aside(loaded)
            rows.update(by_id(new))
            there = {one: row for one, row in rows.items() if one in self.disk}
            self._catalog.add(there)
            if self.is_writing and self.store.index.has_to_be_written(len(there)):
                self.store.index.write(there.values())
            elif self.is_writing and new:
                self.store.index.append(new)
            self.refresh_pins()
            self.enforce_disk()

    def refresh(self) -> None:
        """Notice what commands have pinned and other processes have written meanwhile."""
        if not self.is_reading:
            return
        self.refresh_pins()
        with self.lock:
            for segment_id, packed in by_id(self.store.index.read_new()).items():
                is_known = segment_id in self.entries or segment_id in self._catalog
                if not is_known and self.disk.add(file_name(unpack_row(packed))):
                    self._catalog.add({segment_id: packed})

    def match(self, ids: TokenIds) -> MatchResult:
        """The longest held run of leading ids, wherever it lies."""
        with self.lock:
            self._attacher.reach(ids)
            return self.tree.match(ids)

    def add(self, entry: Entry) -> None:
        with self.lock:
            entry.can_spill = entry.num_bytes < self.disk_budget
            entry.is_pinned = entry.segment_id in self._pinned
            self.entries[entry.segment_id] = entry
            self._catalog.discard(entry.segment_id)

    def forget(self, entry: Entry) -> None:
        with self.lock:
            self.tree.remove(entry.segment_id)
            self.entries.pop(entry.segment_id, None)

    def set_aside(self, file: DamagedFile) -> None:
        """Remember a damaged file, and move it where it is not read again."""
        with self.lock:
            self.damaged.append(file)
            self.disk.disown(file.segment_id)
            if self.is_writing:
                self.store.quarantine(self.store.path_of(file), file.inode)
        self.tell("quarantined", f"set aside segment {file.segment_id[:8]}: {file.problem}")

    def rows(self, live_ids: Collection[str], limit: int | None) -> list[SegmentRow]:
        """Segments, the most recently used first. With a limit no more than that, and of those
        that no prompt has reached yet the last written."""
        with self.lock:
            if limit is None:
                self._look()
                stamps = {file.name: file.stamp for file in self.disk.own()}
            else:
                names = [file_name(row) for row in self._catalog.latest(limit)]
                stamps = {name: found for name in names if (found := self.store.stamp(name))}
            namespace = self.store.namespace
            rows = [
                one.row(namespace, is_live=one.segment_id in live_ids)
                for one in self.entries.values()
            ]
            rows += [
                self._file_row(name, stamp)
                for name, stamp in stamps.items()
                if stamp.segment_id not in self.entries
            ]
            return sorted(rows, key=lambda row: (-row.last_used, -row.start))[:limit]

    def _file_row(self, name: str, stamp: FileStamp) -> SegmentRow:
        start, stop, _ = parse_name(name)
        return SegmentRow(
            segment_id=stamp.segment_id,
            namespace=self.store.namespace,
            parent_id=self._catalog.parent_of(stamp.segment_id),
            start=start,
            stop=stop,
            num_bytes=stamp.num_bytes,
            in_ram=False,
            on_disk=True,
            is_live=False,
            is_pinned=stamp.segment_id in self._pinned,
            last_used=stamp.last_used,
            hits=0,
        )

    def _attached(self, entry: Entry) -> None:
        self.disk.disown(entry.segment_id)
        entry.is_pinned = entry.segment_id in self._pinned
        self.entries[entry.segment_id] = entry

    def refresh_pins(self) -> None:
        """Notice what a command has pinned or unpinned meanwhile."""
        with self.lock:
            pinned = self._pins.read()
            if pinned == self._pinned:
                return
            for segment_id in pinned ^ self._pinned:
                if (entry := self.entries.get(segment_id)) is not None:
                    entry.is_pinned = segment_id in pinned
            self._pinned = pinned

    # times to live

    def place(self, entry: Entry) -> Literal["ram", "disk"] | None:
        """The fastest tier that holds a segment whose time is not over; None: there is none."""
        now = self.clock()
        disk_over = self._is_over(entry, self.policy.disk_ttl, now)
        if entry.block is not None and not self._is_over(entry, self.policy.ram_ttl, now):
            return "ram"
        if entry.path is not None:
            return None if disk_over else "disk"
        return "ram" if entry.block is not None and self.can_write(entry) else None

    def drop_expired(self, entry: Entry) -> bool:
        """Give up the copies of a segment whose time is over; True if none is left."""
        with self.lock:
            now = self.clock()
            if self._is_over(entry, self.policy.disk_ttl, now) and entry.path is not None:
                self._note_use_by_others(entry)
                if self._is_over(entry, self.policy.disk_ttl, now):
                    self._delete_file(entry)
            if self._is_over(entry, self.policy.ram_ttl, now):
                if entry.path is not None or not self.can_write(entry):
                    entry.block = None
                else:
                    self.spiller.submit(entry)
            return self._forget_if_gone(entry, is_expired=True)

    def _is_over(self, entry: Entry, ttl: float | None, now: float) -> bool:
        return not entry.is_held and is_over(entry.last_used, ttl, now)

    def _note_use_by_others(self, entry: Entry) -> None:
        stamp = None if entry.path is None else self.store.stamp(entry.path.name)
        if stamp is not None:
            entry.last_used = max(entry.last_used, stamp.last_used)

    def _forget_if_gone(self, entry: Entry, *, is_expired: bool) -> bool:
        if entry.block is not None or entry.path is not None:
            return False
        self.forget(entry)
        if is_expired:
            self.expired.append(DamagedFile(entry.segment_id, entry.start, entry.stop, _EXPIRED))
        return True

    # RAM

    def enforce_ram(self) -> None:
        """Give up blocks whose time is over and, over the budget, leaves and least recently used
        ones first until there is some room again. What is not on disk is written before."""
        self.refresh_pins()
        with self.lock:
            in_ram = [entry for entry in self.entries.values() if entry.block is not None]
            used, now = sum(entry.num_bytes for entry in in_ram), self.clock()
            excess = 0
            self.spiller.pace.is_pressed = used > self.ram_budget
            if used > self.ram_budget:
                excess = used - int(self.ram_budget * LOW_WATER)
                pinned = sum(entry.num_bytes for entry in in_ram if entry.is_pinned)
                self._warn_of_pins(pinned, "memory", self.ram_budget)
            ttl = self.policy.ram_ttl
            if not excess and not any(self._is_over(entry, ttl, now) for entry in in_ram):
                return
            candidates = [entry.candidate(entry.num_bytes, ttl) for entry in in_ram]
            for victim in choose_victims(candidates, excess, now):
                entry = self.entries[victim.segment_id]
                if entry.path is not None:
                    entry.block = None
                elif self.can_write(entry):
                    self.spiller.submit(entry)
                else:
                    entry.block = None
                    is_expired = self._is_over(entry, ttl, now)
                    self._forget_if_gone(entry, is_expired=is_expired)
                    self._tell_evicted([entry.stop - entry.start], "RAM", is_expired=is_expired)

    def can_write(self, entry: Entry) -> bool:
        """Whether there is still a disk for it: else what RAM gives up is gone."""
        is_stale = self._is_over(entry, self.policy.disk_ttl, self.clock())
        return self.spiller.is_running and entry.can_spill and not is_stale

    # disk

    def note_written(self, entry: Entry, path: Path, size: int) -> None:
        """A segment is on disk now."""
        with self.lock:
            entry.path, entry.disk_bytes = path, size
            self.disk.disown(entry.segment_id)
            self._bytes_unseen += size
            self._warned.discard("floor")
            self.enforce_disk()
        self.enforce_ram()

    def enforce_disk(self, bytes_wanted: int = 0, *, is_all_or_nothing: bool = False) -> None:
        """Delete files whose time is over and, over the budget, leaves and least recently used ones
        first, of whatever model and process. With `bytes_wanted`, at least as much is freed; if
        that is impossible, `is_all_or_nothing` frees nothing."""
        with self.lock:
            if not self.is_writing:
                return
            if self._bytes_unseen > self.disk_budget // _LOOKS_PER_BUDGET:
                self._look()
            if self._disk_excess(bytes_wanted) <= 0 and not self._has_expired():
                return
            self.refresh_pins()
            self._look()
            excess, ttl = self._disk_excess(bytes_wanted), self.policy.disk_ttl
            on_disk = self._on_disk()
            candidates = [entry.candidate(entry.disk_bytes, ttl) for entry in on_disk]
            candidates += self.disk.candidates(self._catalog.parent_of, self.entries, ttl)
            if excess > bytes_wanted:
                excess += self.disk_budget // _LOOKS_PER_BUDGET  # not again for the next segment
            victims = choose_victims(candidates, max(0, excess), self.clock())
            if is_all_or_nothing and sum(victim.num_bytes for victim in victims) < bytes_wanted:
                return
            if excess > 0:
                pinned = sum(entry.disk_bytes for entry in on_disk if entry.is_pinned)
                pinned += self.disk.bytes_of(self._pinned)
                self._warn_of_pins(pinned, "the disk", self.disk_budget)
            self._evict_files(victims)

    def _disk_excess(self, bytes_wanted: int) -> int:
        return max(self.disk_bytes() - self.disk_budget, bytes_wanted)

    def disk_bytes(self) -> int:
        """What is on disk of all namespaces, as far as this process knows."""
        with self.lock:
            return sum(entry.disk_bytes for entry in self._on_disk()) + self.disk.num_bytes

    def num_on_disk(self) -> int:
        """How many segments of this namespace are on disk."""
        with self.lock:
            return len(self._on_disk()) + self.disk.num_own

    def _on_disk(self) -> list[Entry]:
        return [entry for entry in self.entries.values() if entry.path is not None]

    def _has_expired(self) -> bool:
        now, ttl = self.clock(), self.policy.disk_ttl
        is_own = ttl is not None and any(self._is_over(e, ttl, now) for e in self._on_disk())
        return is_own or self.disk.may_have_expired(ttl, now)

    def _look(self) -> None:
        """See what other processes have written, used and deleted meanwhile."""
        own = {entry.path.name: entry for entry in self._on_disk() if entry.path is not None}
        there = self.disk.look(own)
        self._bytes_unseen = 0
        for name, entry in own.items():
            if name in there:
                entry.last_used = max(entry.last_used, there[name].last_used)
            elif entry.num_leases == 0:
                entry.path, entry.disk_bytes, entry.can_spill = None, 0, False
                self._forget_if_gone(entry, is_expired=False)

    def _evict_files(self, victims: Iterable[Candidate]) -> None:
        now = self.clock()
        num_tokens: dict[bool, list[int]] = {False: [], True: []}
        for victim in victims:
            is_expired = victim.expires_at is not None and victim.expires_at <= now
            file = self.disk.delete(victim.segment_id)
            if file is None:
                entry = self.entries[victim.segment_id]
                self._delete_file(entry)
                entry.can_spill = is_expired  # what did not fit would not fit again
                self._forget_if_gone(entry, is_expired=is_expired)
                num_tokens[is_expired].append(entry.stop - entry.start)
            elif file.store is self.store:
                self._catalog.discard(victim.segment_id)
                start, stop, _ = parse_name(file.name)
                if is_expired:
                    gone = DamagedFile(victim.segment_id, start, stop, _EXPIRED)
                    self.expired.append(gone)
                num_tokens[is_expired].append(stop - start)
        for is_expired, lengths in num_tokens.items():
            self._tell_evicted(lengths, "disk", is_expired=is_expired)

    def _delete_file(self, entry: Entry) -> None:
        if entry.path is not None and self.is_writing:
            self.store.delete(entry.path)
        entry.path, entry.disk_bytes = None, 0

    # what people are told

    def _warn_of_pins(self, pinned: int, where: str, budget: int) -> None:
        if pinned > budget:
            self.warn_once(
                where,
                f"pinned segments take {formatting.size(pinned)} of {where}, "
                f"more than the budget of {formatting.size(budget)}",
            )

    def warn_once(self, topic: str, text: str) -> None:
        if topic not in self._warned:
            self._warned.add(topic)
            self.tell("warning", text)

    def _tell_evicted(self, lengths: Collection[int], where: str, *, is_expired: bool) -> None:
        if lengths:
            why = ", their time is over" if is_expired else ""
            self.tell("evicted", f"evicted {sum(lengths):,} tokens ({where}{why})")
