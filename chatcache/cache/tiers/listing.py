"""The segments of a namespace as rows for people: those of the book, and files that no prompt has
reached yet."""

from __future__ import annotations

from collections.abc import Collection

from chatcache.cache.book.segment_book import SegmentBook
from chatcache.cache.files.names import file_name, parse_name
from chatcache.cache.tiers.disk import DiskTier
from chatcache.cache.views import SegmentRow


def segment_rows(
    book: SegmentBook, disk: DiskTier, live_ids: Collection[str], limit: int | None
) -> list[SegmentRow]:
    """Segments, the most recently used first. With a limit no more than that, and of those that no
    prompt has reached yet the last written."""
    store = disk.store
    if limit is None:
        stamps, parents = disk.look_at_own(), store.index.parents()
    else:
        latest = store.index.latest(limit)
        parents = {row.segment_id: row.parent_id for row in latest}
        stamps = {name: stamp for name in map(file_name, latest) if (stamp := store.stamp(name))}
    rows = [
        entry.row(store.namespace, is_live=entry.segment_id in live_ids) for entry in book.entries()
    ]
    for name, stamp in stamps.items():
        start, stop, segment_id = parse_name(name)
        if segment_id not in book:
            rows.append(
                SegmentRow(
                    segment_id=segment_id,
                    namespace=store.namespace,
                    parent_id=parents.get(segment_id),
                    start=start,
                    stop=stop,
                    num_bytes=stamp.num_bytes,
                    in_ram=False,
                    on_disk=True,
                    is_live=False,
                    is_pinned=segment_id in book.pinned,
                    last_used=stamp.last_used,
                    hits=0,
                )
            )
    return sorted(rows, key=lambda row: (-row.last_used, -row.start))[:limit]
