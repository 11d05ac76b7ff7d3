"""From RAM to disk: a thread that writes segments behind the conversation, and what it minds.

`SpillWriter` owns a queue of segment ids and its thread. `Spiller` owns when a segment may be
written and what follows: its path stays on disk meanwhile, the disk keeps its free space, and a
disk that is full or gone leaves the segment in RAM. Memory is bounded because a queued segment is
held by the RAM tier anyway; the queue holds only its id.
"""

from __future__ import annotations

import contextlib
import logging
import queue
import threading
import time
from collections.abc import Callable
from pathlib import Path

from chatcache import formatting
from chatcache.cache.book.entries import Entry
from chatcache.cache.book.policy import TierPolicy
from chatcache.cache.book.segment_book import SegmentBook
from chatcache.cache.files.pace import Pace
from chatcache.cache.files.segfile import SegmentHeader
from chatcache.cache.segments import Block, LostBlockError
from chatcache.cache.tiers.disk import DiskTier
from chatcache.cache.tiers.notices import Notices
from chatcache.os_failures import OUT_OF_SPACE, reason

log = logging.getLogger(__name__)

CREATOR = "chatcache"


class DiskFloorError(OSError):
    """Writing would leave less free space than was asked for."""


class SpillWriter:
    """Calls `write(segment_id)` for each submitted id, in order, in one daemon thread."""

    def __init__(self, write: Callable[[str], None]):
        self._write = write
        self._queue: queue.Queue[str | None] = queue.Queue()
        self._idle = threading.Condition()
        self._num_pending = 0
        self._thread = threading.Thread(target=self._run, name="spill", daemon=True)
        self._thread.start()

    def submit(self, segment_id: str) -> None:
        with self._idle:
            self._num_pending += 1
        self._queue.put(segment_id)

    def drain(self, timeout: float | None = None) -> bool:
        """Wait until everything submitted is written or has failed. False: the time ran out."""
        with self._idle:
            return self._idle.wait_for(lambda: self._num_pending == 0, timeout)

    def close(self) -> None:
        """Write what is pending, then end the thread."""
        self._queue.put(None)
        self._thread.join()

    def _run(self) -> None:
        while (segment_id := self._queue.get()) is not None:
            try:
                self._write(segment_id)
            except Exception:
                log.exception("segment %s could not be spilled", segment_id)
            finally:
                with self._idle:
                    self._num_pending -= 1
                    self._idle.notify_all()


