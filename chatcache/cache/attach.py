"""Rebuilding the tree from the headers of the files.

A segment knows its parent, its first position and its own ids. Its path is the parent's path up to
that position followed by its own ids, and its id is the digest of all of it: a file that was put
under another parent, or renamed, is found out here.
"""

from __future__ import annotations

from collections.abc import Sequence

from chatcache.cache.entries import Entry
from chatcache.cache.radix import RadixTree
from chatcache.cache.segments import DamagedFile, StoredSegment
from chatcache.cache.tokens import BYTES_PER_ID, chain_digest


def attach(
    tree: RadixTree, namespace: str, found: Sequence[StoredSegment]
) -> tuple[dict[str, Entry], list[DamagedFile]]:
    """Insert all segments into `tree`; returns the entries by id, and what contradicts itself.

    An orphan (its parent is gone) gets an entry but no place in the tree: it cannot be matched,
    still counts for the disk budget, and is the first to be evicted.
    """
    entries: dict[str, Entry] = {}
    paths: dict[str, bytes] = {}
    broken: list[DamagedFile] = []
    for stored in sorted(found, key=lambda stored: (stored.header.start, stored.header.stop)):
        header = stored.header
        prefix = _prefix(header.parent_id, header.start, paths)
        if prefix is not None:
            path = prefix + header.token_ids
            if chain_digest(namespace, header.start, path) != header.segment_id:
                problem = "its tokens do not belong to its id"
                broken.append(DamagedFile(header.segment_id, header.start, header.stop, problem))
                continue
            paths[header.segment_id] = path
            if tree.match(prefix).num_tokens == header.start:
                tree.insert(path, header.segment_id, header.start)
        entries[header.segment_id] = _entry(stored, is_orphan=prefix is None)
    return entries, broken


def _prefix(parent_id: str | None, start: int, paths: dict[str, bytes]) -> bytes | None:
    if start == 0:
        return b""
    path = paths.get(parent_id or "")
    if path is None or len(path) < start * BYTES_PER_ID:
        return None
    return path[: start * BYTES_PER_ID]


def _entry(stored: StoredSegment, *, is_orphan: bool) -> Entry:
    header = stored.header
    return Entry(
        segment_id=header.segment_id,
        parent_id=header.parent_id,
        start=header.start,
        stop=header.stop,
        token_ids=header.token_ids,
        num_bytes=header.num_bytes,
        last_used=0.0 if is_orphan else stored.last_used,
        path=stored.path,
        disk_bytes=header.num_bytes,
    )
