"""The rows of the conversation tree: insert, walk to the root, find a turn, look sideways.

Owns the `nodes` table. Nodes are written once and never changed, but for two columns that no id
covers: how many tokens the path has, and which session it belongs to. Knows nothing of what a
session does with its path.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from chatcache.chat.conversation import Message, Node
from chatcache.chat.database import Database, Row
from chatcache.errors import DamageError

_COLUMNS = """
    n.seq, n.parent, n.num_tokens, n.session_id, n.node_id,
    (SELECT p.node_id FROM nodes p WHERE p.seq = n.parent),
    n.turn, n.role, n.text, n.reasoning, n.model, n.finish_reason, n.created_ms
"""

MAX_OPENING = 200_000  # characters
# The nodes from `:tip` up to the root, or down to the first one at turn `:above` or before.
UP = """
    WITH RECURSIVE up(seq, parent) AS (
        SELECT seq, parent FROM nodes WHERE seq = :tip AND turn > :above
        UNION ALL
        SELECT n.seq, n.parent FROM nodes n JOIN up ON n.seq = up.parent WHERE n.turn > :above
    )
"""


@dataclass(frozen=True, slots=True)
class StoredNode:
    """A node and its place in the database. `num_tokens` is the length of its path's journal."""

    seq: int
    parent_seq: int | None
    num_tokens: int
    session_id: str | None
    node: Node


@dataclass(frozen=True, slots=True)
class Opening:
    """What a conversation begins with, and the name of the session that it was said in."""

    stored: StoredNode
    session: str


def _stored(row: Row) -> StoredNode:
    seq, parent, num_tokens, session_id, node_id, parent_id, turn, *message = row
    return StoredNode(seq, parent, num_tokens, session_id, _node(node_id, parent_id, turn, message))


def _node(node_id: str, parent_id: str | None, turn: int, message: Sequence[object]) -> Node:
    return Node(node_id, parent_id, turn, Message(*message))  # type: ignore[arg-type]


def _missing(seq: int | None) -> DamageError:
    return DamageError(
        f"The conversation database is damaged: message number {seq} is missing.",
        "Run `chatcache doctor` to see all of the damage.",
    )


