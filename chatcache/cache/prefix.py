"""The prefix cache of one namespace: lookup, lease, restore, commit, spill, evict.

It is the only part that sees both the tree and the store. A turn uses it in this order:

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
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from chatcache.cache.attach import attach
from chatcache.cache.entries import Block, Entry, KVSink, Lookup, RestoreResult
from chatcache.cache.eviction import choose_victims
from chatcache.cache.foreign import ForeignSegments
from chatcache.cache.radix import RadixTree, Span
from chatcache.cache.reader import read_segment
from chatcache.cache.rows import SegmentRow, TierUse
from chatcache.cache.segfile import (
    SegmentDamagedError,
    SegmentHeader,
    SegmentMissingError,
    is_out_of_space,
)
from chatcache.cache.segments import DamagedFile, SegmentStore
from chatcache.cache.spill import SpillWriter
from chatcache.cache.tokens import BYTES_PER_ID, chain_digest

CREATOR = "chatcache"


class Lease:
    """A held prefix: its segments are neither evicted nor changed until it is released."""

    def __init__(self, packed: bytes, spans: Sequence[Span], num_matched: int):
        self.packed = packed
        self.spans = tuple(spans)
        self.num_tokens = self.spans[-1].stop if self.spans else 0
        self.num_matched = num_matched


class PrefixCache:
    """Segments of one namespace in RAM and on disk. Thread-safe; see the module for its use."""

    def __init__(
        self,
        cache_dir: Path,
        namespace: str,
        *,
        ram_budget: int,
        disk_budget: int,
        is_spilling: bool = True,
        on_event: Callable[[str, str], None] = lambda kind, text: None,
        clock: Callable[[], float] = time.time,
    ):
        self.namespace = namespace
        self.damaged: list[DamagedFile] = []
        self._store = SegmentStore(cache_dir, namespace)
        self._foreign = ForeignSegments(cache_dir, namespace)
        self._ram_budget = ram_budget
        self._disk_budget = disk_budget
        self._is_spilling = is_spilling
        self._on_event = on_event
        self._clock = clock
        self._lock = threading.RLock()
        self._tree = RadixTree()
        self._entries: dict[str, Entry] = {}
        self._writer: SpillWriter | None = None

    # opening and closing

    def open(self, fields: Mapping[str, str]) -> None:
        """Read what earlier processes left. Never raises for the state of the disk: it warns."""
        if self._is_spilling:
            try:
                self._store.prepare(fields)
                self._writer = SpillWriter(self._spill)
            except OSError as error:
                self._warn_read_only(error)
        found, damaged = self._store.scan()
        with self._lock:
            self._entries, broken = attach(self._tree, self.namespace, found)
            self.damaged = [*self._store.quarantined(), *damaged, *broken]
            for file in (*damaged, *broken):
                self._quarantine(file.segment_id, file.problem, self._store.path_of(file))
            self._enforce_disk()

    def close(self) -> None:
        """Write out what is still to be spilled."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def drain(self, timeout: float | None = None) -> bool:
        """Wait until all that was committed is on disk or has failed to get there."""
        return self._writer is None or self._writer.drain(timeout)

    # looking

    def lookup(self, packed: bytes) -> Lookup:
        """What is held of the leading ids, by tier. Changes nothing, not even recency."""
        with self._lock:
            match = self._tree.match(packed)
            ram = disk = disk_bytes = 0
            for span in match.spans:
                entry = self._entries[span.segment_id]
                if entry.block is not None:
                    ram += span.stop - span.start
                else:
                    disk += span.stop - span.start
                    disk_bytes += entry.disk_bytes
            return Lookup(match.num_tokens, ram, disk, disk_bytes, match.spans)

    def rows(self, live: bytes = b"") -> list[SegmentRow]:
        """All segments, the most recently used first; those of the path `live` are marked."""
        with self._lock:
            live_ids = {span.segment_id for span in self._tree.match(live).spans}
            ordered = sorted(self._entries.values(), key=lambda e: (-e.last_used, -e.start))
            return [e.row(self.namespace, is_live=e.segment_id in live_ids) for e in ordered]

    def use(self) -> tuple[TierUse, TierUse]:
        """RAM and disk: bytes used, budget, number of segments. Disk counts all namespaces."""
        with self._lock:
            in_ram = [e for e in self._entries.values() if e.block is not None]
            on_disk = [e for e in self._entries.values() if e.path is not None]
        ram = TierUse(sum(e.num_bytes for e in in_ram), self._ram_budget, len(in_ram))
        disk_bytes = sum(e.disk_bytes for e in on_disk) + self._foreign.num_bytes
        return ram, TierUse(disk_bytes, self._disk_budget, len(on_disk))

    # one turn

    @contextlib.contextmanager
    def acquire(self, packed: bytes, limit: int, min_part: int = 0) -> Iterator[Lease]:
        """Hold the longest prefix of at most `limit` tokens while the block runs.

        Of a segment that is used in part, at least `min_part` tokens must be: a cut at the end of
        a segment is where the conversation itself was cut, so what follows is computed in the
        same pieces as it was, with the same bits; a cut elsewhere has to pay for itself.
        """
        with self._lock:
            match = self._tree.match(packed[: limit * BYTES_PER_ID])
            spans = self._without_small_part(match.spans, min_part)
            held = [self._entries[span.segment_id] for span in spans]
            for entry in held:
                entry.num_leases += 1
                entry.hits += 1
                entry.last_used = self._clock()
        try:
            yield Lease(packed, spans, match.num_tokens)
        finally:
            with self._lock:
                for entry in held:
                    entry.num_leases -= 1
            for entry in held:
                if entry.path is not None:
                    self._store.touch(entry.path)

    def restore(self, lease: Lease, sink: KVSink, start: int) -> RestoreResult:
        """Bring positions `start` to the end of the lease into `sink`, which holds `start` tokens.

        Stops at the first segment that is gone or damaged (it is set aside); the sink then holds
        exactly the tokens before it.
        """
        position, ram, disk, bytes_read = start, 0, 0, 0
        for span in lease.spans:
            if span.stop <= position:
                continue
            entry = self._entries[span.segment_id]
            block, path = entry.block, entry.path
            try:
                if block is not None:
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
                self._give_up(entry, str(error), is_damage=is_damage)
                return RestoreResult(position, ram, disk, bytes_read, str(error), is_damage)
            position = span.stop
            sink.set_length(position)
        return RestoreResult(position, ram, disk, bytes_read)

    def commit(
        self, packed: bytes, boundaries: Sequence[int], export: Callable[[int, int], Block]
    ) -> int:
        """Keep the K and V of a path: one segment per run between `boundaries` not held yet.

        `export(start, stop)` copies a run out of the live KV. Returns the bytes given to the disk
        tier to write.
        """
        num_bytes = 0
        for stop in boundaries:
            ids = packed[: stop * BYTES_PER_ID]
            with self._lock:
                start = self._tree.match(ids).num_tokens
            if start >= stop:
                continue
            entry = self._new_entry(ids, start, export(start, stop))
            entry.can_spill = entry.num_bytes < self._disk_budget
            with self._lock:
                if not self._tree.insert(ids, entry.segment_id, start):
                    continue
                entry.parent_id = self._tree.parent_segment(entry.segment_id)
                self._entries[entry.segment_id] = entry
            if self._writer is not None and entry.can_spill:
                self._writer.submit(entry.segment_id)
                num_bytes += entry.num_bytes + len(entry.token_ids)
        self._enforce_ram()
        return num_bytes

    def check(self) -> list[str]:
        """Everything that is wrong with the book-keeping; empty when it is sound."""
        with self._lock:
            problems = self._tree.check()
            for entry in self._entries.values():
                if entry.block is None and entry.path is None:
                    problems.append(f"{entry.segment_id} is neither in RAM nor on disk")
                if entry.num_leases < 0:
                    problems.append(f"{entry.segment_id} was released too often")
            ram, _ = self.use()
            is_pending = self._writer is not None and not self._writer.drain(0)
            if ram.num_bytes > ram.budget_bytes and not is_pending and not self._is_held():
                problems.append("the RAM budget is exceeded")
        return problems

    # inside

    def _without_small_part(self, spans: tuple[Span, ...], min_part: int) -> tuple[Span, ...]:
        if not spans:
            return spans
        last = spans[-1]
        is_part = last.stop < self._entries[last.segment_id].stop
        return spans[:-1] if is_part and last.stop - last.start < min_part else spans

    def _is_held(self) -> bool:
        return any(entry.num_leases for entry in self._entries.values())

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

    def _spill(self, segment_id: str) -> None:
        """Write one segment (in the writer's thread)."""
        with self._lock:
            entry = self._entries.get(segment_id)
            if entry is None or entry.block is None or entry.path is not None:
                return
            block, now = entry.block, self._clock()
        header = SegmentHeader(
            segment_id, entry.parent_id, self.namespace, entry.start, entry.stop,
            entry.token_ids, now, CREATOR,
        )  # fmt: skip
        began = time.perf_counter()
        try:
            path, size = self._write(header, block)
        except OSError as error:
            entry.can_spill = False
            self._on_event("warning", f"tokens {entry.start}-{entry.stop} stay in RAM: {error}")
            return
        seconds = time.perf_counter() - began
        with self._lock:
            entry.path, entry.disk_bytes = path, size
            self._enforce_disk()
        self._enforce_ram()
        self._on_event(
            "spilled",
            f"spilled {entry.stop - entry.start:,} tokens, {size / 1e6:.1f} MB, {seconds:.2f} s",
        )

    def _write(self, header: SegmentHeader, block: Block) -> tuple[Path, int]:
        try:
            return self._store.write(header, block.sources())
        except OSError as error:
            if not is_out_of_space(error):
                raise
        with self._lock:
            self._enforce_disk(bytes_wanted=2 * block.num_bytes)
        return self._store.write(header, block.sources())

    def _enforce_ram(self) -> None:
        """Drop blocks, leaves and least recently used first, until the budget holds.

        What is not on disk yet is dropped after its spill, unless it cannot be spilled at all.
        """
        with self._lock:
            in_ram = [e for e in self._entries.values() if e.block is not None]
            excess = sum(e.num_bytes for e in in_ram) - self._ram_budget
            victims = choose_victims([e.ram_candidate() for e in in_ram], excess, self._clock())
            for victim in victims:
                entry = self._entries[victim.segment_id]
                if entry.path is not None:
                    entry.block = None
                elif self._writer is None or not entry.can_spill:
                    self._forget(entry)
                    self._on_event("evicted", f"evicted {entry.stop - entry.start:,} tokens (RAM)")

    def _enforce_disk(self, bytes_wanted: int = 0) -> None:
        on_disk = [e for e in self._entries.values() if e.path is not None]
        used = sum(e.disk_bytes for e in on_disk) + self._foreign.num_bytes
        excess = max(used - self._disk_budget, bytes_wanted)
        if excess <= 0 or not self._is_spilling:
            return
        candidates = [e.disk_candidate() for e in on_disk] + self._foreign.candidates()
        for victim in choose_victims(candidates, excess, self._clock()):
            if self._foreign.delete(victim.segment_id):
                continue
            entry = self._entries[victim.segment_id]
            if entry.path is not None:
                self._store.delete(entry.path)
            entry.path, entry.can_spill = None, False
            if entry.block is None:
                self._forget(entry)
            self._on_event("evicted", f"evicted {entry.stop - entry.start:,} tokens (disk)")

    def _give_up(self, entry: Entry, problem: str, *, is_damage: bool) -> None:
        with self._lock:
            if is_damage:
                file = DamagedFile(entry.segment_id, entry.start, entry.stop, problem)
                self.damaged.append(file)
                self._quarantine(entry.segment_id, problem, entry.path)
            self._forget(entry)

    def _quarantine(self, segment_id: str, problem: str, path: Path | None) -> None:
        if path is not None and self._is_spilling:
            self._store.quarantine(path)
        self._on_event("quarantined", f"set aside segment {segment_id[:8]}: {problem}")

    def _forget(self, entry: Entry) -> None:
        self._tree.remove(entry.segment_id)
        self._entries.pop(entry.segment_id, None)

    def _warn_read_only(self, error: OSError) -> None:
        self._is_spilling = False
        self._on_event("warning", f"nothing is kept on disk: {self._store.directory}: {error}")
