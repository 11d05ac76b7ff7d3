"""The rows of the sessions: names, tips, and when they were last used.

Owns the `sessions` table, the only rows of the conversation database that change. A session is a
name and a pointer (tip) into the tree; what lies behind the pointer is the tree's business.

Several processes may use one database. A tip is moved only from where the writer last saw it; when
it has gone on meanwhile, both lines stay: the session follows the newest, and the other line
becomes a session named "NAME (other window)".
"""

from __future__ import annotations

import secrets
import time
from dataclasses import dataclass
from typing import Literal

from chatcache.backends.base import HistoryMode
from chatcache.chat.conversation import (
    AUTO_NAME_LENGTH,
    MAX_NAME_LENGTH,
    clean_name,
    name_from,
    one_line,
)
from chatcache.chat.database import Database, Row
from chatcache.chat.node_table import NodeTable
from chatcache.chat.views import SessionSummary
from chatcache.errors import NotFoundError, UsageError, did_you_mean

ID_PREFIX = "s_"
PREVIEW_LENGTH = 120

Cause = Literal["system_prompt_changed", "turn_edited"]

_SUMMARY = (
    "SELECT s.session_id, s.name, n.turn, n.num_tokens, n.path_model, s.updated_us, s.forked_from,"
    f" n.node_id, substr(n.text, 1, {PREVIEW_LENGTH}), s.history_mode, s.is_pinned,"
    " (SELECT json_extract(k.fields, '$.\"soft.quantization\"') FROM answers a JOIN namespaces k"
    "  ON k.namespace_id = a.namespace_id WHERE a.node = s.tip AND json_valid(k.fields))"
    " FROM sessions s LEFT JOIN nodes n ON n.seq = s.tip"
)
_NEWEST = " ORDER BY s.updated_us DESC, s.number DESC"


@dataclass(frozen=True, slots=True)
class SessionRow:
    """A session as stored. `left_*`: the line it left, and why, until the next answer."""

    session_id: str
    name: str
    is_auto_name: bool
    tip: int | None
    left_tip: int | None
    left_cause: Cause | None
    history_mode: HistoryMode = "canonical"


def now_us() -> int:
    return time.time_ns() // 1000


