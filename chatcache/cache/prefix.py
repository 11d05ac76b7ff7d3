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

from chatcache.cache.book.entries import Block, Entry, KVSink, Lease, Lookup, RestoreResult
from chatcache.cache.book.namespace import chain_digest
from chatcache.cache.book.policy import TierPolicy
from chatcache.cache.book.radix import Span
from chatcache.cache.files.ownership import check_owner
from chatcache.cache.files.store import DamagedFile
from chatcache.cache.restore import adopt_tokens, restore_states, restore_tokens
from chatcache.cache.tiers import Tiers
from chatcache.cache.views import SegmentRow, TierUse
from chatcache.token_ids import TokenIds


class PrefixCache:
    """Segments of one namespace in RAM and on disk. Thread-safe; see the module for its use.

    Without `is_spilling` the disk is read and never changed, whatever the policy says. With
    `needs_states` a prefix counts only up to a position where a segment holds a checkpoint. What is
    committed while `may_keep` says no is not kept: it may not be what the namespace says.
    """

    def __init__(
        self,
        cache_dir: Path,
        namespace: str,
        *,
        ram_budget: int,
        disk_budget: int,
        is_spilling: bool = True,
        needs_states: bool = False,
        policy: TierPolicy | None = None,
        on_event: Callable[[str, str], None] = lambda kind, text: None,
        clock: Callable[[], float] = time.time,
        may_keep: Callable[[], bool] = lambda: True,
    ):
        self.namespace = namespace
        policy = policy or TierPolicy()
        if not is_spilling:
            policy = dataclasses.replace(policy, spill="never")
        budgets = (ram_budget, disk_budget)
        self._tiers = Tiers(
            cache_dir, namespace, budgets, policy, on_event, clock, needs_states=needs_states
        )
        self._cache_dir, self._may_keep = cache_dir, may_keep
        self._store = self._tiers.store
        self._lock = self._tiers.lock
        self._tree = self._tiers.tree
        self._needs_states = needs_states
        self._on_event = on_event
        self._clock = clock

    @property
    def damaged(self) -> list[DamagedFile]:
        """What was found damaged and set aside, to explain a miss by it."""
        with self._lock:
            return list(self._tiers.damaged)

    @property
    def expired(self) -> list[DamagedFile]:
        """What was given up because its time to live was over, to explain a miss by it."""
        with self._lock:
            return list(self._tiers.expired)

    # opening and closing

    def open(self, fields: Mapping[str, str]) -> None:
        """Read what earlier processes left. Never raises for the state of the disk: it warns."""
        try:
            check_owner(self._cache_dir, self.namespace)
        except OSError as error:
            self._tiers.is_reading = False
            self._tiers.policy = dataclasses.replace(self._tiers.policy, spill="never")
            text = f"nothing is read from disk, and nothing is kept there: {error.filename}"
            self._on_event("warning", f"{text}: {error.strerror}")
            return
        if self._tiers.is_writing:
            try:
                self._store.prepare(fields)
                self._tiers.spiller.start()
            except OSError as error:
                self._tiers.policy = dataclasses.replace(self._tiers.policy, spill="never")
                text = f"nothing is kept on disk: {self._store.directory}: {error}"
                self._on_event("warning", text)
        self._tiers.open()

    def close(self) -> None:
        """Write out what is still to be spilled."""
        if self._tiers.policy.spill == "exit":
            self._tiers.spiller.submit_all()
        self._tiers.spiller.close()

    def computing(self) -> contextlib.AbstractContextManager[None]:
        """While a turn computes, segments are written at a pace that does not slow it down."""
        return self._tiers.spiller.pace.computing()

    def drain(self, timeout: float | None = None) -> bool:
        """Wait until all that was given to the writer is on disk or has failed to get there."""
        return self._tiers.spiller.drain(timeout)

    def spill(self, segment_id: str | None = None) -> int:
        """Have all that is in RAM alone written now, or one segment with all before it; returns
        the bytes that will be. An event tells what is written, and why nothing is."""
        num_bytes = self._tiers.spiller.submit_all(segment_id)
        if not self._tiers.is_writing:
            self._on_event("warning", "nothing is written to disk: that is switched off")
        elif num_bytes == 0 and self.drain(0):
            what = "everything" if segment_id is None else "all of it"
            self._on_event("spilled", f"{what} that can be is on disk already")
        return num_bytes

    # looking

    def lookup(self, ids: TokenIds) -> Lookup:
        """What is held of the leading ids, by tier. Changes nothing, not even recency."""
        self._tiers.refresh()
        with self._lock:
            spans: list[Span] = []
            ram = disk = disk_bytes = 0
            found, _, checkpoint = self._match(ids)
            for span in found:
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
            if checkpoint is not None and ram + disk < checkpoint.stop:
                return Lookup(0, 0, 0, 0, ())
            return Lookup(ram + disk, ram, disk, disk_bytes, tuple(spans))

    def on_path(self, ids: TokenIds) -> dict[str, int]:
        """The segments of a path with their sizes in bytes: those that a restore would use, and
        those of which every position lies on it."""
        with self._lock:
            used = {span.segment_id for span in self.lookup(ids).spans}
            entries = self._tiers.entries
            for segment_id, extent in self._tree.extents(ids).items():
                if extent == entries[segment_id].stop:
                    used.add(segment_id)
            return {one: entries[one].disk_bytes or entries[one].num_bytes for one in used}

    def rows(self, live: TokenIds | None = None, limit: int | None = None) -> list[SegmentRow]:
        """Segments, the most recently used first; those of the path `live` are marked.

        With a limit, no more than that, and without a look at every file."""
        self._tiers.refresh()
        with self._lock:
            live_ids = {span.segment_id for span in self._tiers.match(live or TokenIds()).spans}
            return self._tiers.rows(live_ids, limit)

    def use(self) -> tuple[TierUse, TierUse]:
        """RAM and disk: bytes used, budget, number of segments. Disk counts all namespaces."""
        tiers = self._tiers
        with self._lock:
            in_ram = [e for e in tiers.entries.values() if e.block is not None]
            ram = TierUse(sum(e.num_bytes for e in in_ram), tiers.ram_budget, len(in_ram))
            return ram, TierUse(tiers.disk_bytes(), tiers.disk_budget, tiers.num_on_disk())

    # one turn

    @contextlib.contextmanager
    def acquire(self, ids: TokenIds, limit: int, min_part: int = 0) -> Iterator[Lease]:
        """Hold the longest prefix of at most `limit` tokens while the block runs.

        Of a segment that is used in part, at least `min_part` tokens must be: a cut at the end of
        a segment is where the conversation itself was cut, so what follows is computed in the
        same pieces as it was, with the same bits; a cut elsewhere has to pay for itself.
        """
        self._tiers.refresh()
        with self._lock:
            fresh, num_matched, checkpoint = self._fresh(ids[:limit])
            spans = self._without_small_part(fresh, min_part)
            if checkpoint is not None:
                spans = fresh
            needed = [*spans, *([checkpoint] if checkpoint else [])]
            held = [self._tiers.entries[span.segment_id] for span in needed]
            now = self._clock()
            for entry in held:
                entry.num_leases += 1
                entry.hits += 1
                entry.last_used = now
        try:
            yield Lease(ids, spans, num_matched, checkpoint, self._on_disk(spans))
        finally:
            with self._lock:
                for entry in held:
                    entry.num_leases -= 1
            for entry in held:
                if entry.path is not None:
                    self._store.touch(entry.path, now)

    def adopt(self, lease: Lease, sink: KVSink, start: int) -> int:
        """Have `sink`, which holds `start` tokens, go on where more of the lease lies already;
        returns how many tokens it then holds. `restore` brings the others."""
        return adopt_tokens(self._tiers, lease, sink, start)

    def restore(self, lease: Lease, sink: KVSink, start: int) -> RestoreResult:
        """Bring positions `start` to the end of the lease into `sink`, which holds `start` tokens.

        Stops at the first segment that is gone or damaged (it is set aside); the sink then holds
        exactly the tokens before it.
        """
        return restore_tokens(self._tiers, self._give_up, lease, sink, start)

    def restore_states(self, lease: Lease, sink: KVSink) -> RestoreResult:
        """Bring the checkpoint at the end of the lease into `sink`, which holds all its tokens.

        A segment that is gone or damaged is set aside, and the states are left as they were."""
        return restore_states(self._tiers, self._give_up, lease, sink)

    def commit(
        self,
        ids: TokenIds,
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
        for stop in boundaries if self._may_keep() else ():
            upto = ids[:stop]
            with self._lock:
                held = self._tiers.match(upto).num_tokens
            start = held if computed_from is None else min(held, max(before, computed_from))
            before = stop
            if start >= stop or (held >= stop and not self._lacks_states(upto)):
                continue
            try:
                entry = self._new_entry(upto, start, export(start, stop))
            except (MemoryError, RuntimeError) as error:  # torch says the latter
                why = str(error).partition("\n")[0] or "the memory is full"
                self._on_event("warning", f"tokens {start:,}-{stop:,} are not kept: {why}")
                break
            with self._lock:
                if self._tiers.match(upto).num_tokens < start:
                    continue  # what comes before it was given up meanwhile, to make room
                self._tree.insert(upto, entry.segment_id, start)
                entry.parent_id = self._tree.parent_segment(entry.segment_id)
                self._tiers.add(entry)
        num_bytes = self._spill_path(ids)
        self._tiers.enforce_ram()
        self._tiers.enforce_disk()
        return num_bytes

    def promote(self, ids: TokenIds, lend: Callable[[int, int], Block | None]) -> None:
        """Count what is live of a path as held in RAM, where that costs no memory: files of the
        path are not read again while `lend(start, stop)` keeps their run where it lies."""
        with self._lock:
            for span in self._tiers.match(ids).spans:
                entry = self._tiers.entries[span.segment_id]
                is_whole = (span.start, span.stop) == (entry.start, entry.stop)
                if entry.block is None and is_whole:
                    entry.block = lend(span.start, span.stop)
        self._tiers.enforce_ram()

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

    def _match(self, ids: TokenIds) -> tuple[tuple[Span, ...], int, Span | None]:
        """The spans that can be used, how many tokens are known, and where the states are."""
        match = self._tiers.match(ids)
        if not self._needs_states:
            return match.spans, match.num_tokens, None
        found = [
            span
            for span in self._tree.ending_on(ids)
            if self._tiers.entries[span.segment_id].has_states
        ]
        if not found:
            return (), match.num_tokens, None
        spans = self._tiers.match(ids[: found[-1].stop]).spans
        return spans, match.num_tokens, found[-1]

    def _fresh(self, ids: TokenIds) -> tuple[tuple[Span, ...], int, Span | None]:
        """A match of which nothing is over; what is over is given up."""
        while True:
            spans, num_matched, checkpoint = self._match(ids)
            fresh = self._without_expired(spans)
            if checkpoint is None:
                return fresh, fresh[-1].stop if fresh else 0, None
            entry = self._tiers.entries.get(checkpoint.segment_id)
            if entry is not None and fresh == spans and not self._tiers.drop_expired(entry):
                return fresh, num_matched, checkpoint

    def _on_disk(self, spans: Sequence[Span]) -> tuple[int, int] | None:
        """Where the first span starts that has to be read, and the bytes of all such files."""
        with self._lock:
            entries = [self._tiers.entries.get(span.segment_id) for span in spans]
            pairs = zip(spans, entries, strict=True)
            read = [(span, entry) for span, entry in pairs if entry and entry.block is None]
            if not read:
                return None
            return read[0][0].start, sum(entry.disk_bytes for _, entry in read)

    def _lacks_states(self, ids: TokenIds) -> bool:
        """Whether a path that is held has no checkpoint at its end, though the model needs one."""
        if not self._needs_states:
            return False
        with self._lock:
            _, _, checkpoint = self._match(ids)
        return checkpoint is None or checkpoint.stop < len(ids)

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

    def _new_entry(self, ids: TokenIds, start: int, block: Block) -> Entry:
        return Entry(
            segment_id=chain_digest(self.namespace, start, ids),
            parent_id=None,
            start=start,
            stop=len(ids),
            token_ids=ids[start:],
            num_bytes=block.num_bytes,
            last_used=self._clock(),
            block=block,
            has_states=block.has_states,
        )

    def _spill_path(self, ids: TokenIds) -> int:
        """Have written what is in RAM alone of a path, if that is due after each turn."""
        if self._tiers.policy.spill != "turn":
            return 0
        with self._lock:
            wanted = [span.segment_id for span in self._tiers.match(ids).spans]
            if self._needs_states:  # a checkpoint counts, also where a longer segment has its K, V
                wanted += [span.segment_id for span in self._tree.ending_on(ids)]
            entries = [self._tiers.entries[one] for one in dict.fromkeys(wanted)]
            return sum(self._tiers.spiller.submit(entry) for entry in entries if entry.can_spill)

    def _give_up(self, entry: Entry, problem: str, damaged_inode: int | None) -> None:
        with self._lock:
            if damaged_inode is not None:
                self._tiers.set_aside(
                    DamagedFile(entry.segment_id, entry.start, entry.stop, problem, damaged_inode)
                )
            self._tiers.forget(entry)
