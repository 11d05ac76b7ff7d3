"""Where each segment of a namespace lies, and how long: RAM, disk, pins, times to live, budgets.

It owns the book of segments and every decision to write one to disk or to give one up. It takes no
part in a turn (`prefix.py` does). All methods take the lock themselves; callers that need several
steps to be one take it around them.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Literal

from chatcache.cache.entries import Block, Entry
from chatcache.cache.eviction import Candidate, choose_victims
from chatcache.cache.foreign import ForeignSegments
from chatcache.cache.pins import PinBook
from chatcache.cache.policy import LOW_WATER, TierPolicy, is_over
from chatcache.cache.radix import RadixTree
from chatcache.cache.segfile import SegmentHeader, is_out_of_space
from chatcache.cache.segments import DamagedFile, SegmentStore
from chatcache.cache.spill import SpillWriter

CREATOR = "chatcache"
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
    ):
        self.ram_budget, self.disk_budget = budgets
        self.policy = policy
        self.lock = threading.RLock()
        self.tree = RadixTree()
        self.entries: dict[str, Entry] = {}
        self.expired: deque[DamagedFile] = deque(maxlen=_MAX_REMEMBERED)
        self.store = SegmentStore(cache_dir, namespace)
        self.foreign = ForeignSegments(cache_dir, namespace)
        self.writer: SpillWriter | None = None
        self._namespace = namespace
        self._on_event = on_event
        self._clock = clock
        self._pins = PinBook(self.store.directory)
        self._pinned: frozenset[str] = frozenset()
        self._bytes_unseen = 0
        self._warned: set[str] = set()

    @property
    def is_writing(self) -> bool:
        """Whether anything on disk may be changed."""
        return self.policy.spill != "never"

    # the book

    def add(self, entry: Entry) -> None:
        with self.lock:
            entry.can_spill = entry.num_bytes < self.disk_budget
            entry.is_pinned = entry.segment_id in self._pinned
            self.entries[entry.segment_id] = entry

    def forget(self, entry: Entry) -> None:
        with self.lock:
            self.tree.remove(entry.segment_id)
            self.entries.pop(entry.segment_id, None)

    def take(self, entries: dict[str, Entry]) -> None:
        """What was found on disk when the cache was opened."""
        with self.lock:
            self.entries = entries
            self._pinned = frozenset()
            self.refresh_pins()
            self._look()
            self.enforce_disk()

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
        now = self._clock()
        disk_over = self._is_over(entry, self.policy.disk_ttl, now)
        if entry.block is not None and not self._is_over(entry, self.policy.ram_ttl, now):
            return "ram"
        if entry.path is not None:
            return None if disk_over else "disk"
        return "ram" if entry.block is not None and self._can_write(entry) else None

    def drop_expired(self, entry: Entry) -> bool:
        """Give up the copies of a segment whose time is over; True if none is left."""
        with self.lock:
            now = self._clock()
            if self._is_over(entry, self.policy.disk_ttl, now) and entry.path is not None:
                self._note_use_by_others(entry)
                if self._is_over(entry, self.policy.disk_ttl, now):
                    self._delete_file(entry)
            if self._is_over(entry, self.policy.ram_ttl, now):
                if entry.path is not None or not self._can_write(entry):
                    entry.block = None
                else:
                    self.submit(entry)
            return self._forget_if_gone(entry, is_expired=True)

    def _is_over(self, entry: Entry, ttl: float | None, now: float) -> bool:
        return not entry.is_held and is_over(entry.last_used, ttl, now)

    def _note_use_by_others(self, entry: Entry) -> None:
        stamp = None if entry.path is None else self.store.stamp(entry.path)
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
            used, now = sum(entry.num_bytes for entry in in_ram), self._clock()
            excess = 0
            if used > self.ram_budget:
                excess = used - int(self.ram_budget * LOW_WATER)
                self._warn_of_pins(in_ram, "memory", self.ram_budget)
            ttl = self.policy.ram_ttl
            if not excess and not any(self._is_over(entry, ttl, now) for entry in in_ram):
                return
            candidates = [entry.candidate(entry.num_bytes, ttl) for entry in in_ram]
            for victim in choose_victims(candidates, excess, now):
                entry = self.entries[victim.segment_id]
                if entry.path is not None:
                    entry.block = None
                elif self._can_write(entry):
                    self.submit(entry)
                else:
                    entry.block = None
                    is_expired = self._is_over(entry, ttl, now)
                    self._forget_if_gone(entry, is_expired=is_expired)
                    self._tell_evicted(entry, "RAM", is_expired=is_expired)

    def _can_write(self, entry: Entry) -> bool:
        """Whether there is still a disk for it: else what RAM gives up is gone."""
        is_stale = self._is_over(entry, self.policy.disk_ttl, self._clock())
        return self.writer is not None and entry.can_spill and not is_stale

    # disk

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
            candidates += self.foreign.candidates(lambda at: None if ttl is None else at + ttl)
            victims = choose_victims(candidates, max(0, excess), self._clock())
            if is_all_or_nothing and sum(victim.num_bytes for victim in victims) < bytes_wanted:
                return
            if excess > 0:
                self._warn_of_pins(on_disk, "the disk", self.disk_budget)
            for victim in victims:
                self._evict_file(victim)

    def _disk_excess(self, bytes_wanted: int) -> int:
        return max(self.disk_bytes() - self.disk_budget, bytes_wanted)

    def disk_bytes(self) -> int:
        """What is on disk of all namespaces, as far as this process knows."""
        with self.lock:
            return sum(entry.disk_bytes for entry in self._on_disk()) + self.foreign.num_bytes

    def _on_disk(self) -> list[Entry]:
        return [entry for entry in self.entries.values() if entry.path is not None]

    def _has_expired(self) -> bool:
        now, ttl = self._clock(), self.policy.disk_ttl
        is_own = ttl is not None and any(self._is_over(e, ttl, now) for e in self._on_disk())
        return is_own or self.foreign.has_expired(ttl, now)

    def _look(self) -> None:
        """See what other processes have written, used and deleted meanwhile."""
        own = {entry.path.name: entry for entry in self._on_disk() if entry.path is not None}
        there = self.foreign.look(own)
        self._bytes_unseen = 0
        for name, entry in own.items():
            if name in there:
                entry.last_used = max(entry.last_used, there[name].last_used)
            elif entry.num_leases == 0:
                entry.path, entry.disk_bytes, entry.can_spill = None, 0, False
                self._forget_if_gone(entry, is_expired=False)

    def _evict_file(self, victim: Candidate) -> None:
        if self.foreign.delete(victim.segment_id):
            return
        entry = self.entries[victim.segment_id]
        is_expired = self._is_over(entry, self.policy.disk_ttl, self._clock())
        self._delete_file(entry)
        entry.can_spill = is_expired  # what did not fit would not fit again
        self._forget_if_gone(entry, is_expired=is_expired)
        self._tell_evicted(entry, "disk", is_expired=is_expired)

    def _delete_file(self, entry: Entry) -> None:
        if entry.path is not None and self.is_writing:
            self.store.delete(entry.path)
        entry.path, entry.disk_bytes = None, 0

    # from RAM to disk

    def submit(self, entry: Entry) -> int:
        """Have a segment written; returns the bytes that will be written for it."""
        if self.writer is None or entry.is_pending or entry.path is not None:
            return 0
        entry.is_pending = True
        self.writer.submit(entry.segment_id)
        return entry.num_bytes + len(entry.token_ids)

    def submit_all(self) -> None:
        """Have everything written that is in RAM alone, what was used last first."""
        with self.lock:
            for entry in sorted(self.entries.values(), key=lambda e: (-e.last_used, e.start)):
                if entry.block is not None and self._can_write(entry):
                    self.submit(entry)

    def spill(self, segment_id: str) -> None:
        """Write one segment (in the writer's thread)."""
        with self.lock:
            entry = self.entries.get(segment_id)
            if entry is None:
                return
            self._notice_removal()
            block = entry.block
            if block is None or entry.path is not None or self._is_cut_off(entry):
                entry.is_pending = False
                self.enforce_ram()
                return
        began = time.perf_counter()
        try:
            with self._path_held(entry):
                path, size = self._write(entry, block)
        except OSError as error:
            self._note_unwritten(entry, error)
            return
        finally:
            entry.is_pending = False
        seconds = time.perf_counter() - began
        self._note_written(entry, path, size)
        self._on_event(
            "spilled",
            f"spilled {entry.stop - entry.start:,} tokens, {size / 1e6:.1f} MB, {seconds:.2f} s",
        )

    def _is_cut_off(self, entry: Entry) -> bool:
        """Whether what comes before it cannot get to the disk: then it would be of no use there."""
        if entry.start == 0:
            return False
        parent = self.entries.get(entry.parent_id or "")
        is_lost = parent is None or (parent.path is None and not parent.can_spill)
        entry.can_spill = entry.can_spill and not is_lost
        return is_lost

    @contextlib.contextmanager
    def _path_held(self, entry: Entry) -> Iterator[None]:
        """While a segment is written, what comes before it does not make room for it."""
        held: list[Entry] = []
        with self.lock:
            before = self.entries.get(entry.parent_id or "")
            while before is not None:
                before.num_leases += 1
                held.append(before)
                before = self.entries.get(before.parent_id or "")
        try:
            yield
        finally:
            with self.lock:
                for before in held:
                    before.num_leases -= 1

    def _notice_removal(self) -> None:
        """If somebody removed the directory, begin it again with what is still in RAM."""
        if self.store.directory.is_dir():
            return
        self.store.prepare_again()
        for entry in list(self.entries.values()):
            entry.path, entry.disk_bytes = None, 0
            if entry.block is None:
                self.forget(entry)
        for entry in sorted(self.entries.values(), key=lambda entry: entry.start):
            self.submit(entry)

    def _note_written(self, entry: Entry, path: Path, size: int) -> None:
        with self.lock:
            entry.path, entry.disk_bytes = path, size
            self.foreign.disown(entry.segment_id)
            self._bytes_unseen += size
            self._warned.discard("floor")
            self.enforce_disk()
        self.enforce_ram()

    def _note_unwritten(self, entry: Entry, error: OSError) -> None:
        entry.can_spill = False
        if isinstance(error, DiskFloorError):
            self._warn_once("floor", f"new segments stay in RAM: {error}")
        else:
            why = error.strerror or str(error)
            self._on_event(
                "warning", f"tokens {entry.start:,}-{entry.stop:,} are not kept on disk: {why}"
            )
        self.enforce_ram()

    def _write(self, entry: Entry, block: Block) -> tuple[Path, int]:
        header = SegmentHeader(
            entry.segment_id, entry.parent_id, self._namespace, entry.start, entry.stop,
            entry.token_ids, self._clock(), CREATOR,
        )  # fmt: skip
        self._keep_floor(block.num_bytes)
        try:
            return self.store.write(header, block.sources(), entry.last_used)
        except OSError as error:
            if not is_out_of_space(error):
                raise
        self.enforce_disk(bytes_wanted=2 * block.num_bytes)
        return self.store.write(header, block.sources(), entry.last_used)

    def _keep_floor(self, num_bytes: int) -> None:
        """Make room so that the disk keeps its free space. Raises DiskFloorError."""
        floor = self.policy.disk_floor
        if floor == 0:
            return
        missing = floor + num_bytes - self.store.free_bytes()
        if missing > 0:
            self.enforce_disk(bytes_wanted=missing, is_all_or_nothing=True)
            if self.store.free_bytes() < floor + num_bytes:
                raise DiskFloorError(f"less than {floor / 1e9:.1f} GB would be left on the disk")

    # what people are told

    def _warn_of_pins(self, entries: Iterable[Entry], where: str, budget: int) -> None:
        pinned = sum(entry.num_bytes for entry in entries if entry.is_pinned)
        if pinned > budget:
            self._warn_once(
                where,
                f"pinned segments take {pinned / 1e6:.1f} MB of {where}, "
                f"more than the budget of {budget / 1e6:.1f} MB",
            )

    def _warn_once(self, topic: str, text: str) -> None:
        if topic not in self._warned:
            self._warned.add(topic)
            self._on_event("warning", text)

    def _tell_evicted(self, entry: Entry, where: str, *, is_expired: bool) -> None:
        why = ", their time is over" if is_expired else ""
        self._on_event("evicted", f"evicted {entry.stop - entry.start:,} tokens ({where}{why})")


class DiskFloorError(OSError):
    """Writing would leave less free space than was asked for."""
