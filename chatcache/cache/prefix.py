"""The prefix cache of one namespace: lookup, lease, restore, commit.

What is kept where, and for how long, is decided in `tiers/`. A turn uses the cache in this order:

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

from chatcache.cache.book.entries import Entry, Lease, Lookup, RestoreResult, new_entry
from chatcache.cache.book.policy import TierPolicy
from chatcache.cache.book.radix import MatchResult
from chatcache.cache.book.segment_book import SegmentBook
from chatcache.cache.files.ownership import check_owner
from chatcache.cache.files.store import LostSegment
from chatcache.cache.segments import Block, KVSink, Span
from chatcache.cache.tiers.attacher import Attacher
from chatcache.cache.tiers.disk import DiskTier
from chatcache.cache.tiers.lifetimes import Lifetimes
from chatcache.cache.tiers.listing import segment_rows
from chatcache.cache.tiers.notices import Notices
from chatcache.cache.tiers.ram import RamTier
from chatcache.cache.tiers.restore import adopt_tokens, restore_states, restore_tokens
from chatcache.cache.tiers.spiller import Spiller
from chatcache.cache.tiers.tree import tree_shape
from chatcache.cache.tiers.vram import VramTier
from chatcache.cache.views import Held, SegmentRow, TierUse, TreeShape
from chatcache.os_failures import reason
from chatcache.token_ids import NO_IDS, TokenIds


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
        vram_budget: int = 0,
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
        self._cache_dir, self._policy, self._clock = cache_dir, policy, clock
        self._needs_states, self._may_keep = needs_states, may_keep
        self._notices = Notices(on_event)
        self._book = SegmentBook(clock)
        common = (policy, self._notices, clock)
        self._disk = DiskTier(cache_dir, namespace, self._book, disk_budget, *common)
        self._attacher = Attacher(self._book, self._disk)
        self._spiller = Spiller(self._book, self._disk, *common, self._enforce_ram)
        self._ram = RamTier(self._book, self._spiller, ram_budget, *common)
        self.vram = VramTier(self._book, vram_budget, *common)
        self._lifetimes = Lifetimes(self._book, self._disk, self._spiller, *common)

    @property
    def damaged(self) -> list[LostSegment]:
        """What was found damaged and set aside, to explain a miss by it."""
        with self._book.lock:
            return list(self._notices.damaged)

    @property
    def expired(self) -> list[LostSegment]:
        """What was given up because its time to live was over, to explain a miss by it."""
        with self._book.lock:
            return list(self._notices.expired)

    # opening and closing

    def open(self, fields: Mapping[str, str]) -> None:
        """Read what earlier processes left. Never raises for the state of the disk: it warns."""
        disk = self._disk
        try:
            check_owner(self._cache_dir, self.namespace)
        except OSError as error:
            disk.is_reading = disk.is_writing = False
            text = f"nothing is read from disk, and nothing is kept there: {error.filename}"
            self._notices.warn(f"{text}: {reason(error)}")
            return
        if disk.is_writing:
            try:
                disk.store.prepare(fields)
                self._spiller.start()
            except OSError as error:
                disk.is_writing = False
                where = disk.store.directory
                self._notices.warn(f"nothing is kept on disk: {where}: {reason(error)}")
        disk.open()

    def close(self) -> None:
        """Write out what is still to be spilled."""
        if self._policy.spill == "exit":
            self._spiller.submit_all()
        self._spiller.close()
        self._disk.close()

    def computing(self) -> contextlib.AbstractContextManager[None]:
        """While a turn computes, segments are written at a pace that does not slow it down."""
        return self._spiller.pace.computing()

    def drain(self, timeout: float | None = None) -> bool:
        """Wait until all that was given to the writer is on disk or has failed to get there."""
        return self._spiller.drain(timeout)

    def spill(self, segment_id: str | None = None) -> int:
        """Have all that is in RAM alone written now, or one segment with all before it; returns
        the bytes that will be. An event tells what is written, and why nothing is."""
        num_bytes = self._spiller.submit_all(segment_id)
        if not self._disk.is_writing:
            self._notices.warn("nothing is written to disk: that is switched off")
        elif num_bytes == 0 and self.drain(0):
            what = "everything" if segment_id is None else "all of it"
            self._notices.tell("spilled", f"{what} that can be is on disk already")
        return num_bytes

    # looking

    def lookup(self, ids: TokenIds) -> Lookup:
        """What is held of the leading ids, by tier. Changes nothing, not even recency."""
        self._refresh()
        with self._book.lock:
            spans: list[Span] = []
            held: list[Held] = []
            found, _, checkpoint = self._match(ids)
            for span in found:
                entry = self._book[span.segment_id]
                place = self._lifetimes.place(entry)
                if place is None:
                    break
                spans.append(span)
                held.append(entry.held(span, place))
            if checkpoint is not None and (not held or held[-1].stop < checkpoint.stop):
                return Lookup()
            return Lookup(tuple(spans), tuple(held))

    def on_path(self, ids: TokenIds) -> dict[str, int]:
        """The segments of a path with their sizes in bytes: those that a restore would use, and
        those of which every position lies on it."""
        with self._book.lock:
            used = [span.segment_id for span in self.lookup(ids).spans]
            extents = self._book.extents(ids).items()
            whole = [found for found, extent in extents if extent == self._book[found].stop]
            entries = [self._book[segment_id] for segment_id in dict.fromkeys(used + whole)]
            return {entry.segment_id: entry.disk_bytes or entry.num_bytes for entry in entries}

    def rows(self, live: TokenIds = NO_IDS, limit: int | None = None) -> list[SegmentRow]:
        """Segments, the most recently used first; those of the path `live` are marked.

        With a limit, no more than that, and without a look at every file."""
        self._refresh()
        with self._book.lock:
            live_ids = {span.segment_id for span in self._reach(live).spans}
            return segment_rows(self._book, self._disk, live_ids, limit)

    def tree(self, live: TokenIds = NO_IDS, num_events: int = 0) -> TreeShape:
        """The tree with what no prompt has reached yet, and its last changes, the oldest first;
        the edges of the path `live` are marked. Changes nothing."""
        self._refresh()
        with self._book.lock:
            return tree_shape(self._book, self._disk, live, num_events)

    def use(self) -> tuple[TierUse, TierUse]:
        """RAM and disk: bytes used, budget, number of segments. Disk counts all namespaces."""
        with self._book.lock:
            return self._ram.use(), self._disk.use()

    # one turn

    @contextlib.contextmanager
    def acquire(
        self, ids: TokenIds, limit: int, min_part: int = 0, *, is_use: bool = True
    ) -> Iterator[Lease]:
        """Hold the longest prefix of at most `limit` tokens while the block runs.

        Without `is_use` it is only looked at: it counts as no hit and is used no more recently.
        Of a segment that is used in part, at least `min_part` tokens must be: a cut at the end of
        a segment is where the conversation itself was cut, so what follows is computed in the
        same pieces as it was, with the same bits; a cut elsewhere has to pay for itself.
        """
        self._refresh()
        with contextlib.ExitStack() as stack:
            with self._book.lock:
                fresh, num_matched, checkpoint = self._fresh(ids[:limit])
                spans = fresh if checkpoint else self._without_small_part(fresh, min_part)
                held = [self._book[s.segment_id] for s in (*spans, checkpoint) if s is not None]
                if is_use:
                    stack.callback(self._touch, held, self._used(held))
                stack.enter_context(self._book.held(held))
                lies = [self._lies(span) for span in spans]
                if is_use and spans:
                    is_read = any(each.tier == "disk" for each in lies)
                    self._book.log.note_hit(ids, spans, "disk" if is_read else "ram")
                lease = Lease(ids, spans, num_matched, checkpoint, lies, is_use=is_use)
            yield lease

    def adopt(self, lease: Lease, sink: KVSink, start: int) -> int:
        """Have `sink`, which holds `start` tokens, go on where more of the lease lies already;
        returns how many tokens it then holds. `restore` brings the others."""
        return adopt_tokens(self._book, lease, sink, start)

    def restore(self, lease: Lease, sink: KVSink, start: int) -> RestoreResult:
        """Bring positions `start` to the end of the lease into `sink`, which holds `start` tokens.

        Stops at the first segment that is gone or damaged, which is set aside."""
        return restore_tokens(self._book, self._disk.lose, lease, sink, start)

    def restore_states(self, lease: Lease, sink: KVSink) -> RestoreResult:
        """Bring the checkpoint at the end of the lease into `sink`, which holds all its tokens.

        A segment that is gone or damaged is set aside, and the states are left as they were."""
        return restore_states(self._book, self._disk.lose, lease, sink)

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
            held = self._reach(upto).num_tokens
            start = held if computed_from is None else min(held, max(before, computed_from))
            before = stop
            if start >= stop or (held >= stop and not self._lacks_states(upto)):
                continue
            try:
                block, now = export(start, stop), self._clock()
                has_room = block.num_bytes < self._disk.budget
                entry = new_entry(self.namespace, upto, start, block, now, can_spill=has_room)
            except (MemoryError, RuntimeError) as error:  # torch says the latter
                why = str(error).partition("\n")[0] or "the memory is full"
                self._notices.warn(f"tokens {start:,}-{stop:,} are not kept: {why}")
                break
            with self._book.lock:
                if self._reach(upto).num_tokens >= start:  # it was not given up meanwhile
                    self._book.add(upto, entry)
        num_bytes = self._spill_path(ids)
        self._enforce_ram()
        self._disk.enforce()
        return num_bytes

    def promote(self, ids: TokenIds, lend: Callable[[int, int], Block | None]) -> None:
        """Count what is live of a path as held in RAM, where that costs no memory: files of the
        path are not read again while `lend(start, stop)` keeps their run where it lies."""
        with self._book.lock:
            for span in self._reach(ids).spans:
                entry = self._book[span.segment_id]
                if entry.block is None and (span.start, span.stop) == (entry.start, entry.stop):
                    entry.block = lend(span.start, span.stop)
                    if entry.block is not None:
                        self._book.log.note("restored", entry, "ram")
        self._enforce_ram()

    def forget_deleted(self, *, is_all: bool) -> None:
        """Give up in RAM what was deleted on disk; with `is_all` what was never written, too."""
        self._ram.forget_deleted(is_all=is_all)

    def check(self) -> list[str]:
        """Everything that is wrong with the book-keeping; empty when it is sound."""
        with self._book.lock:
            problems = self._book.check()
            ram, _ = self.use()
            is_held = any(entry.is_held for entry in self._book.entries())
            if ram.num_bytes > ram.budget_bytes and not is_held and self.drain(0):
                problems.append("the RAM budget is exceeded")
        return problems

    # inside

    def _refresh(self) -> None:
        """Notice what commands have pinned and other processes have written meanwhile."""
        if self._disk.is_reading:
            self._disk.refresh_pins()
            self._attacher.notice_news()

    def _enforce_ram(self) -> None:
        self._disk.refresh_pins()
        self._ram.enforce()

    def _reach(self, ids: TokenIds) -> MatchResult:
        """The longest held run of leading ids, wherever it lies."""
        with self._book.lock:
            self._attacher.reach(ids)
            return self._book.match(ids)

    def _match(self, ids: TokenIds) -> tuple[tuple[Span, ...], int, Span | None]:
        """The spans that can be used, how many tokens are known, and where the states are."""
        match = self._reach(ids)
        if not self._needs_states:
            return match.spans, match.num_tokens, None
        ends = self._book.ending_on(ids)
        checkpoints = [span for span in ends if self._book[span.segment_id].has_states]
        if not checkpoints:
            return (), match.num_tokens, None
        spans = self._reach(ids[: checkpoints[-1].stop]).spans
        return spans, match.num_tokens, checkpoints[-1]

    def _fresh(self, ids: TokenIds) -> tuple[tuple[Span, ...], int, Span | None]:
        """A match of which nothing is over; what is over is given up."""
        while True:
            spans, num_matched, checkpoint = self._match(ids)
            fresh = self._without_expired(spans)
            if checkpoint is None:
                return fresh, fresh[-1].stop if fresh else 0, None
            entry = self._book.get(checkpoint.segment_id)
            if entry is not None and fresh == spans and not self._lifetimes.drop_expired(entry):
                return fresh, num_matched, checkpoint

    def _without_expired(self, spans: Sequence[Span]) -> tuple[Span, ...]:
        """The spans up to the first one whose time is over; what is over is given up."""
        entries = [self._book[span.segment_id] for span in spans]
        gone = [self._lifetimes.drop_expired(entry) for entry in entries]
        return tuple(spans[: gone.index(True)] if True in gone else spans)

    def _without_small_part(self, spans: tuple[Span, ...], min_part: int) -> tuple[Span, ...]:
        if not spans:
            return spans
        last = spans[-1]
        is_part = last.stop < self._book[last.segment_id].stop
        return spans[:-1] if is_part and last.stop - last.start < min_part else spans

    def _lies(self, span: Span) -> Held:
        """Where a restore would take it from."""
        entry = self._book[span.segment_id]
        return entry.held(span, next(iter(entry.tiers), "disk"))

    def _used(self, entries: Sequence[Entry]) -> float:
        """They are used now; returns the time."""
        now = self._clock()
        for entry in entries:
            entry.hits += 1
            entry.last_used = now
        return now

    def _touch(self, entries: Sequence[Entry], now: float) -> None:
        for entry in entries:
            if entry.path is not None:
                self._disk.store.touch(entry.path, now)

    def _lacks_states(self, ids: TokenIds) -> bool:
        """Whether a path that is held has no checkpoint at its end, though the model needs one."""
        if not self._needs_states:
            return False
        with self._book.lock:
            _, _, checkpoint = self._match(ids)
        return checkpoint is None or checkpoint.stop < len(ids)

    def _spill_path(self, ids: TokenIds) -> int:
        """Have written what is in RAM alone of a path, if that is due after each turn."""
        if self._policy.spill != "turn":
            return 0
        with self._book.lock:
            wanted = [span.segment_id for span in self._reach(ids).spans]
            if self._needs_states:  # a checkpoint counts, also where a longer segment has its K, V
                wanted += [span.segment_id for span in self._book.ending_on(ids)]
            entries = [self._book[segment_id] for segment_id in dict.fromkeys(wanted)]
            return sum(self._spiller.submit(entry) for entry in entries if entry.can_spill)
