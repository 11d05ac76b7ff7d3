"""What a person does with one segment: look at it, keep it, drop it, check it.

Owns the sentences that say what was done. The files are the business of the cache's inspector.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from chatcache.cache.inspect import CacheInspector, NamespaceUse, remove_files
from chatcache.cache.retention import (
    Keeper,
    dead_namespaces,
    forget_lost_pins,
    remove_namespace,
)
from chatcache.cache.views import SegmentRow
from chatcache.errors import NotFoundError, StorageError, UsageError
from chatcache.formatting import one_line, plural, size
from chatcache.frontend.progress import Report
from chatcache.os_failures import advice, reason

if TYPE_CHECKING:
    from chatcache.chat.service import ChatService


@dataclass(frozen=True, slots=True)
class Verified:
    """How far a look at all files is: `done` of `total`, `num_bytes` read."""

    done: int
    total: int
    num_bytes: int
    num_damaged: int

    @property
    def words(self) -> str:
        found = f"{self.num_damaged:,} damaged" if self.num_damaged else "all sound"
        return f"Verified {self.done:,} of {self.total:,}, {size(self.num_bytes)}: {found}."


@dataclass(frozen=True, slots=True)
class Garbage:
    """What nothing can use any more: whole namespaces of models that are gone, segments whose
    beginning is gone, and files that were set aside as damaged."""

    dead: tuple[NamespaceUse, ...]
    orphans: tuple[Path, ...]
    damaged: tuple[Path, ...]
    num_bytes: int

    @property
    def num_files(self) -> int:
        return sum(use.num_segments for use in self.dead) + len(self.orphans) + len(self.damaged)

    def lines(self) -> list[str]:
        """What would be removed, and why."""
        if not self.num_files:
            return ["Nothing to remove: every segment on disk can be used."]
        lines = [
            f"{plural(use.num_segments, 'segment')}, {size(use.num_bytes)}: the model"
            f" {one_line(use.fields.get('soft.name', ''))} is gone"
            for use in self.dead
        ]
        if self.orphans:
            lines.append(f"{plural(len(self.orphans), 'segment')}: what they build on is gone")
        if self.damaged:
            lines.append(f"{plural(len(self.damaged), 'file')} that had been set aside as damaged")
        return [*lines, f"{size(self.num_bytes)} in all. No word is lost."]


class SegmentDesk:
    """Acts on the disk; a running engine notices. Every method may take a while."""

    def __init__(self, open_inspector: Callable[[], CacheInspector]) -> None:
        self._open_inspector = open_inspector

    def inspect(self, row: SegmentRow) -> list[str]:
        """What is in the file of a segment, its checksums compared."""
        inspector, stored = self._stored(row)
        found = inspector.examine(stored)
        return [
            f"{found.num_tensors} tensors of {', '.join(found.dtypes)}, by {found.creator}",
            f"checksums: {found.problem or 'sound'}",
            str(inspector.path_of(stored)),
        ]

    def verify(self, row: SegmentRow) -> str:
        inspector, stored = self._stored(row)
        problem = inspector.examine(stored).problem
        return f"Damaged: {problem}" if problem else "All checksums are as they were written."

    def stored(self) -> list[SegmentRow]:
        return self._open_inspector().rows()

    def verify_all(self) -> Iterator[Verified]:
        """Read every file and compare its checksums, telling after each one."""
        inspector = self._open_inspector()
        rows, num_bytes, num_damaged = inspector.rows(), 0, 0
        for number, row in enumerate(rows, 1):
            num_damaged += inspector.examine(row).problem is not None
            num_bytes += row.num_bytes
            yield Verified(number, len(rows), num_bytes, num_damaged)

    def toggle_pin(self, row: SegmentRow) -> str:
        """Pin a segment with all before it, or take the pin back."""
        keeper = self._keeper(row)
        path = keeper.path(row.segment_id)
        try:
            if keeper.pinned({row.segment_id}):
                done = keeper.unpin(path)
                stay = f" {done.num_still_pinned} stay." if done.num_still_pinned else ""
                return f"Unpinned {plural(done.num_unpinned, 'segment')}.{stay}"
            keeper.pin(path)
        except OSError as error:
            raise _unwritable(error) from error
        total = sum(pinned.num_bytes for pinned in keeper.rows_of(path))
        return f"Pinned {plural(len(path), 'segment')}, {size(total)}: no budget takes them."

    def drop(self, row: SegmentRow) -> str:
        """Delete a segment and what builds on it. Raises UsageError when one is pinned."""
        keeper = self._keeper(row)
        doomed = keeper.subtree([row.segment_id])
        if pinned := keeper.pinned(doomed):
            raise UsageError(f"{plural(len(pinned), 'segment')} of it are pinned.", "Unpin first.")
        try:
            removed = keeper.drop(doomed)
        except OSError as error:
            raise _unwritable(error) from error
        return (
            f"Dropped {plural(removed.num_files, 'file')}, {size(removed.num_bytes)}."
            " What is needed again is computed again."
        )

    def look_for_garbage(self, report: Report) -> Garbage:
        """What could be removed without any loss."""
        inspector, stage = self._open_inspector(), "looking for what can be removed"
        report(stage)
        dead = tuple(dead_namespaces(inspector))
        gone = {use.namespace for use in dead}
        report(stage)
        orphans = tuple(path for path in inspector.orphans() if path.parent.name not in gone)
        damaged = tuple(inspector.quarantine.paths())
        num_bytes = sum(use.num_bytes for use in dead)
        num_bytes += sum(_size(path) for path in (*orphans, *damaged))
        return Garbage(dead, orphans, damaged, num_bytes)

    def collect(self, garbage: Garbage, report: Report) -> str:
        """Remove it. Cancelling brings nothing back that was removed. Raises StorageError."""
        inspector, num_files, num_bytes = self._open_inspector(), 0, 0
        try:
            for use in garbage.dead:
                report("removing", num_files, garbage.num_files)
                removed = remove_namespace(inspector, use.namespace)
                num_files, num_bytes = num_files + removed.num_files, num_bytes + removed.num_bytes
            for path in (*garbage.orphans, *garbage.damaged):
                report("removing", num_files, garbage.num_files)
                removed = remove_files([path])
                num_files, num_bytes = num_files + removed.num_files, num_bytes + removed.num_bytes
            inspector.collect_garbage()
            forget_lost_pins(inspector)
        except OSError as error:
            raise _unwritable(error) from error
        return f"Removed {plural(num_files, 'file')}, {size(num_bytes)}."

    def _stored(self, row: SegmentRow) -> tuple[CacheInspector, SegmentRow]:
        inspector = self._open_inspector()
        for stored in inspector.rows():
            if (stored.segment_id, stored.namespace) == (row.segment_id, row.namespace):
                return inspector, stored
        hint = "It can be acted on once it has been written to disk."
        raise NotFoundError("This segment is in memory only.", hint)

    def _keeper(self, row: SegmentRow) -> Keeper:
        inspector, _ = self._stored(row)
        return Keeper(inspector, row.namespace)


def required(desk: SegmentDesk | None) -> SegmentDesk:
    if desk is None:
        raise UsageError("The cache of this backend is not on this machine.", "")
    return desk


def spill(service: ChatService, row: SegmentRow | None = None) -> str:
    """Have all that is in memory written to disk, or one segment with all before it."""
    if row is not None and row.on_disk:
        raise UsageError("It is on disk already.", "")
    if not service.spill(row.segment_id if row is not None else None):
        raise UsageError("No model of this machine is loaded.", "Then nothing is in memory.")
    if row is not None:
        return "It is being written, with all before it."
    return "What is in memory alone is being written to disk."


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _unwritable(error: OSError) -> StorageError:
    return StorageError(
        f"The cache cannot be written: {reason(error)}.", f"{advice(error)}, then try again."
    )
