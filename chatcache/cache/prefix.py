"""The prefix cache of one namespace: lookup, lease, restore, commit.

What is kept where, and for how long, is decided in `tiers.py`. A turn uses the cache in this order:

    lookup = cache.lookup(prompt)                 what is held
    with cache.acquire(prompt, limit) as lease:   hold it
        cache.restore(lease, live, start)         copy or read it into the live KV
        ... prefill and decode ...
        cache.commit(ids, boundaries, live.export)   keep what is new; the writer spills it

Trouble with the cache never fails a turn: a file that is gone or damaged ends the match there, and
a disk that is full or read-only leaves the segment in RAM with a warning.
"""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from chatcache.cache.attach import attach
from chatcache.cache.entries import Block, Entry, KVSink, Lookup, RestoreResult
from chatcache.cache.policy import TierPolicy
from chatcache.cache.radix import Span
from chatcache.cache.reader import read_segment
from chatcache.cache.rows import SegmentRow, TierUse
from chatcache.cache.segfile import SegmentDamagedError, SegmentMissingError
from chatcache.cache.segments import DamagedFile, inode_of
from chatcache.cache.spill import SpillWriter
from chatcache.cache.tiers import Tiers
from chatcache.cache.tokens import BYTES_PER_ID, chain_digest


class Lease:
    """A held prefix: its segments are neither evicted nor changed until it is released."""

    def __init__(self, packed: bytes, spans: Sequence[Span], num_matched: int):
        self.packed = packed
        self.spans = tuple(spans)
        self.num_tokens = self.spans[-1].stop if self.spans else 0
        self.num_matched = num_matched