class NodeTable:
    """Reads and writes nodes. Writes join the transaction of the caller."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def get(self, seq: int) -> StoredNode:
        """The node with this number. Raises DamageError when it does not exist."""
        with self._database.reading() as connection:
            row = connection.execute(
                f"SELECT {_COLUMNS} FROM nodes n WHERE n.seq = ?", (seq,)
            ).fetchone()
        if row is None:
            raise _missing(seq)
        return _stored(row)

    def find(self, node_id: str) -> StoredNode | None:
        with self._database.reading() as connection:
            row = connection.execute(
                f"SELECT {_COLUMNS} FROM nodes n WHERE n.node_id = ?", (node_id,)
            ).fetchone()
        return _stored(row) if row else None

    def exists(self, seq: int) -> bool:
        with self._database.reading() as connection:
            return bool(connection.execute("SELECT 1 FROM nodes WHERE seq = ?", (seq,)).fetchone())

    def insert(
        self, node: Node, parent: StoredNode | None, session_id: str, num_tokens: int | None = None
    ) -> StoredNode:
        """Write a node below `parent`; one with the same id is the same node and is returned."""
        if (known := self.find(node.node_id)) is not None:
            return known
        parent_seq = parent.seq if parent else None
        if num_tokens is None:
            num_tokens = parent.num_tokens if parent else 0
        depth, jump, path_model = self._place(parent_seq)
        message = node.message
        with self._database.writing() as connection:
            cursor = connection.execute(
                "INSERT INTO nodes (parent, jump, depth, turn, num_tokens, session_id, created_ms,"
                " role, finish_reason, model, path_model, node_id, text, reasoning)"
                " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (
                    parent_seq,
                    jump,
                    depth,
                    node.turn,
                    num_tokens,
                    session_id,
                    message.created_ms,
                    message.role,
                    message.finish_reason,
                    message.model,
                    message.model or path_model,
                    node.node_id,
                    message.text,
                    message.reasoning,
                ),
            )
        seq = cursor.lastrowid
        if seq is None:
            raise RuntimeError("SQLite gave no row number for a node")
        return StoredNode(seq, parent_seq, num_tokens, session_id, node)

    def insert_below(
        self, nodes: Iterable[Node], parent: StoredNode | None, session_id: str
    ) -> list[StoredNode]:
        """Write a run of nodes, each below the one before it."""
        stored: list[StoredNode] = []
        for node in nodes:
            parent = self.insert(node, parent, session_id)
            stored.append(parent)
        return stored

    def _place(self, parent_seq: int | None) -> tuple[int, int | None, str | None]:
        """(depth, jump, path_model) of a child of `parent_seq`.

        Jump pointers as in Myers, "An applicative random-access stack" (1983): two equal jumps in
        a row are joined into one.
        """
        if parent_seq is None:
            return 0, None, None
        with self._database.reading() as connection:
            depth, jump_depth, far, far_depth, path_model = connection.execute(
                "SELECT p.depth, j.depth, f.seq, f.depth, p.path_model FROM nodes p"
                " LEFT JOIN nodes j ON j.seq = p.jump LEFT JOIN nodes f ON f.seq = j.jump"
                " WHERE p.seq = ?",
                (parent_seq,),
            ).fetchone()
        if far is not None and depth - jump_depth == jump_depth - far_depth:
            return depth + 1, far, path_model
        return depth + 1, parent_seq, path_model

    def set_num_tokens(self, seq: int, num_tokens: int) -> None:
        with self._database.writing() as connection:
            connection.execute("UPDATE nodes SET num_tokens = ? WHERE seq = ?", (num_tokens, seq))

    def path(self, tip: int | None, *, above_turn: int = -1) -> list[StoredNode]:
        """The nodes from the root to `tip`; only those after turn `above_turn`."""
        if tip is None:
            return []
        with self._database.reading() as connection:
            rows = connection.execute(
                f"{UP} SELECT {_COLUMNS} FROM up JOIN nodes n ON n.seq = up.seq ORDER BY n.depth",
                {"tip": tip, "above": above_turn},
            ).fetchall()
        path = [_stored(row) for row in rows]
        if above_turn < 0 and (not path or path[0].parent_seq is not None):
            raise _missing(path[0].parent_seq if path else tip)
        return path

    def beside(self, session_id: str, tip: int | None) -> list[StoredNode]:
        """What was said in a session and is not on the path to `tip`, with what leads there;
        each node after its parent."""
        with self._database.reading() as connection:
            rows = connection.execute(
                f"{UP}, own(seq) AS ("
                " SELECT seq FROM nodes WHERE session_id = :session"
                " UNION SELECT n.parent FROM nodes n JOIN own ON n.seq = own.seq"
                " WHERE n.parent IS NOT NULL)"
                f" SELECT {_COLUMNS} FROM nodes n WHERE n.seq IN (SELECT seq FROM own)"
                " AND n.seq NOT IN (SELECT seq FROM up) ORDER BY n.depth, n.seq",
                {"session": session_id, "tip": tip, "above": -1},
            ).fetchall()
        return [_stored(row) for row in rows]

    def at_turn(self, tip: int | None, turn: int) -> int | None:
        """The last node of turn `turn` or before on the path to `tip`, in O(log n) steps."""
        with self._database.reading() as connection:
            while tip is not None:
                row = connection.execute(
                    "SELECT n.turn, n.parent, j.seq, j.turn FROM nodes n"
                    " LEFT JOIN nodes j ON j.seq = n.jump WHERE n.seq = ?",
                    (tip,),
                ).fetchone()
                if row is None:
                    raise _missing(tip)
                at, parent, jump, jump_turn = row
                if at <= turn:
                    return tip
                tip = jump if jump is not None and jump_turn > turn else parent
        return None

    def question(self, tip: int, turn: int) -> StoredNode:
        """The user message that opens turn `turn` on the path to `tip`."""
        seq = self.at_turn(tip, turn)
        if seq is None:
            raise LookupError(f"no turn {turn} above node {tip}")
        stored = self.get(seq)
        while stored.node.role != "user" and stored.parent_seq is not None:
            stored = self.get(stored.parent_seq)
        return stored

    def is_on_path(self, seq: int, tip: int | None) -> bool:
        """Whether `seq` is `tip` or an ancestor of it."""
        with self._database.reading() as connection:
            row = connection.execute(
                f"{UP} SELECT 1 FROM up WHERE seq = :seq LIMIT 1",
                {"tip": tip, "above": -1, "seq": seq},
            ).fetchone()
        return row is not None

    def siblings(self, stored: StoredNode) -> list[StoredNode]:
        """The nodes beside this one and itself, oldest first.

        Roots are beside each other only within a session: other conversations are no variants.
        """
        where = (
            "n.parent = :parent"
            if stored.parent_seq is not None
            else "n.parent IS NULL AND n.session_id = :session"
        )
        with self._database.reading() as connection:
            rows = connection.execute(
                f"SELECT {_COLUMNS} FROM nodes n"
                f" WHERE (({where}) AND n.role = :role) OR n.seq = :seq ORDER BY n.seq",
                {
                    "parent": stored.parent_seq,
                    "session": stored.session_id,
                    "role": stored.node.role,
                    "seq": stored.seq,
                },
            ).fetchall()
        return [_stored(row) for row in rows]

    def variants(self, path: Sequence[StoredNode]) -> dict[int, tuple[int, int]]:
        """For each node of a path that has siblings: (its index, how many there are)."""
        if not path:
            return {}
        with self._database.reading() as connection:
            rows = connection.execute(
                f"{UP} SELECT up.seq, s.seq FROM up JOIN nodes n ON n.seq = up.seq"
                " JOIN nodes s ON s.parent = up.parent AND s.role = n.role"
                " ORDER BY up.seq, s.seq",
                {"tip": path[-1].seq, "above": path[0].node.turn - 1},
            ).fetchall()
        beside: dict[int, list[int]] = {}
        for seq, sibling in rows:
            beside.setdefault(seq, []).append(sibling)
        if path[0].parent_seq is None:
            beside[path[0].seq] = [root.seq for root in self.siblings(path[0])]
        return {
            seq: (together.index(seq), len(together))
            for seq, together in beside.items()
            if len(together) > 1
        }

    def openings(self, limit: int) -> list[Opening]:
        """How the newest conversations begin: their system prompts and first user messages. Texts
        that are as long as a book are left out."""
        with self._database.reading() as connection:
            rows = connection.execute(
                "WITH roots AS (SELECT seq FROM nodes WHERE parent IS NULL"
                "  ORDER BY seq DESC LIMIT :limit),"
                " first(seq) AS (SELECT seq FROM roots UNION"
                "  SELECT c.seq FROM roots r JOIN nodes c ON c.parent = r.seq WHERE c.turn = 1)"
                f" SELECT {_COLUMNS}, s.name FROM first JOIN nodes n ON n.seq = first.seq"
                " LEFT JOIN sessions s ON s.session_id = n.session_id"
                " WHERE n.role <> 'assistant' AND length(n.text) <= :longest ORDER BY n.seq DESC",
                {"limit": limit, "longest": MAX_OPENING},
            ).fetchall()
        return [Opening(_stored(row[:-1]), row[-1] or "") for row in rows]

    def newest_leaf(self, seq: int) -> int:
        """From a node downwards, always the newest child, to the end."""
        with self._database.reading() as connection:
            while True:
                child = connection.execute(
                    "SELECT max(seq) FROM nodes WHERE parent = ?", (seq,)
                ).fetchone()[0]
                if child is None:
                    return seq
                seq = child

    def give_branch(self, top: int, old_owner: str, new_owner: str) -> None:
        """Let `new_owner` own what `old_owner` owns at and below `top`."""
        with self._database.writing() as connection:
            connection.execute(
                "WITH RECURSIVE down(seq) AS (SELECT :top UNION ALL"
                " SELECT n.seq FROM nodes n JOIN down ON n.parent = down.seq)"
                " UPDATE nodes SET session_id = :new"
                " WHERE seq IN (SELECT seq FROM down) AND session_id = :old",
                {"top": top, "new": new_owner, "old": old_owner},
            )

    def delete_reached_only_by(self, session_id: str) -> int:
        """Delete what no other session reaches, and say how many nodes that were.

        A session reaches the path to its tip and all that was said in it (answers that were
        regenerated, branches that were edited away). Call when the row no longer points at its
        tip, and before it is deleted. What stays is then owned by a session that reaches it.
        """
        with self._database.writing() as connection:
            connection.execute(_DELETE_UNREACHED, {"session": session_id})
            num_deleted = int(connection.execute("SELECT changes()").fetchone()[0])
            # Deepest first: a node that is no tip is reached through a child, which has its new
            # owner by then.
            connection.executemany(
                "UPDATE nodes SET session_id = coalesce("
                " (SELECT s.session_id FROM sessions s WHERE s.tip = nodes.seq LIMIT 1),"
                " (SELECT c.session_id FROM nodes c WHERE c.parent = nodes.seq"
                "  AND c.session_id <> nodes.session_id LIMIT 1)"
                ") WHERE seq = ?",
                connection.execute(
                    "SELECT seq FROM nodes WHERE session_id = ? ORDER BY depth DESC", (session_id,)
                ).fetchall(),
            )
        return num_deleted


# `mine`: what this session owns. An anchor in it is held by another session's tip, or by a child
# that stays. Anchors and all above them stay.
_DELETE_UNREACHED = """
    WITH RECURSIVE
    mine AS MATERIALIZED (SELECT seq FROM nodes WHERE session_id = :session),
    kept(seq) AS (
        SELECT m.seq FROM mine m
        WHERE EXISTS (SELECT 1 FROM sessions s WHERE s.tip = m.seq)
           OR EXISTS (
                SELECT 1 FROM nodes c WHERE c.parent = m.seq
                AND c.seq NOT IN (SELECT seq FROM mine)
           )
        UNION
        SELECT n.parent FROM nodes n JOIN kept ON n.seq = kept.seq WHERE n.parent IS NOT NULL
    )
    DELETE FROM nodes
    WHERE seq IN (SELECT seq FROM mine) AND seq NOT IN (SELECT seq FROM kept)
"""
