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
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from chatcache import formatting
from chatcache.cache.files.pace import Pace
from chatcache.cache.files.segfile import SegmentHeader, is_out_of_space

if TYPE_CHECKING:
    from chatcache.cache.book.entries import Block, Entry
    from chatcache.cache.tiers import Tiers

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
    """Writes segments of `tiers` that are in RAM alone."""

    def __init__(self, tiers: Tiers):
        self.pace = Pace()
        self._tiers = tiers
        self._writer: SpillWriter | None = None

    @property
    def is_running(self) -> bool:
        return self._writer is not None

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
        tiers = self._tiers
        with tiers.lock:
            wanted = tiers.entries.values() if segment_id is None else self._path(segment_id)
            ordered = sorted(wanted, key=lambda e: (-e.last_used, e.start))
            due = [one for one in ordered if one.block is not None and tiers.can_write(one)]
            return sum(self.submit(entry) for entry in due)

    def _path(self, segment_id: str) -> list[Entry]:
        """A segment and those that it builds on."""
        found = []
        entry = self._tiers.entries.get(segment_id)
        while entry is not None:
            found.append(entry)
            entry = self._tiers.entries.get(entry.parent_id or "")
        return found

    def spill(self, segment_id: str) -> None:
        """Write one segment (in the writer's thread)."""
        tiers = self._tiers
        with tiers.lock:
            entry = tiers.entries.get(segment_id)
            if entry is None:
                return
            self._notice_removal()
            block = entry.block
            if block is None or entry.path is not None or self._is_cut_off(entry):
                entry.is_pending = False
                tiers.enforce_ram()
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
        tiers.note_written(entry, path, size)
        tiers.tell(
            "spilled",
            f"spilled {entry.stop - entry.start:,} tokens, {formatting.size(size)},"
            f" {seconds:.2f} s",
        )

    def _is_cut_off(self, entry: Entry) -> bool:
        """Whether what comes before it cannot get to the disk: then it would be of no use there."""
        if entry.start == 0:
            return False
        parent = self._tiers.entries.get(entry.parent_id or "")
        is_lost = parent is None or (parent.path is None and not parent.can_spill)
        entry.can_spill = entry.can_spill and not is_lost
        return is_lost

    @contextlib.contextmanager
    def _path_held(self, entry: Entry) -> Iterator[None]:
        """While a segment is written, what comes before it does not make room for it."""
        tiers = self._tiers
        held: list[Entry] = []
        with tiers.lock:
            before = tiers.entries.get(entry.parent_id or "")
            while before is not None:
                before.num_leases += 1
                held.append(before)
                before = tiers.entries.get(before.parent_id or "")
        try:
            yield
        finally:
            with tiers.lock:
                for before in held:
                    before.num_leases -= 1

    def _notice_removal(self) -> None:
        """If somebody removed the directory, begin it again with what is still in RAM."""
        tiers = self._tiers
        if tiers.store.directory.is_dir():
            return
        tiers.store.prepare_again()
        for entry in list(tiers.entries.values()):
            entry.path, entry.disk_bytes = None, 0
            if entry.block is None:
                tiers.forget(entry)
        for entry in sorted(tiers.entries.values(), key=lambda entry: entry.start):
            self.submit(entry)

    def _note_unwritten(self, entry: Entry, error: OSError) -> None:
        entry.can_spill = False
        if isinstance(error, DiskFloorError):
            self._tiers.warn_once("floor", f"new segments stay in RAM: {error}")
        else:
            why = error.strerror or str(error)
            text = f"tokens {entry.start:,}-{entry.stop:,} are not kept on disk: {why}"
            self._tiers.tell("warning", text)
        self._tiers.enforce_ram()

    def _write(self, entry: Entry, block: Block) -> tuple[Path, int]:
        tiers = self._tiers
        header = SegmentHeader(
            entry.segment_id, entry.parent_id, tiers.store.namespace, entry.start, entry.stop,
            entry.token_ids, tiers.clock(), CREATOR, has_states=block.has_states,
        )  # fmt: skip
        self._keep_floor(block.num_bytes)
        try:
            return tiers.store.write(header, block.sources(), entry.last_used, self.pace)
        except OSError as error:
            if not is_out_of_space(error):
                raise
        tiers.enforce_disk(bytes_wanted=2 * block.num_bytes)
        return tiers.store.write(header, block.sources(), entry.last_used, self.pace)

    def _keep_floor(self, num_bytes: int) -> None:
        """Make room so that the disk keeps its free space. Raises DiskFloorError."""
        tiers = self._tiers
        floor = tiers.policy.disk_floor
        if floor == 0:
            return
        missing = floor + num_bytes - tiers.store.free_bytes()
        if missing > 0:
            tiers.enforce_disk(bytes_wanted=missing, is_all_or_nothing=True)
            if tiers.store.free_bytes() < floor + num_bytes:
                raise DiskFloorError(f"less than {floor / 1e9:.1f} GB would be left on the disk")