class Spiller:
    """Writes segments of the book that are in RAM alone, to `disk`, which makes room for them.

    `on_settled` is called, in whatever thread, when a segment was written or will not be."""

    def __init__(
        self,
        book: SegmentBook,
        disk: DiskTier,
        policy: TierPolicy,
        notices: Notices,
        clock: Callable[[], float],
        on_settled: Callable[[], None],
    ):
        self.pace = Pace()
        self._book = book
        self._disk = disk
        self._policy = policy
        self._notices = notices
        self._clock = clock
        self._on_settled = on_settled
        self._writer: SpillWriter | None = None

    def start(self) -> None:
        self._writer = SpillWriter(self.spill)

    def drain(self, timeout: float | None = None) -> bool:
        """Wait until all that was submitted is on disk or has failed to get there."""
        if self._writer is None or timeout == 0:
            return self._writer is None or self._writer.drain(timeout)
        with self.pace.waited_for():
            return self._writer.drain(timeout)

    def close(self) -> None:
        """Write what is pending, and end."""
        if self._writer is not None:
            with self.pace.waited_for():
                self._writer.close()
            self._writer = None

    def can_write(self, entry: Entry) -> bool:
        """Whether there is still a disk for it: else what RAM gives up is gone."""
        is_stale = entry.is_over(self._policy.disk_ttl, self._clock())
        return self._writer is not None and entry.can_spill and not is_stale

    def submit(self, entry: Entry) -> int:
        """Have a segment written; returns the bytes that will be written for it."""
        if self._writer is None or entry.is_pending or entry.path is not None:
            return 0
        entry.is_pending = True
        self._writer.submit(entry.segment_id)
        return entry.num_bytes + len(entry.token_ids.packed)

    def submit_all(self, segment_id: str | None = None) -> int:
        """Have everything written that is in RAM alone, what was used last first; or one segment,
        and before it what it builds on.

        Returns the bytes that will be written."""
        book = self._book
        with book.lock:
            wanted = book.entries() if segment_id is None else book.lineage(segment_id)
            ordered = sorted(wanted, key=lambda entry: (-entry.last_used, entry.start))
            due = [entry for entry in ordered if entry.block is not None and self.can_write(entry)]
            return sum(self.submit(entry) for entry in due)

    def spill(self, segment_id: str) -> None:
        """Write one segment (in the writer's thread)."""
        with self._book.lock:
            entry = self._book.get(segment_id)
            if entry is None:
                return
            self._notice_removal()
            block = entry.block
            if block is None or entry.path is not None or self._is_cut_off(entry):
                entry.is_pending = False
                self._on_settled()
                return
            path_held = contextlib.ExitStack()  # its ancestors are not evicted to make room for it
            path_held.enter_context(self._book.held(self._book.lineage(segment_id)[1:]))
        began = time.perf_counter()
        try:
            with path_held:
                path, size = self._write(entry, block)
        except OSError as error:
            self._note_unwritten(entry, error)
            return
        except LostBlockError as error:
            self._note_lost(entry, error)
            return
        finally:
            entry.is_pending = False
        seconds = time.perf_counter() - began
        self._disk.note_written(entry, path, size)
        self._on_settled()
        tokens = formatting.plural(entry.stop - entry.start, "token")
        text = f"spilled {tokens}, {formatting.size(size)}, {seconds:.2f} s"
        self._notices.tell("spilled", text)

    def _is_cut_off(self, entry: Entry) -> bool:
        """Whether what comes before it cannot get to the disk: then it would be of no use there."""
        if entry.start == 0:
            return False
        parent = self._book.get(entry.parent_id or "")
        is_lost = parent is None or (parent.path is None and not parent.can_spill)
        entry.can_spill = entry.can_spill and not is_lost
        return is_lost

    def _notice_removal(self) -> None:
        """If somebody removed the directory, begin it again with what is still in RAM."""
        if self._disk.store.directory.is_dir():
            return
        self._disk.open_again()
        for entry in self._book.entries():
            if entry.path is not None:
                entry.path, entry.disk_bytes = None, 0
                is_gone = self._book.remove_if_gone(entry)
                self._book.log.note("given_up", entry, "disk", is_gone=is_gone)
        for entry in sorted(self._book.entries(), key=lambda entry: entry.start):
            self.submit(entry)

    def _note_unwritten(self, entry: Entry, error: OSError) -> None:
        entry.can_spill = False
        if isinstance(error, DiskFloorError):
            self._notices.warn_once("floor", f"new segments stay in RAM: {error}")
        else:
            text = f"tokens {entry.start:,}-{entry.stop:,} are not kept on disk: {reason(error)}"
            self._notices.warn(text)
        self._on_settled()

    def _note_lost(self, entry: Entry, error: LostBlockError) -> None:
        with self._book.lock:
            entry.block, entry.can_spill = None, False
            self._book.remove_if_gone(entry)
        self._notices.warn(f"tokens {entry.start:,}-{entry.stop:,} are not kept: {error}")
        self._on_settled()

    def _write(self, entry: Entry, block: Block) -> tuple[Path, int]:
        store = self._disk.store
        header = SegmentHeader(
            entry.segment_id, entry.parent_id, store.namespace, entry.start, entry.stop,
            entry.token_ids, self._clock(), CREATOR, has_states=block.has_states,
        )  # fmt: skip
        self._keep_floor(block.num_bytes)
        try:
            return store.write(header, block.sources(), entry.last_used, self.pace)
        except OSError as error:
            if error.errno not in OUT_OF_SPACE:
                raise
        self._disk.enforce(bytes_wanted=2 * block.num_bytes)
        return store.write(header, block.sources(), entry.last_used, self.pace)

    def _keep_floor(self, num_bytes: int) -> None:
        """Make room so that the disk keeps its free space. Raises DiskFloorError."""
        floor, store = self._policy.disk_floor, self._disk.store
        if floor == 0:
            return
        missing = floor + num_bytes - store.free_bytes()
        if missing > 0:
            self._disk.enforce(bytes_wanted=missing, is_all_or_nothing=True)
            if store.free_bytes() < floor + num_bytes:
                raise DiskFloorError(f"less than {floor / 1e9:.1f} GB would be left on the disk")
