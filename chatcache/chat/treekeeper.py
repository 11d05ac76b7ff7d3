"""Reads the tree of a conversation, and changes it: follow a branch, delete one, keep only one.

Owns the light reading of all messages of a family of sessions (1,000 turns take milliseconds: no
text is read but its first words), and the one transaction in which a branch goes. What goes is
decided in `branches`.
"""

from __future__ import annotations

import json
from collections.abc import MutableMapping, Sequence

from chatcache.backends.base import CostEstimate
from chatcache.chat.branches import Branch, BranchTree, LightNode, NodeTree, Removal, family
from chatcache.chat.conversation import one_line
from chatcache.chat.costs import CostBook
from chatcache.chat.forget import Doomed, ForgetKV
from chatcache.chat.store import SessionStore
from chatcache.errors import NotFoundError

WORDS_LENGTH = 160

# By jump pointers, so that the root of a long path is a few steps away.
_ROOT = """
    WITH RECURSIVE up(seq, parent, jump) AS (
        SELECT seq, parent, jump FROM nodes WHERE seq = ?
        UNION ALL
        SELECT n.seq, n.parent, n.jump FROM nodes n JOIN up ON n.seq = coalesce(up.jump, up.parent)
    )
    SELECT seq FROM up WHERE parent IS NULL
"""
_BELOW = f"""
    WITH RECURSIVE down(seq) AS (
        SELECT value FROM json_each(?)
        UNION ALL
        SELECT n.seq FROM nodes n JOIN down ON n.parent = down.seq
    )
    SELECT n.seq, n.parent, n.node_id, n.turn, n.role, n.num_tokens, n.created_ms, n.session_id,
        n.path_model, substr(n.text, 1, {WORDS_LENGTH})
    FROM down JOIN nodes n ON n.seq = down.seq ORDER BY n.seq
"""


class TreeKeeper:
    """The trees of a store. `seen` (session -> tip last seen) loses what is no longer true."""

    def __init__(
        self,
        store: SessionStore,
        costs: CostBook,
        forget_kv: ForgetKV | None,
        seen: MutableMapping[str, int | None],
    ) -> None:
        self._store = store
        self._costs = costs
        self._forget_kv = forget_kv
        self._seen = seen

    def branches(self, session_id: str, *, is_reached: bool = False) -> BranchTree:
        """The branches of a session and of all sessions related to it by forks.

        `is_reached`: only what a session goes on from; what was regenerated or edited is left out.
        """
        tree, members, main_id = self._read(session_id)
        if is_reached:
            tree = tree.reached()
        sessions = [session for session in self._store.list() if session.session_id in members]
        return tree.branches(sessions, main_id, session_id)

    def costs(self, branches: Sequence[Branch]) -> list[CostEstimate | None]:
        """What going on from the end of each branch would cost; None where nothing is known."""
        return self._costs.of_tips([branch.tip for branch in branches])

    def follow(self, branch: Branch) -> str:
        """The session that ends with this branch; one that owns it is moved there.

        Of several: the last used. Raises NotFoundError when the branch is gone.
        """
        if branch.sessions:
            return branch.sessions[0].session_id
        stored = self._store.nodes.find(branch.node_id)
        if stored is None or stored.session_id is None:
            raise NotFoundError("This branch is not there any more.", "Open the tree again.")
        leaf = self._store.nodes.newest_leaf(stored.seq)
        row = self._store.sessions.row(stored.session_id)
        self._store.sessions.move_tip(row.session_id, row.tip, leaf)
        self._seen.pop(row.session_id, None)
        return row.session_id

    # Removing

    def plan_delete(self, session_id: str, node_id: str) -> Removal:
        """What goes when a message and all below it is deleted. Changes nothing."""
        tree, _, _ = self._read(session_id)
        return tree.without(self._seq(node_id), session_id)

    def plan_keep_only(self, session_id: str, node_id: str) -> Removal:
        """What goes when only the path to a message is kept. Changes nothing."""
        tree, _, _ = self._read(session_id)
        return tree.only(self._seq(node_id), session_id)

    def delete(self, session_id: str, node_id: str) -> Removal:
        """Delete a message and all below it, words and K and V."""
        with self._store.database.writing():
            return self._remove(self.plan_delete(session_id, node_id))

    def keep_only(self, session_id: str, node_id: str) -> Removal:
        """Delete all but the path to a message, in the whole tree."""
        with self._store.database.writing():
            return self._remove(self.plan_keep_only(session_id, node_id))

    def _remove(self, removal: Removal) -> Removal:
        doomed = Doomed.of_nodes(self._store, set(removal.nodes))
        self._store.remove(removal)
        for session_id in (*removal.deleted, *removal.moved):
            self._seen.pop(session_id, None)
        if self._forget_kv is not None:
            doomed.forget(self._forget_kv)
        return removal

    # Reading

    def _seq(self, node_id: str) -> int:
        stored = self._store.nodes.find(node_id)
        if stored is None:
            raise NotFoundError("This branch is not there any more.", "Open the tree again.")
        return stored.seq

    def _read(self, session_id: str) -> tuple[NodeTree, set[str], str | None]:
        """All messages of a family, its sessions, and the one that the others came from."""
        with self._store.database.reading() as connection:
            rows = connection.execute(
                "SELECT session_id, tip, forked_from FROM sessions ORDER BY number"
            ).fetchall()
            tips: dict[str, int | None] = {known_id: tip for known_id, tip, _ in rows}
            if session_id not in tips:
                raise self._store.sessions.not_found(session_id)
            members = family(session_id, [(known_id, origin) for known_id, _, origin in rows])
            roots = {
                seq
                for member in members
                if (tip := tips[member]) is not None
                for (seq,) in connection.execute(_ROOT, (tip,))  # none where the path is broken
            }
            roots |= {
                seq
                for (seq,) in connection.execute(
                    "SELECT seq FROM nodes WHERE parent IS NULL"
                    " AND session_id IN (SELECT value FROM json_each(?))",
                    (_json(members),),
                )
            }
            nodes = [
                LightNode(*(*row[:-1], one_line(row[-1])))
                for row in connection.execute(_BELOW, (_json(roots),))
            ]
        tree = NodeTree(nodes, {member: tip for member, tip in tips.items() if tip is not None})
        members = set(tree.tips) | {session_id}
        origins = {known_id: origin for known_id, _, origin in rows}
        first = [
            known_id
            for known_id, origin in origins.items()
            if known_id in members and origin not in members
        ]
        return tree, members, next(iter(first), None)


def _json(values: set[int] | set[str]) -> str:
    return json.dumps(sorted(values, key=str))
