"""The token ids that models read and produced along a path, and the figures of the answers.

Owns the `journals`, `answers` and `namespaces` tables. A journal is stored per node and tokenizer
as the difference to its parent: `journal(node) = journal(parent)[:keep] + new_ids`; a node without
a row has its parent's journal, and the root's parent has (). Rows are written once. Ids mean
nothing here.
"""

from __future__ import annotations

import json
import sys
import zlib
from array import array
from collections import deque
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass

from chatcache.chat.database import Database
from chatcache.chat.node_table import UP


@dataclass(frozen=True, slots=True)
class JournalEntry:
    """What a node adds to the journal of its parent."""

    keep: int
    new_ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class AnswerFigures:
    """What is known of how an answer was made. `result_json`: usage, timings and cache."""

    namespace_id: str | None
    backend: str
    result_json: str


@dataclass(frozen=True, slots=True)
class Namespace:
    """What a turn ran on."""

    namespace_id: str
    tokenizer_id: str
    fields: Mapping[str, str]


def pack_ids(ids: Sequence[int]) -> bytes:
    """Token ids as little-endian uint32."""
    packed = array("I", ids)
    if sys.byteorder == "big":
        packed.byteswap()
    return packed.tobytes()


def unpack_ids(blob: bytes) -> array[int]:
    unpacked = array("I")
    unpacked.frombytes(blob)
    if sys.byteorder == "big":
        unpacked.byteswap()
    return unpacked


