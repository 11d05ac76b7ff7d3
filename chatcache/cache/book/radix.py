"""A radix tree over token ids that says which segment holds the K and V of which positions.

It owns the paths and the labels, and knows nothing of tensors, files or budgets. Splitting an
edge is arithmetic on positions: a segment that labels it stays one piece in memory and on disk.
The idea of a prefix tree of KV is RadixAttention's (Zheng et al., arXiv 2312.07104). Here a label
is a turn-aligned segment of any length. Where two conversations go different ways in the middle of
what each of them computed in one piece, both segments label the edge that they share, and a match
stays with the one that it ends in: what was computed together is restored together, to the bit.
An edge may lose all labels (a hole) while its children keep theirs: once the hole is computed
again they are reachable again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from chatcache.cache.segments import Span
from chatcache.token_ids import TokenIds


@dataclass(frozen=True, slots=True)
class MatchResult:
    """The longest held run of leading ids. Valid until the tree changes; lease to keep it."""

    num_tokens: int
    spans: tuple[Span, ...]


class _Node:
    __slots__ = ("children", "edge", "parent", "segment_ids", "start")

    def __init__(self, edge: TokenIds, start: int, parent: _Node | None):
        self.edge = edge
        self.start = start
        self.segment_ids: list[str] = []
        self.parent = parent
        self.children: dict[int, _Node] = {}

    def child_along(self, ids: TokenIds, position: int) -> _Node | None:
        """The child whose edge begins with the id at `position`, if there is one."""
        return self.children.get(ids[position]) if position < len(ids) else None

    @property
    def stop(self) -> int:
        return self.start + len(self.edge)


@dataclass(frozen=True, slots=True)
class EdgeView:
    """One edge, and the number of the one above it (-1: the root), parents first."""

    parent: int
    start: int
    ids: TokenIds
    segment_ids: tuple[str, ...]


# An edge is split: where it starts, its ids, the position of the cut, the segments that label it.
OnSplit = Callable[[int, TokenIds, int, Sequence[str]], None]


class RadixTree:
    """Paths of token ids, labelled with segment ids. `on_split` hears of edges before they are."""

    def __init__(self, on_split: OnSplit = lambda start, ids, cut, segment_ids: None) -> None:
        self._on_split = on_split
        self._root = _Node(TokenIds(), 0, None)
        self._labelled: dict[str, set[_Node]] = {}

    def __contains__(self, segment_id: str) -> bool:
        return segment_id in self._labelled

    def __len__(self) -> int:
        """The number of segments that label at least one edge."""
        return len(self._labelled)

    def match(self, ids: TokenIds) -> MatchResult:
        """The spans that hold the leading `ids`, up to the first id that none holds."""
        held: list[_Node] = []
        node, position = self._root, 0
        while (child := node.child_along(ids, position)) is not None:
            if not child.segment_ids:
                break
            position += child.edge.common_prefix(ids, position)
            held.append(child)
            if position < child.stop:
                break
            node = child
        return MatchResult(position, _spans(held, position))

    def ending_on(self, ids: TokenIds) -> list[Span]:
        """The segments whose last position lies on the held run of leading ids, whole, in order.

        A checkpoint stands behind the last position of its segment: only these can be resumed."""
        found: list[Span] = []
        node, position = self._root, 0
        while (child := node.child_along(ids, position)) is not None:
            position += child.edge.common_prefix(ids, position)
            if not child.segment_ids or position < child.stop:
                break
            for segment_id in child.segment_ids:
                labelled = self._labelled[segment_id]
                if max(held.stop for held in labelled) == child.stop:
                    start = min(held.start for held in labelled)
                    found.append(Span(segment_id, start, child.stop))
            node = child
        return found

    def extents(self, ids: TokenIds) -> dict[str, int]:
        """How far the held run of leading ids goes along each segment on it, by segment id."""
        found: dict[str, int] = {}
        node, position = self._root, 0
        while (child := node.child_along(ids, position)) is not None:
            if not child.segment_ids:
                break
            position += child.edge.common_prefix(ids, position)
            found.update(dict.fromkeys(child.segment_ids, position))
            if position < child.stop:
                break
            node = child
        return found

    def insert(self, ids: TokenIds, segment_id: str, start: int) -> list[Span]:
        """Label the positions from `start` to the end of `ids` with a segment.

        Returns what nothing held before. Raises ValueError if the path up to `start` is unknown.
        """
        node, position = self._root, 0
        gained: list[Span] = []
        total = len(ids)
        while position < total:
            child = node.child_along(ids, position)
            if child is None:
                if position < start:
                    raise ValueError(f"no path up to position {start}: it ends at {position}")
                child = _Node(ids[position:], position, node)
                node.children[child.edge[0]] = child
            length = child.edge.common_prefix(ids, position)
            boundary = start - position if position < start < position + length else length
            if boundary < child.stop - child.start:
                child = self._split(child, boundary)
            if position >= start:
                if not child.segment_ids:
                    gained.append(Span(segment_id, child.start, child.stop))
                self._label(child, segment_id)
            node, position = child, child.stop
        return gained

    def remove(self, segment_id: str) -> None:
        """Take the label off; edges that then lead to no segment disappear, others become holes."""
        for node in self._labelled.pop(segment_id, set()):
            node.segment_ids.remove(segment_id)
            self._prune(node)

    def path(self, segment_id: str) -> TokenIds:
        """All ids from the root to the last position that the segment labels."""
        node: _Node | None = max(self._labelled[segment_id], key=lambda node: node.stop)
        edges: list[TokenIds] = []
        while node is not None:
            edges.append(node.edge)
            node = node.parent
        return TokenIds.from_bytes(b"".join(edge.packed for edge in reversed(edges)))

    def parent_segment(self, segment_id: str) -> str | None:
        """A segment that holds the position before the first one of `segment_id`, if one does."""
        first = min(self._labelled[segment_id], key=lambda node: node.start)
        holders = first.parent.segment_ids if first.parent is not None else []
        return holders[0] if holders else None

    def edges(self) -> list[EdgeView]:
        """All edges, each behind the one above it and all of a branch before the next one."""
        found: list[EdgeView] = []
        stack = [(-1, child) for child in reversed(self._root.children.values())]
        while stack:
            parent, node = stack.pop()
            below = reversed(node.children.values())
            stack.extend((len(found), child) for child in below)
            found.append(EdgeView(parent, node.start, node.edge, tuple(node.segment_ids)))
        return found

    def copy(self) -> RadixTree:
        """The same edges and labels, to go on with apart from these."""
        made = RadixTree()
        nodes = [made._root]
        for edge in self.edges():
            above = nodes[edge.parent + 1]
            node = _Node(edge.ids, edge.start, above)
            above.children[edge.ids[0]] = node
            for segment_id in edge.segment_ids:
                made._label(node, segment_id)
            nodes.append(node)
        return made

    def check(self) -> list[str]:
        """Everything that is wrong with the structure; empty when it is sound."""
        problems: list[str] = []
        seen: dict[str, set[_Node]] = {}
        for node in self._walk():
            if node is not self._root and not node.edge:
                problems.append(f"empty edge at {node.start}")
            for segment_id in node.segment_ids:
                seen.setdefault(segment_id, set()).add(node)
            if node is not self._root and not node.segment_ids and not node.children:
                problems.append(f"dead end at {node.start}")
            for head, child in node.children.items():
                is_linked = child.parent is node and child.start == node.stop
                if not is_linked or child.edge[:1] != TokenIds([head]):
                    problems.append(f"broken link at {child.start}")
        if seen != self._labelled:
            problems.append("labels and nodes disagree")
        return problems

    def _walk(self) -> Iterator[_Node]:
        stack = [self._root]
        while stack:
            node = stack.pop()
            yield node
            stack.extend(node.children.values())

    def _label(self, node: _Node, segment_id: str) -> None:
        if segment_id not in node.segment_ids:
            node.segment_ids.append(segment_id)
            self._labelled.setdefault(segment_id, set()).add(node)

    def _split(self, node: _Node, length: int) -> _Node:
        """Cut `node` after `length` ids; returns the upper part, which takes its place."""
        assert node.parent is not None
        self._on_split(node.start, node.edge, node.start + length, node.segment_ids)
        upper = _Node(node.edge[:length], node.start, node.parent)
        node.parent.children[upper.edge[0]] = upper
        node.edge, node.start, node.parent = node.edge[length:], node.start + length, upper
        upper.children[node.edge[0]] = node
        for segment_id in node.segment_ids:
            self._label(upper, segment_id)
        return upper

    def _prune(self, node: _Node) -> None:
        """Drop `node` and its ancestors as far as they hold nothing and lead nowhere."""
        while node.parent is not None and not node.segment_ids and not node.children:
            parent = node.parent
            parent.children.pop(node.edge[0], None)
            node.parent = None
            node = parent


def _spans(held: list[_Node], position: int) -> tuple[Span, ...]:
    """Who holds a matched path up to `position`, chosen from its end: a segment that holds the
    later positions is kept for the earlier ones as far as it goes."""
    spans: list[Span] = []
    for node in reversed(held):
        stop = min(node.stop, position)
        if spans and spans[-1].segment_id in node.segment_ids:
            spans[-1] = Span(spans[-1].segment_id, node.start, spans[-1].stop)
        else:
            spans.append(Span(node.segment_ids[0], node.start, stop))
    return tuple(reversed(spans))
