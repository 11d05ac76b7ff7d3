"""Files of one namespace that no prompt has reached yet, by where they belong in the tree.

A store may hold a hundred thousand segments, and a prompt passes a few dozen. So the tree is grown
along the prompts: from a segment on the path, only those of its children are brought in whose first
ids could be the prompt's. The catalog answers which these are. It knows rows and bytes, no files.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice

from chatcache.cache.files.index import (
    HEAD_IDS,
    IndexRow,
    key_of,
    parent_key,
    parent_of,
    start_of,
    unpack_row,
)
from chatcache.token_ids import TokenIds

_FEW = 8  # so many files are opened rather than compared by what is behind their heads

ReadIds = Callable[[IndexRow], TokenIds]
"""The ids of a segment as its file has them; unverified, and empty if it has none."""


class Catalog:
    """Packed rows by segment id, and children by parent. Not thread-safe.

    The children of a parent are a chain: the last one that was added, and to each the one before.
    Whoever comes again, perhaps to another parent, is not put into a chain a second time.
    """

    def __init__(self, read_ids: ReadIds) -> None:
        self._read_ids = read_ids
        self._rows: dict[str, bytes] = {}
        self._last_child: dict[bytes, str] = {}
        self._before: dict[str, str | None] = {}
        self._again: dict[bytes, list[str]] = {}
        self._families: dict[str | None, dict[int, _Siblings]] = {}

    def __contains__(self, segment_id: str) -> bool:
        return segment_id in self._rows

    def __len__(self) -> int:
        return len(self._rows)

    def row(self, segment_id: str) -> IndexRow | None:
        packed = self._rows.get(segment_id)
        return None if packed is None else unpack_row(packed)

    def parent_of(self, segment_id: str) -> str | None:
        packed = self._rows.get(segment_id)
        return None if packed is None else parent_of(packed)

    def latest(self, limit: int) -> list[IndexRow]:
        """Those that were added last."""
        return list(map(unpack_row, islice(reversed(self._rows.values()), limit)))

    def add(self, rows: Mapping[str, bytes]) -> None:
        """Add packed rows by segment id; none of them may be there."""
        last, before = self._last_child, self._before
        self._rows.update(rows)
        for segment_id, packed in rows.items():
            parent = parent_key(packed)
            if segment_id in before:
                self._again.setdefault(parent, []).append(segment_id)
            else:
                before[segment_id] = last.get(parent)
                last[parent] = segment_id
        if self._families:
            for packed in rows.values():
                self._outdate(unpack_row(packed))

    def discard(self, segment_id: str) -> None:
        """Take a row out. It stays in its chain, where it is passed over from now on."""
        self._rows.pop(segment_id, None)

    def children(self, parent_id: str | None, ids: TokenIds, extent: int) -> Iterator[list[str]]:
        """Children of a segment that a prompt goes along with up to position `extent`, in groups.

        To know how far the prompt is held, it is enough to bring in one of each group.
        """
        for start, siblings in self._family(parent_id).items():
            tail = ids[start:]
            if start <= extent and tail:
                for group in siblings.like(tail):
                    if left := [one for one in group if one in self._rows]:
                        yield left

    def _family(self, parent_id: str | None) -> dict[int, _Siblings]:
        found = self._families.get(parent_id)
        if found is None:
            by_start: dict[int, list[IndexRow]] = {}
            for row in self._rows_under(parent_id):
                by_start.setdefault(row.start, []).append(row)
            found = {start: self._siblings(rows) for start, rows in by_start.items()}
            if found:
                self._families[parent_id] = found
        return found

    def _rows_under(self, parent_id: str | None) -> Iterator[IndexRow]:
        return map(unpack_row, self._packed_under(parent_id))

    def _packed_under(self, parent_id: str | None) -> Iterator[bytes]:
        key = key_of(parent_id)
        children = dict.fromkeys(self._again.get(key, ()))
        segment_id = self._last_child.get(key)
        while segment_id is not None:
            children[segment_id] = None
            segment_id = self._before[segment_id]
        for segment_id in children:
            packed = self._rows.get(segment_id)
            if packed is not None and parent_key(packed) == key:
                yield packed

    def _siblings(self, rows: Sequence[IndexRow]) -> _Siblings:
        forks = {
            row.segment_id: fork for row in rows if (fork := self._first_fork(row)) is not None
        }
        return _Siblings(((row.head, row.segment_id) for row in rows), forks, self._ids_of)

    def _ids_of(self, segment_id: str) -> TokenIds:
        row = self.row(segment_id)
        return TokenIds() if row is None else self._read_ids(row)

    def _first_fork(self, row: IndexRow) -> int | None:
        """How many ids of a segment have to be shared to get to a child that begins within it."""
        first = min(map(start_of, self._packed_under(row.segment_id)), default=row.stop)
        return first - row.start if first < row.stop else None

    def _outdate(self, row: IndexRow) -> None:
        """What was prepared for a parent, and for its parent, may now be incomplete."""
        self._families.pop(row.parent_id, None)
        if row.parent_id is not None:
            self._families.pop(self.parent_of(row.parent_id), None)


class _Siblings:
    """Segments with the same parent and the same first position, by their first ids.

    `forks` are those with children that begin within them, and after how many ids.
    """

    def __init__(
        self,
        pairs: Iterable[tuple[TokenIds, str]],
        forks: Mapping[str, int],
        read_ids: Callable[[str], TokenIds] | None,
    ):
        self._ids: dict[TokenIds, list[str]] = {}
        for head, segment_id in pairs:
            self._ids.setdefault(head, []).append(segment_id)
        self._heads = sorted(self._ids)
        self._forked = (
            [
                (head, after, one)
                for head, ids in self._ids.items()
                for one in ids
                if (after := forks.get(one)) is not None
            ]
            if forks
            else []
        )
        self._read_ids = read_ids
        self._alike: dict[TokenIds, _Siblings] = {}

    def like(self, tail: TokenIds) -> Iterator[list[str]]:
        """Those that `tail` could begin with, the one that shares most of it, and those that it
        could leave for a child."""
        for head in self._beginnings(tail):
            ids = self._ids[head]
            if self._read_ids is None or len(ids) <= _FEW or len(head) < HEAD_IDS:
                yield from ([one] for one in ids)
            else:
                yield from self._behind(head, self._read_ids).like(tail)
        if (nearest := self._nearest(tail)) is not None:
            yield self._ids[nearest]
        for head, after, segment_id in self._forked:
            if head.common_prefix(tail) >= min(after, len(head)):
                yield [segment_id]

    def _beginnings(self, tail: TokenIds) -> Iterator[TokenIds]:
        """The heads that `tail` begins with, the longest first.

        Of all heads up to the first `length` ids of `tail`, the last in order shares the most
        with it; a head that `tail` begins with is never longer than that.
        """
        length = len(tail)
        while length > 0:
            index = bisect_right(self._heads, tail[:length]) - 1
            if index < 0:
                return
            head = self._heads[index]
            shared = head.common_prefix(tail)
            if shared == len(head):
                yield head
                shared -= 1
            length = shared

    def _nearest(self, tail: TokenIds) -> TokenIds | None:
        """The head that shares most with `tail` without being its beginning."""
        index = bisect_right(self._heads, tail)
        around = self._heads[max(0, index - 1) : index + 1]
        shared = [head.common_prefix(tail) for head in around]
        if not shared or max(shared) == 0:
            return None
        nearest = around[shared.index(max(shared))]
        return None if tail.startswith(nearest) else nearest

    def _behind(self, head: TokenIds, read_ids: Callable[[str], TokenIds]) -> _Siblings:
        """Those that begin with `head`, by all of their ids."""
        found = self._alike.get(head)
        if found is None:
            pairs = [(read_ids(one), one) for one in self._ids[head]]
            found = _Siblings((pair for pair in pairs if pair[0]), {}, None)
            self._alike[head] = found
        return found
