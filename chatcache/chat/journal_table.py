"""The token ids that models read and produced along a path, and the figures of the answers.

Owns the `journals`, `answers` and `namespaces` tables. A journal is stored per node and tokenizer
as the difference to its parent: `journal(node) = journal(parent)[:keep] + new_ids`; a node without
a row has its parent's journal, and the root's parent has an empty one. Rows are written once. Ids
mean nothing here.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from chatcache.chat.database import Database
from chatcache.chat.node_table import UP
from chatcache.token_ids import BYTES_PER_ID, NO_IDS, TokenIds


@dataclass(frozen=True, slots=True)
class JournalEntry:
    """What a node adds to the journal of its parent."""

    keep: int
    new_ids: TokenIds


@dataclass(frozen=True, slots=True)
class AnswerFigures:
    """What is known of how an answer was made. `result_json`: usage, timings and cache."""

    namespace_id: str | None
    backend: str
    result_json: str
    quantization: str = ""  # how the weights were packed


@dataclass(frozen=True, slots=True)
class Namespace:
    """What a turn ran on."""

    namespace_id: str
    tokenizer_id: str
    fields: Mapping[str, str]


class PathJournal:
    """The journals along one path: of each node that has an entry, root to tip."""

    def __init__(self, entries: Sequence[tuple[int, JournalEntry]]) -> None:
        self._entries = entries
        self.lengths = {seq: entry.keep + len(entry.new_ids) for seq, entry in entries}

    @property
    def ids(self) -> TokenIds:
        """The journal of the tip."""
        return self.up_to(self._entries[-1][0]) if self._entries else NO_IDS

    def without(self, tip: int) -> PathJournal:
        """That of the path which ends before `tip`, the last node of this one."""
        return PathJournal([(seq, entry) for seq, entry in self._entries if seq != tip])

    def up_to(self, node: int) -> TokenIds:
        """The journal of one of the nodes; raises KeyError for one without an entry."""
        return self.of([node])[node]

    def of(self, nodes: Collection[int]) -> dict[int, TokenIds]:
        """The journals of those of `nodes` that have an entry, root to tip."""
        found: dict[int, TokenIds] = {}
        packed = bytearray()
        for seq, entry in self._entries:
            del packed[entry.keep * BYTES_PER_ID :]
            packed += entry.new_ids.packed
            if seq in nodes:
                found[seq] = TokenIds.from_bytes(packed)
        return found

    def kept(self) -> dict[int, int]:
        """The lengths of those journals that the one of the tip begins with, tip included."""
        found: dict[int, int] = {}
        limit = None
        for seq, entry in reversed(self._entries):
            if limit is None or self.lengths[seq] <= limit:
                found[seq] = self.lengths[seq]
            limit = entry.keep if limit is None else min(limit, entry.keep)
        return found

    def last_of(self, nodes: Collection[int]) -> int | None:
        """The last of `nodes` that has an entry; None: none has."""
        return next((seq for seq in reversed(self.lengths) if seq in nodes), None)


class JournalTable:
    """Reads and writes journals. Writes join the transaction of the caller."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def write(self, seq: int, tokenizer_id: str, entry: JournalEntry) -> bool:
        """Keep the entry of a node; the first one stays, and False is returned."""
        blob = entry.new_ids.packed
        with self._database.writing() as connection:
            cursor = connection.execute(
                "INSERT OR IGNORE INTO journals (node, tokenizer_id, keep, num_new, checksum,"
                " new_ids) VALUES (?, ?, ?, ?, ?, ?)",
                (seq, tokenizer_id, entry.keep, len(entry.new_ids), zlib.crc32(blob), blob),
            )
            return cursor.rowcount > 0

    def journal(self, tip: int | None, tokenizer_id: str) -> TokenIds:
        """The journal of a node: empty when nothing on its path was read with this tokenizer."""
        return self.along(tip, tokenizer_id).ids

    def along(self, tip: int | None, tokenizer_id: str) -> PathJournal:
        """The journals of all nodes of a path, read at once.

        Ends before a damaged entry: what came before it is still true.
        """
        with self._database.reading() as connection:
            rows = connection.execute(
                f"{UP} SELECT j.node, j.keep, j.checksum, j.new_ids FROM up"
                " JOIN journals j ON j.node = up.seq AND j.tokenizer_id = :tokenizer"
                " JOIN nodes n ON n.seq = up.seq ORDER BY n.depth",
                {"tip": tip, "above": -1, "tokenizer": tokenizer_id},
            ).fetchall()
        entries: list[tuple[int, JournalEntry]] = []
        length = 0
        for seq, keep, checksum, blob in rows:
            if keep > length or zlib.crc32(blob) != checksum or len(blob) % BYTES_PER_ID:
                break
            entries.append((seq, JournalEntry(keep, TokenIds.from_bytes(blob))))
            length = keep + len(entries[-1][1].new_ids)
        return PathJournal(entries)

    def newest_beside(self, top: int, session_id: str, tokenizer_id: str) -> int | None:
        """The last node that was read, with a tokenizer, on an earlier line beside `top`.

        Roots are beside each other in a session, in the one that it was forked from, and in those
        that were forked from it: an edit leaves its line to one of these."""
        with self._database.reading() as connection:
            row = connection.execute(
                "WITH RECURSIVE kin(session_id) AS ("
                " SELECT :session UNION SELECT s.session_id FROM sessions s"
                "  WHERE s.forked_from = :session"
                " UNION SELECT s.forked_from FROM sessions s WHERE s.session_id = :session),"
                " down(seq) AS (SELECT n.seq FROM nodes n JOIN nodes t ON t.seq = :top"
                "  WHERE n.seq < :top AND n.parent IS t.parent"
                "  AND (n.parent IS NOT NULL OR n.session_id IN (SELECT session_id FROM kin))"
                " UNION SELECT n.seq FROM nodes n JOIN down ON n.parent = down.seq"
                "  WHERE n.seq < :top)"
                " SELECT max(j.node) FROM down JOIN journals j"
                " ON j.node = down.seq AND j.tokenizer_id = :tokenizer",
                {"top": top, "session": session_id, "tokenizer": tokenizer_id},
            ).fetchone()
        return None if row[0] is None else int(row[0])

    def entries(self, seqs: Iterable[int]) -> dict[int, dict[str, JournalEntry]]:
        """All entries of nodes: node number -> tokenizer -> entry. For export."""
        with self._database.reading() as connection:
            rows = connection.execute(
                "SELECT node, tokenizer_id, keep, checksum, new_ids FROM journals"
                " WHERE node IN (SELECT value FROM json_each(?))",
                (json.dumps(list(seqs)),),
            ).fetchall()
        found: dict[int, dict[str, JournalEntry]] = {}
        for seq, tokenizer_id, keep, checksum, blob in rows:
            if zlib.crc32(blob) == checksum and len(blob) % BYTES_PER_ID == 0:
                entry = JournalEntry(keep, TokenIds.from_bytes(blob))
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
                f"{UP} SELECT a.node, a.namespace_id, a.backend, a.result,"
                " CASE WHEN json_valid(s.fields)"
                "  THEN json_extract(s.fields, '$.\"soft.quantization\"') END"
                " FROM up JOIN answers a ON a.node = up.seq"
                " LEFT JOIN namespaces s ON s.namespace_id = a.namespace_id",
                {"tip": tip, "above": above_turn},
            ).fetchall()
        return {
            seq: AnswerFigures(namespace_id, backend, result, quantization or "")
            for seq, namespace_id, backend, result, quantization in rows
        }

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
        try:
            return Namespace(row[0], row[1], json.loads(row[2]))
        except (ValueError, TypeError):  # damaged: what is in its cache costs time alone
            return Namespace(row[0], row[1], {})