class SessionTable:
    """Reads and writes session rows. Writes join the transaction of the caller."""

    def __init__(self, database: Database, nodes: NodeTable) -> None:
        self._database = database
        self._nodes = nodes

    def list(self, limit: int = -1) -> list[SessionSummary]:
        """The sessions, most recently used first, in one query."""
        with self._database.reading() as connection:
            rows = connection.execute(f"{_SUMMARY}{_NEWEST} LIMIT ?", (limit,)).fetchall()
        return [_summary(row) for row in rows]

    def summary(self, session_id: str) -> SessionSummary:
        """One row of the list. Raises NotFoundError."""
        with self._database.reading() as connection:
            row = connection.execute(f"{_SUMMARY} WHERE s.session_id = ?", (session_id,)).fetchone()
        if row is None:
            raise self.not_found(session_id)
        return _summary(row)

    def find(self, reference: str) -> SessionSummary:
        """By id, name, or unique id prefix. Of several with one name: the last used.

        Raises NotFoundError, and UsageError for a prefix that several ids share.
        """
        # A name is found by what it was made from.
        reference = one_line(reference)
        with self._database.reading() as connection:
            row = connection.execute(
                f"{_SUMMARY} WHERE s.session_id = :ref OR s.name = :ref"
                " ORDER BY s.session_id = :ref DESC, s.updated_us DESC, s.number DESC LIMIT 1",
                {"ref": reference},
            ).fetchone()
            if row is not None:
                return _summary(row)
            if not reference.startswith(ID_PREFIX) or reference == ID_PREFIX:
                raise self.not_found(reference)
            rows = connection.execute(
                f"{_SUMMARY} WHERE substr(s.session_id, 1, ?) = ?{_NEWEST} LIMIT 4",
                (len(reference), reference),
            ).fetchall()
        if not rows:
            raise self.not_found(reference)
        if len(rows) > 1:
            some = ", ".join(f"{row[0]} ({row[1]})" for row in rows[:3])
            raise UsageError(
                f"{reference!r} is the beginning of several session ids: {some}.",
                "Give more of the id, or the name.",
            )
        return _summary(rows[0])

    def not_found(self, reference: str) -> NotFoundError:
        with self._database.reading() as connection:
            names = [
                name for (name,) in connection.execute(f"SELECT s.name FROM sessions s{_NEWEST}")
            ]
        hint = did_you_mean(reference, names[:2000])
        if not hint:
            hint = "`chatcache sessions list` shows them." if names else "There are none yet."
        return NotFoundError(f"There is no session {reference!r}.", hint)

    def row(self, session_id: str) -> SessionRow:
        """A session as stored. Raises NotFoundError."""
        with self._database.reading() as connection:
            row = connection.execute(
                "SELECT session_id, name, is_auto_name, tip, left_tip, left_cause, history_mode"
                " FROM sessions WHERE session_id = ?",
                (session_id,),
            ).fetchone()
        if row is None:
            raise self.not_found(session_id)
        return SessionRow(row[0], row[1], bool(row[2]), *row[3:])

    def tip(self, session_id: str) -> int | None:
        """Where a session points now. Raises NotFoundError."""
        return self.row(session_id).tip

    def has_tip(self, seq: int) -> bool:
        """Whether a session points at this node."""
        with self._database.reading() as connection:
            sql = "SELECT 1 FROM sessions WHERE tip = ? LIMIT 1"
            return connection.execute(sql, (seq,)).fetchone() is not None

    def insert(
        self,
        name: str,
        *,
        tip: int | None = None,
        forked_from: str | None = None,
        is_auto_name: bool = False,
        is_other: bool = False,
        is_current: bool = True,
        history_mode: HistoryMode = "canonical",
    ) -> str:
        """A new row; returns its id. Not current: listed below what is used right now."""
        session_id = ID_PREFIX + secrets.token_hex(6)
        now = now_us()
        with self._database.writing() as connection:
            connection.execute(
                "INSERT INTO sessions (session_id, name, is_auto_name, tip, forked_from, is_other,"
                " created_ms, updated_us, history_mode) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (
                    session_id,
                    name,
                    is_auto_name,
                    tip,
                    forked_from,
                    is_other,
                    now // 1000,
                    now if is_current else now - 1,
                    history_mode,
                ),
            )
        return session_id

    def free_name(self, base: str, limit: int = MAX_NAME_LENGTH) -> str:
        """`base`, or the first of "base (2)", "base (3)", … that no session has."""
        name, number = base[:limit], 1
        with self._database.reading() as connection:
            while connection.execute("SELECT 1 FROM sessions WHERE name = ?", (name,)).fetchone():
                number += 1
                suffix = f" ({number})"
                name = base[: limit - len(suffix)].rstrip() + suffix
        return name

    def free_dated_name(self) -> str:
        """A name for a conversation that has not begun."""
        return self.free_name(time.strftime("chat %Y-%m-%d %H:%M"))

    def rename(self, session_id: str, name: str) -> None:
        cleaned = clean_name(name)
        with self._database.writing() as connection:
            self.row(session_id)
            connection.execute(
                "UPDATE sessions SET name = ?, is_auto_name = 0, is_other = 0 WHERE session_id = ?",
                (cleaned, session_id),
            )

    def set_history_mode(self, session_id: str, mode: HistoryMode) -> None:
        with self._database.writing() as connection:
            self.row(session_id)
            connection.execute(
                "UPDATE sessions SET history_mode = ? WHERE session_id = ?", (mode, session_id)
            )

    def set_pinned(self, session_id: str, is_pinned: bool) -> None:
        with self._database.writing() as connection:
            self.row(session_id)
            connection.execute(
                "UPDATE sessions SET is_pinned = ? WHERE session_id = ?", (is_pinned, session_id)
            )

    def point(self, session_id: str, tip: int | None) -> None:
        with self._database.writing() as connection:
            connection.execute(
                "UPDATE sessions SET tip = ?, updated_us = ? WHERE session_id = ?",
                (tip, now_us(), session_id),
            )

    def leave(self, session_id: str, left_tip: int | None, cause: Cause | None) -> None:
        with self._database.writing() as connection:
            connection.execute(
                "UPDATE sessions SET left_tip = ?, left_cause = ? WHERE session_id = ?",
                (left_tip, cause, session_id),
            )

    def move_tip(self, session_id: str, seen: int | None, new: int | None) -> None:
        """Let the session point at `new`, when its tip was last seen at `seen`."""
        with self._database.writing():
            row = self.row(session_id)
            if row.tip is not None and row.tip not in (seen, new):
                self._keep_other_window(row, row.tip, seen, new)
            self.point(session_id, new)

    def _keep_other_window(
        self, row: SessionRow, displaced: int, seen: int | None, new: int | None
    ) -> None:
        """Another process has moved the tip to `displaced`: keep that line in a session."""
        if self._nodes.is_on_path(displaced, new):
            return
        with self._database.writing() as connection:
            if connection.execute(
                "SELECT 1 FROM sessions WHERE tip = ? AND session_id <> ?",
                (displaced, row.session_id),
            ).fetchone():
                return
            # The line that now goes on had been put aside: the two change places.
            put_aside = connection.execute(
                "UPDATE sessions SET tip = ? WHERE number = (SELECT number FROM sessions"
                " WHERE forked_from = ? AND is_other AND tip = ? LIMIT 1)",
                (displaced, row.session_id, seen),
            )
        if not put_aside.rowcount:
            self.insert(
                self.free_name(f"{row.name} (other window)"),
                tip=displaced,
                forked_from=row.session_id,
                is_other=True,
                is_current=False,
                history_mode=row.history_mode,
            )

    def name_after(self, row: SessionRow, text: str) -> None:
        """Name a session that has no name of its own after its first message."""
        name = name_from(text)
        if not row.is_auto_name or not name:
            return
        with self._database.writing() as connection:
            connection.execute(
                "UPDATE sessions SET name = ?, is_auto_name = 0 WHERE session_id = ?",
                (self.free_name(name, AUTO_NAME_LENGTH), row.session_id),
            )

    def remove(self, session_id: str) -> None:
        with self._database.writing() as connection:
            connection.execute("DELETE FROM sessions WHERE session_id = ?", (session_id,))


def _summary(row: Row) -> SessionSummary:
    session_id, name, turn, num_tokens, model, updated_us, forked_from, node_id, text, *flags = row
    mode, is_pinned, quantization = flags
    preview = text or ""
    if not preview.isprintable():
        preview = "".join(char if char.isprintable() else " " for char in preview)
    return SessionSummary(
        session_id,
        name,
        turn or 0,
        num_tokens or 0,
        model,
        updated_us / 1e6,
        forked_from,
        node_id,
        preview,
        mode,
        bool(is_pinned),
        quantization or "",
    )
