"""Which segment builds on which, noted beside the files: opening need not read every header.

The headers of the files are the truth. A row only tells where in the tree to look for a file: what
is found there is opened, and its id is computed again from its ids, before it is used. So a row
that is wrong, old or missing costs time or reuse and never makes a reuse wrong.

Layout (version 1): 16 bytes that name the format, then rows of 128 bytes, each with a checksum.
Whoever wrote a segment appends its row; a small append goes to the end of a file as one piece, so
several processes need no lock. What they lose when one of them writes the file anew is read from
the headers when the cache is opened next.
"""

from __future__ import annotations

import contextlib
import logging
import os
import struct
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

import xxhash

from chatcache.atomic_write import replacing
from chatcache.token_ids import BYTES_PER_ID, TokenIds

log = logging.getLogger(__name__)

FILE_NAME = "index-1.bin"
HEAD_IDS = 16
_MAGIC = b"chatcache-index1"
_FIELDS = struct.Struct("<16s16sIIQ64s8x")
_ROW = struct.Struct("<120sQ")
_NUM_BYTES = struct.Struct("<Q")
_NUM_BYTES_AT = 40
_START = struct.Struct("<I")
_START_AT = 32
_NO_PARENT = bytes(16)
_DEAD_ROWS = 1000


class IndexRow(NamedTuple):
    """Where a segment belongs. `head` are its first ids: 16 of them, or all."""

    segment_id: str
    parent_id: str | None
    start: int
    stop: int
    num_bytes: int
    head: TokenIds


class SegmentIndex:
    """The index of the segments in `directory`. Not thread-safe. Reading never raises: what cannot
    be read is not known."""

    def __init__(self, directory: Path):
        self._path = directory / FILE_NAME
        self._inode = 0
        self._num_read = 0
        self._num_rows = 0
        self._is_sound = False

    def read(self) -> list[bytes]:
        """All rows, packed, in the order in which they were appended."""
        self._inode = self._num_read = self._num_rows = 0
        self._is_sound = True
        return self.read_new()

    def read_new(self) -> list[bytes]:
        """The rows that were appended since; all of them if it is another file now."""
        try:
            status = self._path.stat()
        except OSError:
            self._is_sound = False
            return []
        if (status.st_ino, status.st_size) == (self._inode, self._num_read):
            return []
        if status.st_ino != self._inode:
            self._inode, self._num_read = status.st_ino, 0
        return self._parse(self._content())

    def has_to_be_written(self, num_files: int) -> bool:
        """Whether it is missing, damaged, or mostly about files that are gone."""
        return not self._is_sound or self._num_rows > 2 * num_files + _DEAD_ROWS

    def append(self, rows: Iterable[bytes]) -> None:
        """Add packed rows; failing to is no loss but of time."""
        content = b"".join(map(_with_checksum, rows))
        with contextlib.suppress(OSError):
            fd = os.open(self._path, os.O_WRONLY | os.O_APPEND)
            try:
                os.write(fd, content)
            finally:
                os.close(fd)

    def write(self, rows: Iterable[bytes]) -> None:
        """Put a file with these packed rows in the place of the old one; failing to is no loss
        but of time."""
        content = _MAGIC + b"".join(map(_with_checksum, rows))
        try:
            with replacing(self._path) as file:
                file.write(content)
                self._inode = os.fstat(file.fileno()).st_ino
        except OSError as error:
            log.warning("the index in %s cannot be written: %s", self._path.parent, error)
            return
        self._num_read, self._is_sound = len(content), True
        self._num_rows = (len(content) - len(_MAGIC)) // _ROW.size

    def _content(self) -> bytes:
        """What was not read yet, in whole rows; what is torn at the end is left for later."""
        try:
            with self._path.open("rb") as file:
                file.seek(self._num_read)
                content = file.read()
        except OSError:
            self._is_sound = False
            return b""
        if self._num_read == 0:
            self._is_sound = content.startswith(_MAGIC)
            self._num_read = len(_MAGIC)
            content = content[len(_MAGIC) :] if self._is_sound else b""
        torn = len(content) % _ROW.size
        self._is_sound = self._is_sound and not torn
        return content[:-torn] if torn else content

    def _parse(self, content: bytes) -> list[bytes]:
        self._num_read += len(content)
        self._num_rows += len(content) // _ROW.size
        digest = xxhash.xxh3_64_intdigest
        rows = [packed for packed, check in _ROW.iter_unpack(content) if digest(packed) == check]
        self._is_sound = self._is_sound and len(rows) * _ROW.size == len(content)
        return rows


def head_of(token_ids: TokenIds) -> TokenIds:
    """The part of the ids of a segment that is noted in a row."""
    return token_ids[:HEAD_IDS]


def pack_row(row: IndexRow) -> bytes:
    """A row as it is kept; so a hundred thousand of them take little time and memory."""
    parent = _NO_PARENT if row.parent_id is None else bytes.fromhex(row.parent_id)
    segment = bytes.fromhex(row.segment_id)
    return _FIELDS.pack(segment, parent, row.start, row.stop, row.num_bytes, row.head.packed)


def unpack_row(packed: bytes) -> IndexRow:
    """The inverse of `pack_row`."""
    segment, _, start, stop, num_bytes, head = _FIELDS.unpack(packed)
    parent_id = parent_of(packed)
    num_head = min(HEAD_IDS, stop - start) * BYTES_PER_ID
    known = TokenIds.from_bytes(head[:num_head])
    return IndexRow(segment.hex(), parent_id, start, stop, num_bytes, known)


def by_id(rows: Iterable[bytes]) -> dict[str, bytes]:
    """The last word on each segment."""
    return {packed[:16].hex(): packed for packed in rows}


def start_of(packed: bytes) -> int:
    """The first position of the segment of a row."""
    start: int = _START.unpack_from(packed, _START_AT)[0]
    return start


def parent_key(packed: bytes) -> bytes:
    """Equal for rows with the same parent; `key_of` it."""
    return packed[16:32]


def parent_of(packed: bytes) -> str | None:
    """The id of the parent of a row."""
    parent = parent_key(packed)
    return None if parent == _NO_PARENT else parent.hex()


def key_of(segment_id: str | None) -> bytes:
    """The `parent_key` of the children of a segment; of the roots, for None."""
    return _NO_PARENT if segment_id is None else bytes.fromhex(segment_id)


def sizes(rows: Mapping[str, bytes]) -> dict[str, int]:
    """The sizes in bytes of the files that the rows are about."""
    unpack = _NUM_BYTES.unpack_from
    return {segment_id: unpack(packed, _NUM_BYTES_AT)[0] for segment_id, packed in rows.items()}


def _with_checksum(packed: bytes) -> bytes:
    return _ROW.pack(packed, xxhash.xxh3_64_intdigest(packed))
