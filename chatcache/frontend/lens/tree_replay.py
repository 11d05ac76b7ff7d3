"""The tree as it was after each of its last changes: the tree of now, with the later ones undone.

An event says which segments it happened to, so undoing one is taking a segment off the edges, or
putting it back on them, or joining what was split. What the events do not tell, such as when a
segment had been used before and what was live, is not known. Pure.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from chatcache.backends.questions import TreeEdge, TreeEvent, TreeSegment, TreeShape
from chatcache.cache.views import TIERS, Tier, ends_below, tiers_of
from chatcache.token_ids import NO_IDS, TokenIds


def after_event(shape: TreeShape, index: int) -> TreeShape:
    """The tree after the event with this index in `shape.events`; -1: before the first of them."""
    tree = _Tree(shape)
    for event in reversed(shape.events[index + 1 :]):
        tree.undo(event)
    return replace(shape, edges=tuple(tree.edges()), segments=tuple(tree.segments.values()))


@dataclass(eq=False)
class _Branch:
    """An edge that can be changed, and what goes on from it."""

    ids: TokenIds
    start: int
    above: _Branch | None
    labels: list[str] = field(default_factory=list)
    below: list[_Branch] = field(default_factory=list)

    @property
    def stop(self) -> int:
        return self.start + len(self.ids)


class _Tree:
    def __init__(self, shape: TreeShape):
        self.segments = {segment.segment_id: segment for segment in shape.segments}
        self._root = _Branch(NO_IDS, 0, None)
        branches = [self._root]
        for edge in shape.edges:
            above = branches[edge.parent + 1]
            branches.append(_Branch(edge.ids, edge.start, above, list(edge.segments)))
            above.below.append(branches[-1])
        # The size of a segment, to share its bytes out to its edges.
        self._num_tokens: dict[str, int] = {}
        for branch in branches:
            for label in branch.labels:
                self._num_tokens[label] = self._num_tokens.get(label, 0) + len(branch.ids)

    def undo(self, event: TreeEvent) -> None:
        segment_id = event.segments[0] if event.segments else ""
        if event.change == "split":
            self._join(event, segment_id)
        elif event.change == "hit":
            for found in event.segments:
                self._change(found, hits=-1)
        elif event.change == "inserted":
            self._take_off(segment_id)
        elif event.is_gone:
            self._put_back(event, segment_id)
        elif event.change == "spilled" or (event.change == "restored" and event.tier != "disk"):
            self._change(segment_id, without=event.tier)
        elif event.change != "restored":
            self._change(segment_id, also=event.tier)

    def edges(self) -> Iterator[TreeEdge]:
        parents: list[int] = []
        branches: list[_Branch] = []
        stack = [(-1, branch) for branch in reversed(self._root.below)]
        while stack:
            parent, branch = stack.pop()
            stack.extend((len(branches), below) for below in reversed(branch.below))
            parents.append(parent)
            branches.append(branch)
        for parent, branch, below in zip(parents, branches, ends_below(parents), strict=True):
            yield self._edge(parent, branch, below)

    def _edge(self, parent: int, branch: _Branch, num_below: int) -> TreeEdge:
        length = len(branch.ids)
        holders = [self.segments[label] for label in branch.labels if label in self.segments]
        return TreeEdge(
            parent=parent,
            start=branch.start,
            ids=branch.ids,
            tiers=tiers_of(holders),
            num_bytes=sum(
                holder.num_bytes * length // self._num_tokens[holder.segment_id]
                for holder in holders
            ),
            num_below=num_below,
            hits=max((holder.hits for holder in holders), default=0),
            last_used=0.0,
            is_pinned=any(holder.is_pinned for holder in holders),
            segments=tuple(branch.labels),
        )

    def _branches(self, label: str) -> list[_Branch]:
        """Those that a segment labels, the first one first."""
        found, stack = [], [self._root]
        while stack:
            branch = stack.pop()
            if label in branch.labels:
                found.append(branch)
            stack.extend(branch.below)
        return sorted(found, key=lambda branch: branch.start)

    def _change(
        self,
        segment_id: str,
        *,
        hits: int = 0,
        also: Tier | None = None,
        without: Tier | None = None,
    ) -> None:
        if (known := self.segments.get(segment_id)) is not None:
            places = ({*known.tiers} | {also}) - {without}
            tiers = tuple(tier for tier in TIERS if tier in places)
            self.segments[segment_id] = replace(known, tiers=tiers, hits=max(0, known.hits + hits))

    def _join(self, event: TreeEvent, label: str) -> None:
        for branch in self._branches(label):
            if (branch.start, branch.stop) != (event.start, event.cut) or len(branch.below) != 1:
                continue
            (lower,) = branch.below
            if lower.stop == event.stop and lower.labels == branch.labels:
                branch.ids, branch.below = branch.ids + lower.ids, lower.below
                for below in branch.below:
                    below.above = branch

    def _take_off(self, label: str) -> None:
        for branch in reversed(self._branches(label)):
            branch.labels.remove(label)
            place: _Branch = branch
            while place.above is not None and not place.labels and not place.below:
                place.above.below.remove(place)
                place = place.above
        self.segments.pop(label, None)

    def _put_back(self, event: TreeEvent, label: str) -> None:
        """Where what it builds on is not known, it is left out."""
        place = self._place(event)
        if place is None or label in self.segments:
            return
        tier: Tier = event.tier or "disk"
        self.segments[label] = TreeSegment(label, (tier,), event.num_bytes, 0)
        self._num_tokens[label] = len(event.ids)
        position = 0
        while position < len(event.ids):
            head = event.ids[position]
            branch = next((below for below in place.below if below.ids[0] == head), None)
            if branch is None:
                start = event.start + position
                branch = _Branch(event.ids[position:], start, place)
                place.below.append(branch)
            same = branch.ids.common_prefix(event.ids, position)
            if same < len(branch.ids):
                self._split(branch, same)
            branch.labels.append(label)
            place, position = branch, position + same

    def _place(self, event: TreeEvent) -> _Branch | None:
        """What ends where a segment starts, on the path of the one before it."""
        if event.start == 0:
            return self._root
        for branch in self._branches(event.parent):
            if branch.start < event.start <= branch.stop:
                if event.start < branch.stop:
                    self._split(branch, event.start - branch.start)
                return branch
        return None

    def _split(self, branch: _Branch, length: int) -> None:
        """`branch` keeps its first ids."""
        start = branch.start + length
        lower = _Branch(branch.ids[length:], start, branch, [*branch.labels], branch.below)
        for below in lower.below:
            below.above = lower
        branch.ids, branch.below = branch.ids[:length], [lower]
