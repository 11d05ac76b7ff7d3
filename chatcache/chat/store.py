"""The store of what was said: the transactions in which a conversation grows.

Puts the tables of sessions, nodes, journals, figures and partial answers together: all of a step
is on disk, or none of it. Knows nothing of models: a message comes as text, a turn as token ids
and figures.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

from chatcache.chat.branches import Removal
from chatcache.chat.conversation import (
    Message,
    Node,
    child_of,
    clean_name,
    with_system,
)
from chatcache.chat.database import Database
from chatcache.chat.journal_table import AnswerTable, JournalEntry, JournalTable, Namespace
from chatcache.chat.node_table import NodeTable, StoredNode
from chatcache.chat.partials import Partial, PartialTable
from chatcache.chat.schema import SEARCH_INDEXES
from chatcache.chat.session_table import SessionRow, SessionTable
from chatcache.chat.views import SessionSummary
from chatcache.errors import StorageError
from chatcache.token_ids import TokenIds

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Origin:
    """How an answer was made: what it ran on, its figures, its prompt and answer ids.

    `num_tokens` counts where a backend knows no ids.
    """

    namespace: Namespace
    backend: str
    result_json: str
    prompt_ids: TokenIds
    answer_ids: TokenIds
    num_tokens: int = 0
    question_journal: TokenIds | None = None


class SessionStore:
    """The conversation database in a file. Thread-safe; all failures are StorageError."""

    def __init__(self, path: Path, *, may_be_read_only: bool = False) -> None:
        self.database = Database(path, may_be_read_only=may_be_read_only)
        self.nodes = NodeTable(self.database)
        self.sessions = SessionTable(self.database, self.nodes)
        self.journals = JournalTable(self.database)
        self.answers = AnswerTable(self.database)
        self.partials = PartialTable(self.database)
        self._has_deleted = False
        if not self.database.is_read_only:
            self.recover()

    @property
    def path(self) -> Path:
        return self.database.path

    def close(self) -> None:
        """End the use of the store. May be called again."""
        self.partials.close()
        if self._has_deleted:
            self._has_deleted = False
            self._purge_index()
        self.database.close()

    def _purge_index(self) -> None:
        """Take deleted words out of the search index too: it only marks them, until it is merged.

        Once per process and not per deletion: it reads the whole index.
        """
        try:
            with self.database.writing(is_durable=False) as connection:
                for index in SEARCH_INDEXES:
                    connection.execute(f"INSERT INTO {index}({index}) VALUES ('optimize')")
        except StorageError as error:
            _log.warning("deleted words stay in the search index: %s", error.message)

    def untold(self) -> tuple[str, ...]:
        """What a person should know of this place, each once in the life of the database."""
        if self.database.is_private or self.database.is_read_only:
            return ()
        note = (
            f"{self.path.parent} is on a file system that keeps no permissions: whoever can open it"
            " can read the conversations."
        )
        try:
            with self.database.writing() as connection:
                added = connection.execute("INSERT OR IGNORE INTO told VALUES ('not private')")
                return (note,) if added.rowcount else ()
        except StorageError:
            return ()  # the next thing that is written says why

    def list(self) -> list[SessionSummary]:
        """All sessions, most recently used first."""
        return self.sessions.list()

    def find(self, reference: str) -> SessionSummary:
        """By id, name, or unique id prefix. Raises NotFoundError or UsageError."""
        return self.sessions.find(reference)

    # Sessions

    def create(self, name: str | None = None, system: Message | None = None) -> SessionRow:
        """A new session. Without a name it gets a free one, until its first message names it."""
        with self.database.writing():
            session_id = self.sessions.insert(
                clean_name(name) if name is not None else self.sessions.free_dated_name(),
                is_auto_name=name is None,
            )
            if system is not None:
                root = self.nodes.insert(child_of(None, system), None, session_id)
                self.sessions.point(session_id, root.seq)
            return self.sessions.row(session_id)

    def delete(self, session_id: str) -> int:
        """Delete a session and what no other session reaches. Returns the number of messages."""
        with self.database.writing():
            self.sessions.row(session_id)
            self.sessions.leave(session_id, None, None)
            self.sessions.point(session_id, None)
            num_deleted = self.nodes.delete_reached_only_by(session_id)
            self.sessions.remove(session_id)
        self._has_deleted = True
        return num_deleted

    def remove(self, removal: Removal) -> None:
        """Delete a branch: its messages, the sessions that end in it; the others move."""
        with self.database.writing() as connection:
            for session_id in removal.deleted:
                self.sessions.point(session_id, None)
            for session_id, tip in removal.moved.items():
                self.sessions.leave(session_id, None, None)
                self.sessions.point(session_id, tip)
            connection.executemany(
                "UPDATE nodes SET session_id = ? WHERE seq = ?",
                [(owner, seq) for seq, owner in removal.owners.items()],
            )
            # The last first: nothing below a message may be left when it goes.
            connection.executemany(
                "DELETE FROM nodes WHERE seq = ?", [(seq,) for seq in removal.nodes]
            )
            for session_id in removal.deleted:
                self.sessions.remove(session_id)
        self._has_deleted = True

    def fork(self, source: SessionRow, tip: int | None, name: str | None) -> SessionRow:
        """A new session at `tip`: one row, nothing copied."""
        chosen = (
            clean_name(name)
            if name is not None
            else self.sessions.free_name(f"{source.name} (fork)")
        )
        # Not flushed to the platter at once: a fork has no words of its own to lose.
        with self.database.writing(is_durable=False):
            session_id = self.sessions.insert(
                chosen,
                tip=tip,
                forked_from=source.session_id,
                history_mode=source.history_mode,
            )
        return self.sessions.row(session_id)

    # Messages

    def add_user(
        self, session_id: str, parent: StoredNode | None, message: Message, seen: int | None
    ) -> StoredNode:
        """Write a user message below `parent` and move the tip, last seen at `seen`, to it."""
        with self.database.writing():
            row = self.sessions.row(session_id)
            if parent is not None and not self.nodes.exists(parent.seq):
                raise self.sessions.not_found(session_id)
            node = child_of(parent.node if parent else None, message)
            stored = self.nodes.insert(node, parent, session_id)
            self.sessions.name_after(row, message.text)
            self.sessions.move_tip(session_id, seen, stored.seq)
            return stored

    def add_edited(
        self, session_id: str, old: StoredNode, message: Message, seen: int
    ) -> StoredNode:
        """Write `message` beside the user message `old`; the old branch becomes a session."""
        with self.database.writing():
            row = self.sessions.row(session_id)
            parent = self.nodes.get(old.parent_seq) if old.parent_seq is not None else None
            stored = self.add_user(session_id, parent, message, seen)
            branch = self.sessions.insert(
                self.sessions.free_name(f"{row.name} (before edit)"),
                tip=seen,
                forked_from=session_id,
                is_current=False,
                history_mode=row.history_mode,
            )
            self.nodes.give_branch(old.seq, session_id, branch)
            self.sessions.leave(session_id, seen, "turn_edited")
            return stored

    def set_system(self, session_id: str, system: Message | None, seen: int | None) -> None:
        """Put the session on a copy of its path with another system prompt."""
        with self.database.writing():
            path = self.nodes.path(seen)
            old = [stored for stored in path if stored.node.role != "system"]
            nodes = with_system([stored.node for stored in path], system)
            new = self.nodes.insert_below(nodes, None, session_id)
            for source, target in zip(old, new[len(new) - len(old) :], strict=True):
                self.nodes.set_num_tokens(target.seq, source.num_tokens)
                self.answers.copy(source.seq, target.seq)
            self.sessions.move_tip(session_id, seen, new[-1].seq if new else None)
            if old:
                self.sessions.leave(session_id, seen, "system_prompt_changed")

    # Turns

    def plan_turn(self, question: StoredNode, tokenizer_id: str, entry: JournalEntry) -> bool:
        """Keep what the model reads up to and including a user message; False when that is known
        already, perhaps otherwise."""
        with self.database.writing():
            if not self.nodes.exists(question.seq):
                return False
            self.nodes.set_num_tokens(question.seq, entry.keep + len(entry.new_ids))
            return self.journals.write(question.seq, tokenizer_id, entry)

    def add_answer(
        self,
        session_id: str,
        question: StoredNode,
        message: Message,
        seen: int,
        origin: Origin | None,
        num_tokens: int = 0,
    ) -> StoredNode:
        """Write the answer to `question` and move the tip to it, all in one transaction.

        `origin` is None when only the text is known. Raises NotFoundError when the session was
        deleted meanwhile.
        """
        with self.database.writing():
            self.sessions.row(session_id)
            if not self.nodes.exists(question.seq):
                raise self.sessions.not_found(session_id)
            node = child_of(question.node, message)
            if origin is None:
                total = self.nodes.get(question.seq).num_tokens + num_tokens
                stored = self.nodes.insert(node, question, session_id, total)
            else:
                stored = self._insert_answer(session_id, question, node, origin)
            self.partials.remove(question.seq)
            self.sessions.move_tip(session_id, seen, stored.seq)
            self.sessions.leave(session_id, None, None)
            return stored

    def _insert_answer(
        self, session_id: str, question: StoredNode, node: Node, origin: Origin
    ) -> StoredNode:
        ids = origin.prompt_ids + origin.answer_ids
        tokenizer_id = origin.namespace.tokenizer_id
        stored = self.nodes.insert(node, question, session_id, len(ids) or origin.num_tokens)
        if ids:
            # The prompt may differ from the question's own journal: another template option, or
            # an answer that was continued.
            known = origin.question_journal
            if known is None:
                known = self.journals.journal(question.seq, tokenizer_id)
            keep = known.common_prefix(ids)
            self.journals.write(stored.seq, tokenizer_id, JournalEntry(keep, ids[keep:]))
        self.answers.write(stored.seq, origin.namespace, origin.backend, origin.result_json)
        return stored

    def recover(self) -> int:
        """Turn the partial answers of processes that were killed into nodes; returns how many."""
        abandoned = self.partials.abandoned()
        for partial in abandoned:
            with self.database.writing():
                self._recover(partial)
        return len(abandoned)

    def _recover(self, partial: Partial) -> None:
        if not self.partials.claim(partial):
            return
        tip = self.sessions.tip(partial.session_id)
        question = self.nodes.get(partial.question_seq)
        stored = self.nodes.insert(
            child_of(question.node, partial.message),
            question,
            partial.session_id,
            question.num_tokens + partial.num_tokens,
        )
        if tip == question.seq:
            self.sessions.point(partial.session_id, stored.seq)
