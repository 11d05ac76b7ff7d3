"""The tree of a namespace as it is shown: the edges of the book, and what lies on disk beside them.

A segment that no prompt has reached yet is put where its row in the index says; whether the row is
true is found out when a prompt comes by. Changes neither the book nor the disk.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from chatcache.cache.book.entries import Entry
from chatcache.cache.book.radix import RadixTree
from chatcache.cache.book.segment_book import SegmentBook
from chatcache.cache.files.index import IndexRow
from chatcache.cache.files.names import file_name
from chatcache.cache.tiers.disk import DiskTier
from chatcache.cache.views import TreeEdge, TreeSegment, TreeShape, ends_below, tiers_of
from chatcache.token_ids import TokenIds

MAX_UNREACHED = 500


def tree_shape(book: SegmentBook, disk: DiskTier, live: TokenIds, num_events: int) -> TreeShape:
    """Of what no prompt has reached yet, those that were written last. Under the book's lock."""
    tree, held = book.tree(), {entry.segment_id: entry for entry in book.entries()}
    unreached = _unreached(book, disk) if disk.is_reading else {}
    for row in unreached.values():
        path = _path(row, book, unreached)
        stamp = disk.store.stamp(file_name(row))
        if path is None or stamp is None:
            continue
        try:
            tree.insert(path, row.segment_id, row.start)
        except ValueError:
            continue  # a row that lies
        held[row.segment_id] = Entry(
            segment_id=row.segment_id,
            parent_id=row.parent_id,
            start=row.start,
            stop=row.stop,
            token_ids=row.token_ids,
            num_bytes=row.num_bytes,
            last_used=stamp.last_used,
            path=disk.store.path_of(row),
            is_pinned=row.segment_id in book.pinned,
        )
    num_on_disk = sum(entry.path is not None for entry in held.values())
    num_more = max(0, disk.num_segments - num_on_disk) if disk.is_reading else 0
    return TreeShape(
        tuple(_edges(tree, held, live)),
        book.log.last(num_events),
        tuple(map(_segment, held.values())),
        num_more,
    )


def _unreached(book: SegmentBook, disk: DiskTier) -> dict[str, IndexRow]:
    """Those that begin earlier on their path first, so that each finds the one before it."""
    latest = disk.store.index.latest(MAX_UNREACHED + len(book.on_disk()))
    rows = [row for row in latest if row.segment_id not in book]
    return {row.segment_id: row for row in sorted(rows, key=lambda row: row.start)}


def _path(row: IndexRow, book: SegmentBook, unreached: Mapping[str, IndexRow]) -> TokenIds | None:
    """All ids up to the end of a segment; None: what it builds on is not there."""
    parts, start = [row.token_ids], row.start
    while start > 0:
        parent_id = row.parent_id or ""
        if parent_id in book:
            above = book.path(parent_id)
            parts.append(above[:start])
            start = 0 if len(above) >= start else -1
        elif (parent := unreached.get(parent_id)) is not None and parent.start < start:
            parts.append(parent.token_ids[: start - parent.start])
            row, start = parent, parent.start if parent.stop >= start else -1
        else:
            start = -1
    if start < 0:
        return None
    return TokenIds.from_bytes(b"".join(part.packed for part in reversed(parts)))


def _segment(entry: Entry) -> TreeSegment:
    return TreeSegment(
        entry.segment_id,
        entry.tiers,
        entry.num_bytes,
        entry.hits,
        entry.is_pinned,
    )


def _edges(tree: RadixTree, held: Mapping[str, Entry], live: TokenIds) -> Iterator[TreeEdge]:
    edges = tree.edges()
    num_below = ends_below([edge.parent for edge in edges])
    is_live: list[bool] = []
    for edge, below in zip(edges, num_below, strict=True):
        above = edge.parent < 0 or is_live[edge.parent]
        is_live.append(above and edge.ids.common_prefix(live, edge.start) == len(edge.ids))
        holders = [held[segment_id] for segment_id in edge.segment_ids]
        yield TreeEdge(
            parent=edge.parent,
            start=edge.start,
            ids=edge.ids,
            tiers=tiers_of([_segment(entry) for entry in holders]),
            num_bytes=sum(
                entry.num_bytes * len(edge.ids) // (entry.stop - entry.start) for entry in holders
            ),
            num_below=below,
            hits=max((entry.hits for entry in holders), default=0),
            last_used=max((entry.last_used for entry in holders), default=0.0),
            is_pinned=any(entry.is_pinned for entry in holders),
            is_live=is_live[-1],
            segments=edge.segment_ids,
        )