class PrefixCache:
    """Segments of one namespace in RAM and on disk. Thread-safe; see the module for its use.

    Without `is_spilling` the disk is read and never changed, whatever the policy says.
    """

    def __init__(
        self,
        cache_dir: Path,
        namespace: str,
        *,
        ram_budget: int,
        disk_budget: int,
        is_spilling: bool = True,
        policy: TierPolicy | None = None,
        on_event: Callable[[str, str], None] = lambda kind, text: None,
        clock: Callable[[], float] = time.time,
    ):
        self.namespace = namespace
        self.damaged: list[DamagedFile] = []
        policy = policy or TierPolicy()
        if not is_spilling:
            policy = dataclasses.replace(policy, spill="never")
        budgets = (ram_budget, disk_budget)
        self._tiers = Tiers(cache_dir, namespace, budgets, policy, on_event, clock)
        self._store = self._tiers.store
        self._lock = self._tiers.lock
        self._tree = self._tiers.tree
        self._on_event = on_event
        self._clock = clock

    @property
    def expired(self) -> list[DamagedFile]:
        """What was given up because its time to live was over, to explain a miss by it."""
        with self._lock:
            return list(self._tiers.expired)

    # opening and closing

    def open(self, fields: Mapping[str, str]) -> None:
        """Read what earlier processes left. Never raises for the state of the disk: it warns."""
        if self._tiers.is_writing:
            try:
                self._store.prepare(fields)
                self._tiers.writer = SpillWriter(self._tiers.spill)
            except OSError as error:
                self._tiers.policy = dataclasses.replace(self._tiers.policy, spill="never")
                text = f"nothing is kept on disk: {self._store.directory}: {error}"
                self._on_event("warning", text)
        found, damaged = self._store.scan()
        with self._lock:
            entries, broken = attach(self._tree, self.namespace, found)
            self.damaged = [*self._store.quarantined(), *damaged, *broken]
            for file in (*damaged, *broken):
                path = self._store.path_of(file)
                self._quarantine(file.segment_id, file.problem, path, file.inode)
            self._tiers.take(entries)

    def close(self) -> None:
        """Write out what is still to be spilled."""
        writer = self._tiers.writer
        if writer is not None:
            if self._tiers.policy.spill == "exit":
                self._tiers.submit_all()
            writer.close()
            self._tiers.writer = None

    def drain(self, timeout: float | None = None) -> bool:
        """Wait until all that was given to the writer is on disk or has failed to get there."""
        writer = self._tiers.writer
        return writer is None or writer.drain(timeout)

    # looking

    def lookup(self, packed: bytes) -> Lookup:
        """What is held of the leading ids, by tier. Changes nothing, not even recency."""
        self._tiers.refresh_pins()
        with self._lock:
            spans: list[Span] = []
            ram = disk = disk_bytes = 0
            for span in self._tree.match(packed).spans:
                entry = self._tiers.entries[span.segment_id]
                place = self._tiers.place(entry)
                if place is None:
                    break
                if place == "ram":
                    ram += span.stop - span.start
                else:
                    disk += span.stop - span.start
                    disk_bytes += entry.disk_bytes
                spans.append(span)
            return Lookup(ram + disk, ram, disk, disk_bytes, tuple(spans))

    def rows(self, live: bytes = b"") -> list[SegmentRow]:
        """All segments, the most recently used first; those of the path `live` are marked."""
        self._tiers.refresh_pins()
        with self._lock:
            live_ids = {span.segment_id for span in self._tree.match(live).spans}
            ordered = sorted(self._tiers.entries.values(), key=lambda e: (-e.last_used, -e.start))
            return [e.row(self.namespace, is_live=e.segment_id in live_ids) for e in ordered]

    def use(self) -> tuple[TierUse, TierUse]:
        """RAM and disk: bytes used, budget, number of segments. Disk counts all namespaces."""
        tiers = self._tiers
        with self._lock:
            in_ram = [e for e in tiers.entries.values() if e.block is not None]
            num_on_disk = sum(e.path is not None for e in tiers.entries.values())
            ram = TierUse(sum(e.num_bytes for e in in_ram), tiers.ram_budget, len(in_ram))
            return ram, TierUse(tiers.disk_bytes(), tiers.disk_budget, num_on_disk)

    # one turn

    @contextlib.contextmanager
    def acquire(self, packed: bytes, limit: int, min_part: int = 0) -> Iterator[Lease]:
        """Hold the longest prefix of at most `limit` tokens while the block runs.

        Of a segment that is used in part, at least `min_part` tokens must be: a cut at the end of
        a segment is where the conversation itself was cut, so what follows is computed in the
        same pieces as it was, with the same bits; a cut elsewhere has to pay for itself.
        """
        self._tiers.refresh_pins()
        with self._lock:
            fresh = self._without_expired(self._tree.match(packed[: limit * BYTES_PER_ID]).spans)
            num_matched = fresh[-1].stop if fresh else 0
            spans = self._without_small_part(fresh, min_part)
            held = [self._tiers.entries[span.segment_id] for span in spans]
            now = self._clock()
            for entry in held:
                entry.num_leases += 1
                entry.hits += 1
                entry.last_used = now
        try:
            yield Lease(packed, spans, num_matched)
        finally:
            with self._lock:
                for entry in held:
                    entry.num_leases -= 1
            for entry in held:
                if entry.path is not None:
                    self._store.touch(entry.path, now)

    def restore(self, lease: Lease, sink: KVSink, start: int) -> RestoreResult:
        """Bring positions `start` to the end of the lease into `sink`, which holds `start` tokens.

        Stops at the first segment that is gone or damaged (it is set aside); the sink then holds
        exactly the tokens before it.
        """
        position, ram, disk, bytes_read = start, 0, 0, 0
        for span in lease.spans:
            if span.stop <= position:
                continue
            entry = self._tiers.entries.get(span.segment_id)
            block, path = (None, None) if entry is None else (entry.block, entry.path)
            inode = 0 if path is None else inode_of(path)
            try:
                if entry is not None and block is not None:
                    sink.load(block, entry.start, position, span.stop)
                    ram += span.stop - position
                elif path is not None:
                    bytes_read += read_segment(path, lease.packed, sink, position, span)
                    disk += span.stop - position
                else:
                    raise SegmentMissingError("it was evicted")
            except (SegmentDamagedError, SegmentMissingError) as error:
                sink.set_length(position)
                is_damage = isinstance(error, SegmentDamagedError)
                if entry is not None:
                    self._give_up(entry, str(error), inode if is_damage else None)
                return RestoreResult(position, ram, disk, bytes_read, str(error), is_damage)
            position = span.stop
            sink.set_length(position)
        return RestoreResult(position, ram, disk, bytes_read)

    def commit(
        self,
        packed: bytes,
        boundaries: Sequence[int],
        export: Callable[[int, int], Block],
        computed_from: int | None = None,
    ) -> int:
        """Keep the K and V of a path: one segment per run between `boundaries` not held yet.

        `export(start, stop)` copies a run out of the live KV. What was computed from
        `computed_from` on stays together, also where another conversation holds its first tokens:
        the bits of one computation are restored as they were. Returns the bytes given to the disk
        tier to write.
        """
        before = 0
        for stop in boundaries:
            ids = packed[: stop * BYTES_PER_ID]
            with self._lock:
                held = self._tree.match(ids).num_tokens
            start = held if computed_from is None else min(held, max(before, computed_from))
            before = stop
            if held >= stop:
                continue
            entry = self._new_entry(ids, start, export(start, stop))
            with self._lock:
                self._tree.insert(ids, entry.segment_id, start)
                entry.parent_id = self._tree.parent_segment(entry.segment_id)
                self._tiers.add(entry)
        num_bytes = self._spill_path(packed)
        self._tiers.enforce_ram()
        self._tiers.enforce_disk()
        return num_bytes

    def check(self) -> list[str]:
        """Everything that is wrong with the book-keeping; empty when it is sound."""
        with self._lock:
            problems = self._tree.check()
            for entry in self._tiers.entries.values():
                if entry.block is None and entry.path is None:
                    problems.append(f"{entry.segment_id} is neither in RAM nor on disk")
                if entry.num_leases < 0:
                    problems.append(f"{entry.segment_id} was released too often")
            ram, _ = self.use()
            is_held = any(entry.is_held for entry in self._tiers.entries.values())
            if ram.num_bytes > ram.budget_bytes and not is_held and self.drain(0):
                problems.append("the RAM budget is exceeded")
        return problems

    # inside

    def _without_expired(self, spans: Sequence[Span]) -> tuple[Span, ...]:
        """The spans up to the first one whose time is over; what is over is given up."""
        entries = [self._tiers.entries[span.segment_id] for span in spans]
        gone = [self._tiers.drop_expired(entry) for entry in entries]
        return tuple(spans[: gone.index(True)] if True in gone else spans)

    def _without_small_part(self, spans: tuple[Span, ...], min_part: int) -> tuple[Span, ...]:
        if not spans:
            return spans
        last = spans[-1]
        is_part = last.stop < self._tiers.entries[last.segment_id].stop
        return spans[:-1] if is_part and last.stop - last.start < min_part else spans

    def _new_entry(self, ids: bytes, start: int, block: Block) -> Entry:
        return Entry(
            segment_id=chain_digest(self.namespace, start, ids),
            parent_id=None,
            start=start,
            stop=len(ids) // BYTES_PER_ID,
            token_ids=ids[start * BYTES_PER_ID :],
            num_bytes=block.num_bytes,
            last_used=self._clock(),
            block=block,
        )

    def _spill_path(self, packed: bytes) -> int:
        """Have written what is in RAM alone of a path, if that is due after each turn."""
        if self._tiers.policy.spill != "turn":
            return 0
        with self._lock:
            spans = self._tree.match(packed).spans
            entries = [self._tiers.entries[span.segment_id] for span in spans]
            return sum(self._tiers.submit(entry) for entry in entries if entry.can_spill)

    def _give_up(self, entry: Entry, problem: str, damaged_inode: int | None) -> None:
        with self._lock:
            if damaged_inode is not None:
                file = DamagedFile(entry.segment_id, entry.start, entry.stop, problem)
                self.damaged.append(file)
                self._quarantine(entry.segment_id, problem, entry.path, damaged_inode)
            self._tiers.forget(entry)

    def _quarantine(self, segment_id: str, problem: str, path: Path | None, inode: int) -> None:
        if path is not None and self._tiers.is_writing:
            self._store.quarantine(path, inode)
        self._on_event("quarantined", f"set aside segment {segment_id[:8]}: {problem}")
