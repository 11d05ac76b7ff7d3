"""The segments of one namespace on disk: a directory of files, and nothing else.

It owns names, atomic writes, deletion and recency (the modification time of a file).
The headers are the truth; the index only tells where to look first (`index.py`). File before
anything that mentions it; a file appears whole or not at all (temporary name, fsync, rename), so
any number of processes may write without a lock: a name stands for its content.

    <cache-dir>/segments/<namespace>/namespace.json            the fields, for people and for misses
    <cache-dir>/segments/<namespace>/index-2.sqlite3           which segment builds on which
    <cache-dir>/segments/<namespace>/<start>-<stop>-<id>.safetensors

Damaged files are set aside elsewhere (`quarantine.py`).
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from chatcache.atomic_write import remove_leftovers, replacing, write_atomically
from chatcache.cache.files.index import IndexRow, SegmentIndex
from chatcache.cache.files.names import Named, file_name, id_of, is_file_name, parse_name
from chatcache.cache.files.pace import Pace
from chatcache.cache.files.quarantine import Quarantine
from chatcache.cache.files.segfile import (
    SegmentDamagedError,
    SegmentFile,
    SegmentFormatError,
    SegmentHeader,
    SegmentMissingError,
    write_segment,
)
from chatcache.cache.segments import TensorSource


@dataclass(frozen=True, slots=True)
class LostSegment:
    """A segment that cannot be used any more, and why. `start` and `stop` may be from the name of
    its file, which may be a lie; `inode` tells the file that was found damaged."""

    segment_id: str
    start: int
    stop: int
    problem: str
    inode: int = 0


class FileStamp(NamedTuple):
    """What a directory tells of a segment file. `last_used` is Unix time."""

    segment_id: str
    num_bytes: int
    last_used: float


@dataclass(frozen=True, slots=True)
class StoredSegment:
    """A segment whose header was read."""

    header: SegmentHeader
    path: Path
    inode: int

    @property
    def row(self) -> IndexRow:
        """What the index notes of it."""
        return _index_row(self.header, self.header.num_bytes)


class SegmentStore:
    """One namespace directory. Methods that change something may be called from two threads as
    long as they are about different segments."""

    def __init__(self, cache_dir: Path, namespace: str):
        self.namespace = namespace
        self.directory = cache_dir / "segments" / namespace
        self.index = SegmentIndex(self.directory)
        self._quarantine = Quarantine(cache_dir)
        self._fields: Mapping[str, str] = {}

    def prepare(self, fields: Mapping[str, str]) -> None:
        """Make the directory (0700) and note what the namespace means. Raises OSError."""
        self._fields = fields
        for directory in (self.directory.parent, self.directory):
            directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        remove_leftovers(self.directory)
        path = self.directory / "namespace.json"
        if not path.exists():
            content = json.dumps(dict(fields), indent=1, sort_keys=True)
            write_atomically(path, content.encode(), is_durable=True)

    def prepare_again(self) -> None:
        """Make the directory as `prepare` did, if somebody removed it; failing shows at writing."""
        with contextlib.suppress(OSError):
            self.prepare(self._fields)

    def fields(self) -> dict[str, str]:
        """What the namespace stands for; empty if nobody noted it."""
        try:
            loaded = json.loads((self.directory / "namespace.json").read_text())
        except (OSError, ValueError):
            return {}
        return {str(key): str(value) for key, value in loaded.items()}

    def bring_index_up_to_date(self) -> list[LostSegment]:
        """Note what is in the directory and not in the index, and the other way round. Returns what
        is damaged."""
        known = self.index.parents().keys()  # before the names: a row comes after its file
        there = {id_of(name): name for name in self.names()}
        loaded = [self.load(name) for segment_id, name in there.items() if segment_id not in known]
        if new := [found.row for found in loaded if isinstance(found, StoredSegment)]:
            self.index.add(new)
        if gone := known - there.keys():
            self.index.remove(gone)
        return [found for found in loaded if isinstance(found, LostSegment)]

    def forget_deleted(self) -> None:
        """Let the index forget what somebody has deleted, the ids of a deleted chat above all."""
        if self.index.exists():
            with self.index.opened(is_writing=True) as index:
                known = index.parents().keys()  # before the names: a row comes after its file
                index.remove(known - set(map(id_of, self.names())))
                index.purge()

    def scan(self) -> tuple[list[StoredSegment], list[LostSegment]]:
        """Read every header. Nothing is changed: the caller decides about what is damaged."""
        found: list[StoredSegment] = []
        damaged: list[LostSegment] = []
        for name in sorted(self.names()):
            loaded = self.load(name)
            if isinstance(loaded, StoredSegment):
                found.append(loaded)
            elif loaded is not None:
                damaged.append(loaded)
        return found, damaged

    def has_states(self) -> bool:
        """Whether the first sound segment there is holds a checkpoint."""
        loaded = (self.load(name) for name in self.names())
        sound = (found for found in loaded if isinstance(found, StoredSegment))
        return any(found.header.has_states for found in islice(sound, 1))

    def load(self, name: str) -> StoredSegment | LostSegment | None:
        """Read the header of a file; None if it is gone, or of a format of the future."""
        path = self.directory / name
        inode = inode_of(path)
        try:
            return self._load(path)
        except (SegmentFormatError, SegmentMissingError):
            return None
        except SegmentDamagedError as error:
            return _damaged(name, str(error), inode)

    def write(
        self,
        header: SegmentHeader,
        tensors: Sequence[TensorSource],
        last_used: float,
        pace: Pace | None = None,
    ) -> tuple[Path, int]:
        """Write a segment; returns its path and size in bytes. Raises OSError, leaving nothing."""
        path = self.directory / file_name(header)
        with replacing(path, is_durable=True) as file:
            size = write_segment(file, header, tensors, pace)
            file.flush()
            with contextlib.suppress(OSError):  # not all file systems let it be set
                os.utime(file.fileno(), (last_used, last_used))
        self.index.add([_index_row(header, size)])
        return path, size

    def touch(self, path: Path, at: float) -> None:
        """Note that the segment was used, for the least-recently-used order of all processes."""
        with contextlib.suppress(OSError):
            os.utime(path, (at, at))

    def stamps(self) -> list[tuple[str, FileStamp]]:
        """Names, sizes and times of the segment files; nothing is opened."""
        stamps = ((name, self.stamp(name)) for name in self.names())
        return [(name, stamp) for name, stamp in stamps if stamp is not None]

    def stamp(self, name: str) -> FileStamp | None:
        """Size and time of one file; None when it is gone."""
        try:
            status = os.stat(f"{self.directory}/{name}")  # noqa: PTH116 - there are many
        except OSError:
            return None
        return FileStamp(id_of(name), status.st_size, status.st_mtime)

    def free_bytes(self) -> int:
        """How much the file system can still take."""
        return shutil.disk_usage(self.directory).free

    def delete(self, path: Path) -> None:
        """Remove a segment; it is no error if another process was quicker."""
        with contextlib.suppress(FileNotFoundError):
            path.unlink()

    def quarantine(self, path: Path, inode: int = 0) -> None:
        """Set a damaged file aside, so that it is neither read again nor lost to inspection.

        With the inode of the file that was read, a sound one that another process has put in its
        place since is left alone.
        """
        if inode and inode_of(path) != inode and _is_sound(path):
            return
        try:
            self._quarantine.put(path, self.namespace)
        except OSError:
            self.delete(path)

    def quarantined(self) -> list[LostSegment]:
        """What was set aside from this namespace, to explain a miss by it."""
        names = filter(is_file_name, self._quarantine.names(self.namespace))
        return [_damaged(name, "was damaged and has been set aside") for name in names]

    def paths(self) -> list[Path]:
        """The segment files there are, by name; nothing is opened."""
        return [self.directory / name for name in sorted(self.names())]

    def names(self) -> list[str]:
        """The names of the segment files there are, in no order; nothing is opened."""
        try:
            names = os.listdir(self.directory)  # noqa: PTH208 - there are many
        except OSError:
            return []
        return list(filter(is_file_name, names))

    def path_of(self, segment: Named) -> Path:
        """Where the file of a segment lies."""
        return self.directory / file_name(segment)

    def _load(self, path: Path) -> StoredSegment:
        with SegmentFile(path) as file:
            header = file.header
        if header.namespace != self.namespace or file_name(header) != path.name:
            raise SegmentDamagedError("the file has been renamed or belongs to another model")
        try:
            status = path.stat()
            return StoredSegment(header, path, status.st_ino)
        except OSError as error:
            raise SegmentMissingError(str(error)) from error


def namespaces(cache_dir: Path) -> list[SegmentStore]:
    """A store for every namespace directory there is."""
    try:
        names = sorted(e.name for e in os.scandir(cache_dir / "segments") if e.is_dir())
    except OSError:
        return []
    return [SegmentStore(cache_dir, name) for name in names]


def _index_row(header: SegmentHeader, num_bytes: int) -> IndexRow:
    """What the index notes of a segment."""
    return IndexRow(
        segment_id=header.segment_id,
        parent_id=header.parent_id if header.start else None,
        start=header.start,
        stop=header.stop,
        token_ids=header.token_ids,
        num_bytes=num_bytes,
        has_states=header.has_states,
    )


def inode_of(path: Path) -> int:
    """Tells a file from another one that took its name; 0 when it is gone."""
    try:
        return path.stat().st_ino
    except OSError:
        return 0


def _is_sound(path: Path) -> bool:
    """Whether there is nothing to set aside. Read in full: some network mounts give the same file
    another inode number now and then."""
    try:
        with SegmentFile(path) as file:
            file.verify()
    except SegmentDamagedError as error:
        return isinstance(error, SegmentFormatError)
    except SegmentMissingError:
        pass
    return True


def _damaged(name: str, problem: str, inode: int = 0) -> LostSegment:
    start, stop, segment_id = parse_name(name)
    return LostSegment(segment_id, start, stop, problem, inode)
