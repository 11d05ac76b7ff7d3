"""The branches of a conversation: its messages as runs between the places where they part.

Owns how a tree of messages becomes rows (runs), which line is the main one, and what goes when a
branch is deleted. Everything is a pure function of light nodes; reading and deleting them is the
business of `treekeeper`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from chatcache.backends.base import Role
from chatcache.chat.views import SessionSummary


@dataclass(frozen=True, slots=True)
class LightNode:
    """A message without its text: enough to draw the tree. `text` are its first words."""

    seq: int
    parent: int | None
    node_id: str
    turn: int
    role: Role
    num_tokens: int
    created_ms: int
    owner: str | None
    model: str | None
    text: str


@dataclass(frozen=True, slots=True)
class Branch:
    """A run of messages that nothing leaves in between; `sessions` end with its last message.

    `num_tokens` is the length of the journal at its end, `own_tokens` what the run added to it.
    `tip` is the number of its last message, `node_id` the id. `children`: the main line first.
    """

    first_id: str
    node_id: str
    tip: int
    first_turn: int
    last_turn: int
    role: Role
    text: str
    last_text: str
    own_tokens: int
    num_tokens: int
    model: str | None
    created_at: float
    sessions: tuple[SessionSummary, ...]
    children: tuple[Branch, ...]

    def walk(self) -> Iterator[Branch]:
        """This run and all below it."""
        yield self
        for child in self.children:
            yield from child.walk()


@dataclass(frozen=True, slots=True)
class TreeRow:
    """A branch in its place on the screen: `depth` lines run on its left."""

    branch: Branch
    depth: int
    leaves_line: bool


@dataclass(frozen=True, slots=True)
class BranchTree:
    """The branches of a family of sessions. `main_id` is the session that all others came from."""

    roots: tuple[Branch, ...]
    main_id: str | None

    def rows(self) -> list[TreeRow]:
        """Top to bottom. The main line goes straight down; what leaves it is drawn beside it."""
        rows: list[TreeRow] = []
        waiting = [TreeRow(root, 0, False) for root in reversed(self.roots)]
        while waiting:
            row = waiting.pop()
            rows.append(row)
            if row.branch.children:
                main, *others = row.branch.children
                waiting.append(TreeRow(main, row.depth, False))
                waiting += [TreeRow(other, row.depth + 1, True) for other in reversed(others)]
        return rows


@dataclass(frozen=True, slots=True)
class Removal:
    """What goes when a branch is deleted, and where the sessions that stay point afterwards.

    `nodes` are never above a node that stays. `owners`: who owns what a deleted session said and
    others still reach.
    """

    nodes: tuple[int, ...]
    num_turns: int
    deleted: tuple[str, ...]
    moved: Mapping[str, int | None]
    owners: Mapping[int, str]


class NodeTree:
    """Light nodes with their children, and the sessions (id -> last message) among them."""

    def __init__(self, nodes: Sequence[LightNode], tips: Mapping[str, int | None]) -> None:
        self.nodes = {node.seq: node for node in nodes}
        self.tips = {
            session_id: tip for session_id, tip in tips.items() if tip is None or tip in self.nodes
        }
        self.children: dict[int | None, list[int]] = defaultdict(list)
        for node in sorted(nodes, key=lambda node: node.seq):
            self.children[node.parent].append(node.seq)

    def path(self, seq: int | None) -> list[int]:
        """From a node up to the root."""
        found = []
        while seq is not None:
            found.append(seq)
            seq = self.nodes[seq].parent
        return found

    def below(self, seq: int) -> list[int]:
        """A node and all below it."""
        found, waiting = [], [seq]
        while waiting:
            found.append(waiting.pop())
            waiting += self.children[found[-1]]
        return found

    def reached(self) -> NodeTree:
        """The messages on the paths of sessions alone."""
        kept = {seq for tip in self.tips.values() for seq in self.path(tip)}
        return NodeTree([self.nodes[seq] for seq in kept], self.tips)

    # Branches

    def branches(
        self, sessions: Sequence[SessionSummary], main_id: str | None, session_id: str
    ) -> BranchTree:
        """The runs; the line of the main session is drawn straight, else that of `session_id`."""
        ends: dict[int, list[SessionSummary]] = defaultdict(list)
        for session in sessions:
            if (tip := self.tips.get(session.session_id)) is not None:
                ends[tip].append(session)
        rank = self._ranks(main_id, session_id)
        built: dict[int, Branch] = {}
        starts = [node.seq for node in self.nodes.values() if self._starts_run(node)]
        # Children have larger numbers than their parents, so they are built first.
        for start in sorted(starts, reverse=True):
            built[start] = self._run(start, ends, built, rank)
        roots = sorted(self.children[None], key=rank.__getitem__)
        return BranchTree(tuple(built[root] for root in roots), main_id)

    def _starts_run(self, node: LightNode) -> bool:
        return node.parent is None or self._ends_run(node.parent)

    def _ends_run(self, seq: int) -> bool:
        """Where lines part, and where a session ends although others go on."""
        return len(self.children[seq]) != 1 or seq in self.tips.values()

    def _ranks(self, main_id: str | None, session_id: str) -> dict[int, tuple[int, int]]:
        """Sorts siblings: on the main line, on the one that is open, then the oldest first."""
        main = set(self.path(self.tips.get(main_id or "")))
        current = set(self.path(self.tips.get(session_id)))
        return {
            seq: (0 if seq in main else 1 if seq in current and not main else 2, seq)
            for seq in self.nodes
        }

    def _run(
        self,
        start: int,
        ends: Mapping[int, list[SessionSummary]],
        built: Mapping[int, Branch],
        rank: Mapping[int, tuple[int, int]],
    ) -> Branch:
        run = [self.nodes[start]]
        while not self._ends_run(run[-1].seq):
            run.append(self.nodes[self.children[run[-1].seq][0]])
        first, last = run[0], run[-1]
        above = 0 if first.parent is None else self.nodes[first.parent].num_tokens
        spoken = next((node for node in run if node.role == "user"), first)
        children = sorted(self.children[last.seq], key=rank.__getitem__)
        return Branch(
            first_id=first.node_id,
            node_id=last.node_id,
            tip=last.seq,
            first_turn=first.turn,
            last_turn=last.turn,
            role=spoken.role,
            text=spoken.text,
            last_text=last.text,
            own_tokens=max(0, last.num_tokens - above),
            num_tokens=last.num_tokens,
            model=last.model,
            created_at=last.created_ms / 1000.0,
            sessions=tuple(ends.get(last.seq, ())),
            children=tuple(built[child] for child in children),
        )

    # Removing

    def without(self, top: int, session_id: str) -> Removal:
        """What goes with the branch that begins at `top`.

        A session that ends in it goes too, unless it is needed: it moves to the newest message
        beside the branch when nobody else would reach what stays there. `session_id` first.
        """
        return self._removal(set(self.below(top)), self.nodes[top].parent, session_id)

    def only(self, tip: int, session_id: str) -> Removal:
        """What goes when only the path to `tip` is kept.

        `session_id` moves there unless another session that stays reaches it.
        """
        kept = set(self.path(tip))
        return self._removal(self.nodes.keys() - kept, tip, session_id)

    def _removal(self, doomed: set[int], place: int | None, session_id: str) -> Removal:
        """`place`: the nearest node that stays, or None at the root."""
        kept = self.nodes.keys() - doomed
        leaving = [session for session, tip in self.tips.items() if tip in doomed]
        leaving.sort(key=lambda session: session != session_id)
        staying = {session: tip for session, tip in self.tips.items() if session not in leaving}
        owners = self._owners(kept, staying)
        moved: dict[str, int | None] = {}
        for session in list(leaving):
            left = kept - owners.keys()
            if not left or not (session == session_id or self._owns_any(session, left)):
                continue
            moved[session] = self._nearest_leaf(place, kept, left)
            leaving.remove(session)
            owners = self._owners(kept, staying | moved)
        nodes = sorted(doomed, reverse=True)
        if not moved and not staying:  # nobody is left who could reach the rest
            nodes, owners = sorted(self.nodes, reverse=True), {}
        changed = {seq: owner for seq, owner in owners.items() if self.nodes[seq].owner in leaving}
        num_turns = sum(self.nodes[seq].role == "user" for seq in nodes)
        return Removal(tuple(nodes), num_turns, tuple(leaving), moved, changed)

    def _owns_any(self, session_id: str, nodes: set[int]) -> bool:
        return any(self.nodes[seq].owner == session_id for seq in nodes)

    def _owners(self, kept: set[int], tips: Mapping[str, int | None]) -> dict[int, str]:
        """Who reaches each node that stays: by its tip, or because it was said there."""
        owners: dict[int, str] = {}
        for session_id, tip in tips.items():
            own = [seq for seq in kept if self.nodes[seq].owner == session_id]
            for end in (tip, *own):
                while end is not None and end in kept and end not in owners:
                    owners[end] = session_id
                    end = self.nodes[end].parent
        return owners

    def _nearest_leaf(self, place: int | None, kept: set[int], left: set[int]) -> int | None:
        """The newest leaf that stays, below the place of the branch if there is one."""
        roots = [place] if place is not None else [r for r in self.children[None] if r in kept]
        leaves = [
            seq
            for root in roots
            for seq in self.below(root)
            if seq in kept and not any(child in kept for child in self.children[seq])
        ]
        wanted = [seq for seq in leaves if seq in left] or leaves
        return max(wanted, default=None)


def family(session_id: str, origins: Sequence[tuple[str, str | None]]) -> set[str]:
    """The sessions connected with this one by forks. `origins`: what each of all came from."""
    known = {session for session, _ in origins}
    related: dict[str, list[str]] = {}
    for forked, origin in origins:
        if origin in known and origin is not None:
            related.setdefault(forked, []).append(origin)
            related.setdefault(origin, []).append(forked)
    found, waiting = {session_id}, [session_id]
    while waiting:
        for relative in related.get(waiting.pop(), []):
            if relative not in found:
                found.add(relative)
                waiting.append(relative)
    return found
