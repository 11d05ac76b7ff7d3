"""Growing the tree from the index: along a prompt while chats are held, or all at once to verify.

A store may hold a hundred thousand segments, and a prompt passes a few dozen. So the tree is grown
along the prompts: from a segment on the path, only those that go on from it are brought in whose
first ids could be the prompt's.

A segment knows its parent, its first position and its own ids. Its path is the parent's path up to
that position followed by its own ids, and its id is the digest of all of it: what was put under
another parent, or renamed, is found out here, before anything of it is used. No file is opened for
that; the ids in it are compared with the prompt when it is read.
"""

from __future__ import annotations

from collections.abc import Sequence

from chatcache.cache.book.entries import Entry
from chatcache.cache.book.namespace import chain_digest
from chatcache.cache.book.segment_book import SegmentBook
from chatcache.cache.files.index import IndexRow
from chatcache.cache.files.names import file_name
from chatcache.cache.files.store import LostSegment, StoredSegment
from chatcache.cache.tiers.disk import DiskTier
from chatcache.token_ids import TokenIds

_NOT_ITS_ID = "its tokens do not belong to its id"
_FEW = 32  # so many children are looked at to find out whether all are in the book


class Attacher:
    """Brings segments that lie on disk into the book when a prompt comes by."""

    def __init__(self, book: SegmentBook, disk: DiskTier):
        self._book = book
        self._disk = disk
        self._store = disk.store
        self._index = disk.store.index
        self._complete: set[str | None] = set()  # all that goes on from these is in the book

    def notice_news(self) -> None:
        """See what other processes have written meanwhile."""
        with self._book.lock:
            if self._index.has_news():
                self._complete.clear()

    def reach(self, ids: TokenIds) -> None:
        """Bring in so many segments that the match of a prompt is as long as with all of them."""
        with self._book.lock:
            found: list[tuple[str | None, int]] = [(None, 0), *self._book.extents(ids).items()]
            while found:
                parent_id, extent = found.pop()
                if parent_id in self._complete:
                    continue
                for row in self._index.children(parent_id, ids, extent):
                    if row.segment_id in self._book:
                        continue
                    path = ids[: row.start] + row.token_ids
                    if not self._is_true(row, path):
                        if self._put_right(row):
                            found.append((parent_id, extent))
                    elif self._attach(row, path):
                        found.append((row.segment_id, path.common_prefix(ids)))
                self._note_if_complete(parent_id)

    def _note_if_complete(self, parent_id: str | None) -> None:
        children = self._index.child_ids(parent_id, _FEW)
        if len(children) < _FEW and all(child in self._book for child in children):
            self._complete.add(parent_id)

    def _is_true(self, row: IndexRow, path: TokenIds) -> bool:
        digest = chain_digest(self._store.namespace, row.start, path)
        return digest == row.segment_id and len(path) == row.stop

    def _attach(self, row: IndexRow, path: TokenIds) -> bool:
        """Returns whether it is in the book now; a file may be gone."""
        stamp = self._store.stamp(file_name(row))
        if stamp is None:
            self._index.remove([row.segment_id])
            return False
        entry = Entry(
            segment_id=row.segment_id,
            parent_id=row.parent_id,
            start=row.start,
            stop=row.stop,
            token_ids=row.token_ids,
            num_bytes=stamp.num_bytes,
            last_used=stamp.last_used,
            path=self._store.path_of(row),
            disk_bytes=stamp.num_bytes,
            has_states=row.has_states,
        )
        self._book.add(path, entry)
        return True

    def _put_right(self, row: IndexRow) -> bool:
        """Either the row lies, and the header says where the segment belongs, or the segment is
        not what its id says. Returns whether there is another row of it now."""
        self._index.remove([row.segment_id])
        loaded = self._store.load(file_name(row))
        if isinstance(loaded, LostSegment):
            self._disk.set_aside(loaded)
        elif loaded is not None and loaded.row == row:
            self._disk.set_aside(_contradiction(loaded))
        elif loaded is not None:
            self._index.add([loaded.row])
            return True
        return False


def contradictions(namespace: str, found: Sequence[StoredSegment]) -> list[LostSegment]:
    """The segments whose id is not the digest of their path. What builds on one that is missing
    or wrong has no path, and is not judged."""
    children: dict[str | None, list[StoredSegment]] = {}
    for stored in found:
        header = stored.header
        parent_id = None if header.start == 0 else header.parent_id or ""
        children.setdefault(parent_id, []).append(stored)
    broken: list[LostSegment] = []
    paths: list[tuple[str | None, TokenIds]] = [(None, TokenIds())]
    while paths:
        parent_id, above = paths.pop()
        for stored in children.get(parent_id, ()):
            header = stored.header
            if len(above) < header.start:
                continue
            path = above[: header.start] + header.token_ids
            if chain_digest(namespace, header.start, path) != header.segment_id:
                broken.append(_contradiction(stored))
            elif header.segment_id in children:
                paths.append((header.segment_id, path))
    return broken


def _contradiction(stored: StoredSegment) -> LostSegment:
    header = stored.header
    return LostSegment(header.segment_id, header.start, header.stop, _NOT_ITS_ID, stored.inode)
