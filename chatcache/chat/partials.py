"""Answers in the making: what had been said when the process was killed.

Owns the `partials` table: one row per answer that is being streamed, rewritten about once a
second. A row whose process is gone is an answer that was cut off; the store turns it into a node.
Knows how to tell whether a process still lives, and nothing of sessions.
"""

from __future__ import annotations

import os
import secrets
import time
from dataclasses import dataclass

from chatcache.chat.conversation import Message
from chatcache.chat.database import Database
from chatcache.checks import typed_number
from chatcache.processes import is_running, start_time

# Where the start of a process cannot be read, a row this old belongs to nobody.
STALE_SECONDS = 120.0

# Rows of this process that are still being written, so that two stores in it do not mix them up.
_living_tokens: set[str] = set()


@dataclass(frozen=True, slots=True)
class Partial:
    """A cut-off answer to the user message `question_seq`."""

    question_seq: int
    session_id: str
    num_tokens: int
    message: Message
    owner: str = ""


class PartialTable:
    """Reads and writes partial answers. Writes join the transaction of the caller."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._token = secrets.token_hex(8)
        self._owner = f"{os.getpid()}:{start_time(os.getpid())}:{self._token}"
        _living_tokens.add(self._token)

    def write(self, partial: Partial) -> None:
        """Keep the text so far. Survives a kill; a power cut may take the last second."""
        message = partial.message
        with self._database.writing(is_durable=False) as connection:
            connection.execute(
                "INSERT OR REPLACE INTO partials (node, session_id, text, reasoning, model,"
                " num_tokens, created_ms, updated_ms, owner)"
                " SELECT ?, ?, ?, ?, ?, ?, ?, ?, ? WHERE EXISTS (SELECT 1 FROM nodes WHERE seq = ?)"
                " AND EXISTS (SELECT 1 FROM sessions WHERE session_id = ?)",
                (
                    partial.question_seq,
                    partial.session_id,
                    message.text,
                    message.reasoning,
                    message.model,
                    partial.num_tokens,
                    message.created_ms,
                    time.time_ns() // 1_000_000,
                    self._owner,
                    partial.question_seq,
                    partial.session_id,
                ),
            )

    def remove(self, question_seq: int) -> None:
        """Forget what this store has written for a question."""
        with self._database.writing() as connection:
            connection.execute(
                "DELETE FROM partials WHERE node = ? AND owner = ?", (question_seq, self._owner)
            )

    def claim(self, partial: Partial) -> bool:
        """Take an abandoned row away; False when another process was faster."""
        with self._database.writing() as connection:
            cursor = connection.execute(
                "DELETE FROM partials WHERE node = ? AND owner = ?",
                (partial.question_seq, partial.owner),
            )
            return cursor.rowcount > 0

    def abandoned(self) -> list[Partial]:
        """The partial answers that no living process is writing."""
        with self._database.reading() as connection:
            rows = connection.execute(
                "SELECT node, session_id, num_tokens, text, reasoning, model, created_ms,"
                " updated_ms, owner FROM partials ORDER BY node"
            ).fetchall()
        found = []
        for seq, session_id, num_tokens, text, reasoning, model, created, updated, owner in rows:
            if not _is_alive(owner, updated / 1000.0):
                message = Message("assistant", text, reasoning, model, "stopped", created)
                found.append(Partial(seq, session_id, num_tokens, message, owner))
        return found

    def close(self) -> None:
        """From now on the rows of this store are abandoned."""
        _living_tokens.discard(self._token)


def _is_alive(owner: str, updated_at: float) -> bool:
    pid_text, _, rest = owner.partition(":")
    start, _, token = rest.partition(":")
    pid = typed_number(pid_text) or 0
    if pid == os.getpid() and start == start_time(pid):
        return token in _living_tokens
    if os.name == "posix":
        if not is_running(pid):
            return False
        if start:
            return start == start_time(pid)
    return time.time() - updated_at < STALE_SECONDS
