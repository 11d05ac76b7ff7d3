"""Growing the tree from the files: along a prompt while chats are held, or all at once to verify.

A segment knows its parent, its first position and its own ids. Its path is the parent's path up to
that position followed by its own ids, and its id is the digest of all of it: a file that was put
under another parent, or renamed, is found out here, before anything of it is used.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from chatcache.cache.book.entries import Entry
from chatcache.cache.book.namespace import chain_digest
from chatcache.cache.book.radix import RadixTree
from chatcache.cache.files.catalog import Catalog
from chatcache.cache.files.index import IndexRow, pack_row
from chatcache.cache.files.names import file_name
from chatcache.cache.files.segfile import peek_ids
from chatcache.cache.files.store import (
    DamagedFile,
    SegmentStore,
    StoredSegment,
    index_row,
)
from chatcache.token_ids import TokenIds

Take = Callable[[Entry], None]
Damaged = Callable[[DamagedFile], None]
_NOT_ITS_ID = "its tokens do not belong to its id"


class Attacher:
    """Brings the segments of a catalog into a tree, when a prompt comes by.

    `take` gets what was attached, `on_damaged` what contradicts itself; what is gone by now is
    forgotten. Not thread-safe.
    """

    def __init__(
        self,
        tree: RadixTree,
        store: SegmentStore,
        take: Take,
        on_damaged: Damaged,
        *,
        needs_all: bool = False,
    ):
        self.catalog = Catalog(self._peek)
        self._tree = tree
        self._store = store
        self._take = take
        self._on_damaged = on_damaged
        # Checkpoints stand at the ends of segments: the shorter ones of a group are wanted, too.
        self._needs_all = needs_all

    def reach(self, ids: TokenIds) -> None:
        """Attach so many segments that the tree's match of a prompt is as long as with all."""
        if not self.catalog:
            return
        found: list[tuple[str | None, int]] = [(None, 0), *self._tree.extents(ids).items()]
        while found:
            parent_id, extent = found.pop()
            for group in self.catalog.children(parent_id, ids, extent):
                for segment_id in group:
                    if (reached := self._attach(segment_id, ids)) is not None:
                        found.append((segment_id, reached))
                        if not self._needs_all:
                            break

    def _attach(self, segment_id: str, ids: TokenIds) -> int | None:
        """Returns how far the prompt goes along the segment; None if it cannot be attached."""
        row = self.catalog.row(segment_id)
        if row is None:
            return None
        if not self._needs_all and self._goes_along(row, ids):
            return self._attach_unread(row, ids)
        loaded = self._store.load(file_name(row))
        self.catalog.discard(segment_id)
        if isinstance(loaded, DamagedFile):
            self._on_damaged(loaded)
        if not isinstance(loaded, StoredSegment):
            return None
        header = loaded.header
        actual = index_row(header, header.num_bytes)
        if (actual.parent_id, actual.start) != (row.parent_id, row.start):
            self.catalog.add(
                {segment_id: pack_row(actual)}
            )  # the index was wrong: it is looked for elsewhere
            return None
        path = ids[: header.start] + header.token_ids
        if chain_digest(self._store.namespace, header.start, path) != segment_id:
            self._on_damaged(_contradiction(loaded))
            return None
        self._tree.insert(path, segment_id, header.start)
        self._take(_entry(loaded))
        return header.start + header.token_ids.common_prefix(ids, header.start)

    def _goes_along(self, row: IndexRow, ids: TokenIds) -> bool:
        """Whether the prompt goes along all of a segment: then its ids are known, for its id is
        their digest. The file is read once it is needed, and compared with the prompt then."""
        whole = ids[: row.stop]
        is_long_enough = len(whole) == row.stop
        return is_long_enough and (
            chain_digest(self._store.namespace, row.start, whole) == row.segment_id
        )

    def _attach_unread(self, row: IndexRow, ids: TokenIds) -> int | None:
        self.catalog.discard(row.segment_id)
        stamp = self._store.stamp(file_name(row))
        if stamp is None:
            return None
        whole = ids[: row.stop]
        self._tree.insert(whole, row.segment_id, row.start)
        entry = Entry(
            segment_id=row.segment_id,
            parent_id=row.parent_id,
            start=row.start,
            stop=row.stop,
            token_ids=whole[row.start :],
            num_bytes=stamp.num_bytes,
            last_used=stamp.last_used,
            path=self._store.path_of(row),
            disk_bytes=stamp.num_bytes,
        )
        self._take(entry)
        return row.stop

    def _peek(self, row: IndexRow) -> TokenIds:
        return peek_ids(self._store.path_of(row), row.stop - row.start)


def contradictions(namespace: str, found: Sequence[StoredSegment]) -> list[DamagedFile]:
    """The segments whose id is not the digest of their path. What builds on one that is missing
    or wrong has no path, and is not judged."""
    children: dict[str | None, list[StoredSegment]] = {}
    for stored in found:
        header = stored.header
        parent_id = None if header.start == 0 else header.parent_id or ""
        children.setdefault(parent_id, []).append(stored)
    broken: list[DamagedFile] = []
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


def _contradiction(stored: StoredSegment) -> DamagedFile:
    header = stored.header
    return DamagedFile(header.segment_id, header.start, header.stop, _NOT_ITS_ID, stored.inode)


def _entry(stored: StoredSegment) -> Entry:
    header = stored.header
    return Entry(
        segment_id=header.segment_id,
        parent_id=header.parent_id,
        start=header.start,
        stop=header.stop,
        token_ids=header.token_ids,
        num_bytes=header.num_bytes,
        last_used=stored.last_used,
        path=stored.path,
        disk_bytes=header.num_bytes,
        has_states=header.has_states,
    )