class JournalTable:
    """Reads and writes journals. Writes join the transaction of the caller."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def write(self, seq: int, tokenizer_id: str, entry: JournalEntry) -> None:
        """Keep the entry of a node; the first one stays."""
        blob = pack_ids(entry.new_ids)
        with self._database.writing() as connection:
            connection.execute(
                "INSERT OR IGNORE INTO journals (node, tokenizer_id, keep, num_new, checksum,"
                " new_ids) VALUES (?, ?, ?, ?, ?, ?)",
                (seq, tokenizer_id, entry.keep, len(entry.new_ids), zlib.crc32(blob), blob),
            )

    def journal(self, tip: int | None, tokenizer_id: str) -> tuple[int, ...]:
        """The journal of a node: () when nothing on its path was read with this tokenizer."""
        steps = deque(self.along(tip, tokenizer_id), maxlen=1)
        return tuple(steps[0][1]) if steps else ()

    def last_of(self, tip: int | None, tokenizer_id: str, nodes: Container[int]) -> int | None:
        """The last of `nodes` on a path that has an entry of its own; None: none has."""
        known = (seq for seq, _ in self.along(tip, tokenizer_id) if seq in nodes)
        return next(iter(deque(known, maxlen=1)), None)

    def along(self, tip: int | None, tokenizer_id: str) -> Iterator[tuple[int, array[int]]]:
        """(node number, its journal) of each node with an entry, root to tip.

        It is one growing array: copy it before the next step. Stops before a damaged entry: what
        came before it is still true.
        """
        with self._database.reading() as connection:
            rows = connection.execute(
                f"{UP} SELECT j.node, j.keep, j.checksum, j.new_ids FROM up"
                " JOIN journals j ON j.node = up.seq AND j.tokenizer_id = :tokenizer"
                " JOIN nodes n ON n.seq = up.seq ORDER BY n.depth",
                {"tip": tip, "above": -1, "tokenizer": tokenizer_id},
            ).fetchall()
        ids = array("I")
        for seq, keep, checksum, blob in rows:
            if keep > len(ids) or zlib.crc32(blob) != checksum or len(blob) % ids.itemsize:
                return
            del ids[keep:]
            ids.extend(unpack_ids(blob))
            yield seq, ids

    def entries(self, tip: int | None) -> dict[int, dict[str, JournalEntry]]:
        """All entries on a path: node number -> tokenizer -> entry. For export."""
        with self._database.reading() as connection:
            rows = connection.execute(
                f"{UP} SELECT j.node, j.tokenizer_id, j.keep, j.checksum, j.new_ids FROM up"
                " JOIN journals j ON j.node = up.seq",
                {"tip": tip, "above": -1},
            ).fetchall()
        found: dict[int, dict[str, JournalEntry]] = {}
        for seq, tokenizer_id, keep, checksum, blob in rows:
            if zlib.crc32(blob) == checksum:
                entry = JournalEntry(keep, tuple(unpack_ids(blob)))
                found.setdefault(seq, {})[tokenizer_id] = entry
        return found


class AnswerTable:
    """Reads and writes the figures of answers, and what they ran on."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def write(self, seq: int, namespace: Namespace, backend: str, result_json: str) -> None:
        with self._database.writing() as connection:
            connection.execute(
                "INSERT INTO namespaces (namespace_id, tokenizer_id, fields) VALUES (?, ?, ?)"
                " ON CONFLICT DO NOTHING",
                (
                    namespace.namespace_id,
                    namespace.tokenizer_id,
                    json.dumps(dict(namespace.fields), sort_keys=True),
                ),
            )
            connection.execute(
                "INSERT OR IGNORE INTO answers (node, namespace_id, backend, result)"
                " VALUES (?, ?, ?, ?)",
                (seq, namespace.namespace_id, backend, result_json),
            )

    def copy(self, source: int, target: int) -> None:
        """The same figures for a node that is a copy."""
        with self._database.writing() as connection:
            connection.execute(
                "INSERT OR IGNORE INTO answers (node, namespace_id, backend, result)"
                " SELECT ?, namespace_id, backend, result FROM answers WHERE node = ?",
                (target, source),
            )

    def ends(self, session_id: str | None = None) -> list[tuple[int, str, str]]:
        """(node, namespace id, tokenizer id) of each answer behind which nothing was answered.

        And of each question that was read but got no answer, for every namespace of its tokenizer.
        All that is held in K and V lies on their journals. Of one session: what was said in it.
        """
        with self._database.reading() as connection:
            rows = connection.execute(
                "SELECT a.node, a.namespace_id, s.tokenizer_id FROM answers a"
                " JOIN nodes n ON n.seq = a.node"
                " JOIN namespaces s ON s.namespace_id = a.namespace_id"
                " WHERE (:session IS NULL OR n.session_id = :session) AND NOT EXISTS ("
                "  SELECT 1 FROM nodes q JOIN nodes r ON r.parent = q.seq"
                "  JOIN answers b ON b.node = r.seq"
                "  WHERE q.parent = n.seq AND b.namespace_id = a.namespace_id)"
                " UNION SELECT j.node, s.namespace_id, s.tokenizer_id FROM journals j"
                " JOIN nodes n ON n.seq = j.node AND n.role = 'user'"
                " JOIN namespaces s ON s.tokenizer_id = j.tokenizer_id"
                " WHERE (:session IS NULL OR n.session_id = :session) AND NOT EXISTS ("
                "  SELECT 1 FROM nodes r JOIN answers b ON b.node = r.seq WHERE r.parent = n.seq)",
                {"session": session_id},
            ).fetchall()
        return [(node, namespace_id, tokenizer_id) for node, namespace_id, tokenizer_id in rows]

    def along(self, tip: int | None, *, above_turn: int = -1) -> dict[int, AnswerFigures]:
        """The figures of the answers on a path, by node number."""
        with self._database.reading() as connection:
            rows = connection.execute(
                f"{UP} SELECT a.node, a.namespace_id, a.backend, a.result FROM up"
                " JOIN answers a ON a.node = up.seq",
                {"tip": tip, "above": above_turn},
            ).fetchall()
        return {seq: AnswerFigures(*figures) for seq, *figures in rows}

    def last_namespace(self, tip: int | None) -> Namespace | None:
        """What the last answer on a path ran on."""
        with self._database.reading() as connection:
            row = connection.execute(
                f"{UP} SELECT s.namespace_id, s.tokenizer_id, s.fields FROM up"
                " JOIN nodes n ON n.seq = up.seq JOIN answers a ON a.node = up.seq"
                " JOIN namespaces s ON s.namespace_id = a.namespace_id"
                " ORDER BY n.depth DESC LIMIT 1",
                {"tip": tip, "above": -1},
            ).fetchone()
        if row is None:
            return None
        return Namespace(row[0], row[1], json.loads(row[2]))
