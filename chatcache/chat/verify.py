"""Looks for damage in the conversation database: one sentence per problem, nothing is changed.

SQLite's own checks find broken pages and dangling references; beyond them, the id of each message
is computed again from its words and its parent, and each journal is read again.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator

from chatcache.chat.conversation import Message, node_id_of, order_problem, turn_after
from chatcache.chat.database import Database
from chatcache.chat.schema import SEARCH_INDEXES
from chatcache.errors import StorageError

MAX_PROBLEMS = 1000


def problems(database: Database) -> list[str]:
    """All problems found, at most 1,000; [] when the database is sound."""
    found: list[str] = []
    for check in (_pages, _references, _messages, _journals, _jumps, _owners, _indexes):
        try:
            for problem in check(database):
                found.append(problem)
                if len(found) == MAX_PROBLEMS:
                    return [*found, "There may be more problems."]
        except StorageError as error:
            found.append(error.message)
    return found


def _pages(database: Database) -> Iterator[str]:
    with database.reading() as connection:
        rows = connection.execute("PRAGMA integrity_check(100)").fetchall()
    for (line,) in rows:
        if line != "ok":
            yield f"The database file is damaged: {line}."


def _references(database: Database) -> Iterator[str]:
    what = {
        ("sessions", "nodes"): "points at a message that does not exist",
        ("nodes", "nodes"): "has a parent that does not exist",
    }
    with database.reading() as connection:
        for table, number, target, _ in connection.execute("PRAGMA foreign_key_check").fetchall():
            problem = what.get((table, target), f"refers to a row of {target} that does not exist")
            yield f"{_describe(database, table, number)} {problem}."


def _describe(database: Database, table: str, number: int | None) -> str:
    names = {
        "sessions": ("Session", "SELECT session_id FROM sessions WHERE number = ?"),
        "nodes": ("Message", "SELECT node_id FROM nodes WHERE seq = ?"),
    }
    if table not in names:
        return f"Row {number} of {table}"
    word, query = names[table]
    with database.reading() as connection:
        return f"{word} {connection.execute(query, (number,)).fetchone()[0]}"


def _messages(database: Database) -> Iterator[str]:
    last = -1
    while True:
        # In portions: words may be large, and other threads wait for the connection.
        with database.reading() as connection:
            rows = connection.execute(
                "SELECT n.seq, n.node_id, n.turn, n.depth, n.role, n.text, n.reasoning, n.model,"
                " n.finish_reason, n.created_ms, p.node_id, p.turn, p.depth, p.role FROM nodes n"
                " LEFT JOIN nodes p ON p.seq = n.parent WHERE n.seq > ? ORDER BY n.seq LIMIT 500",
                (last,),
            ).fetchall()
        if not rows:
            return
        for row in rows:
            last, node_id, turn, depth, *rest = row
            message = Message(*rest[:6])
            parent_id, parent_turn, parent_depth, parent_role = rest[6:]
            if node_id_of(parent_id, message) != node_id:
                yield f"Message {node_id} (turn {turn}) does not have the words it was stored with."
            if turn != turn_after(parent_turn, message.role):
                yield f"Message {node_id} has turn {turn}, which its parent contradicts."
            if depth != (0 if parent_depth is None else parent_depth + 1):
                yield f"Message {node_id} has depth {depth}, which its parent contradicts."
            if problem := order_problem(parent_role, message.role):
                yield f"Message {node_id} is out of place: {problem}."


def _journals(database: Database) -> Iterator[str]:
    with database.reading() as connection:
        keys = connection.execute(
            "SELECT j.node, j.tokenizer_id, n.node_id FROM journals j"
            " JOIN nodes n ON n.seq = j.node"
        ).fetchall()
    for seq, tokenizer_id, node_id in keys:
        with database.reading() as connection:
            row = connection.execute(
                "SELECT num_new, checksum, new_ids FROM journals WHERE node = ?"
                " AND tokenizer_id = ?",
                (seq, tokenizer_id),
            ).fetchone()
        if row is None:
            continue
        num_new, checksum, blob = row
        if len(blob) != 4 * num_new or zlib.crc32(blob) != checksum:
            yield f"The token ids of message {node_id} are damaged; its words are not concerned."


def _jumps(database: Database) -> Iterator[str]:
    with database.reading() as connection:
        rows = connection.execute(
            "SELECT n.node_id FROM nodes n LEFT JOIN nodes j ON j.seq = n.jump"
            " WHERE (n.parent IS NULL) <> (n.jump IS NULL)"
            " OR (n.jump IS NOT NULL AND (j.seq IS NULL OR j.depth >= n.depth))"
        ).fetchall()
    for (node_id,) in rows:
        yield f"Message {node_id} has a broken short cut to an earlier message."


def _owners(database: Database) -> Iterator[str]:
    with database.reading() as connection:
        rows = connection.execute("SELECT node_id FROM nodes WHERE session_id IS NULL").fetchall()
    for (node_id,) in rows:
        yield f"Message {node_id} belongs to no session."


def _indexes(database: Database) -> Iterator[str]:
    for table in SEARCH_INDEXES:
        try:
            with database.writing() as connection:
                connection.execute(
                    f"INSERT INTO {table}({table}, rank) VALUES ('integrity-check', 1)"
                )
        except StorageError:
            yield f"The search index {table} does not match the words; they are not concerned."
