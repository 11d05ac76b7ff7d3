"""A session as one JSON document, to be kept, moved to another machine, or read by others.

The document holds the path from root to tip: the words, their ids, and the token ids that models
read and produced. On the way in every message id is computed again, so words that were altered are
noticed. Figures of answers stay behind: they tell of the machine, not of the conversation.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, TypeGuard

from chatcache.chat.conversation import (
    Message,
    Node,
    child_of,
    clean_name,
    one_line,
    order_problem,
    replace_unstorable,
)
from chatcache.chat.journal_table import JournalEntry
from chatcache.chat.node_table import StoredNode
from chatcache.chat.store import SessionStore
from chatcache.errors import DamageError, UsageError
from chatcache.token_ids import TokenIds

FORMAT = "chatcache-session"
FORMAT_VERSION = 1
MAX_TOKEN_ID = (1 << 31) - 1  # ids are compared as signed 32-bit integers
MAX_CREATED_MS = 253_402_300_799_999  # the end of the year 9999; later is no date

_ROLES = ("system", "user", "assistant")
_FINISH_REASONS = ("stop", "length", "stopped", "loop")


def export_session(store: SessionStore, session_id: str) -> dict[str, Any]:
    """The document of a session."""
    row = store.sessions.row(session_id)
    entries = store.journals.entries(row.tip)
    return {
        "format": FORMAT,
        "version": FORMAT_VERSION,
        "session": row.name,
        "history_mode": row.history_mode,
        "exported_at": int(time.time()),
        "messages": [
            _exported(stored.node, entries.get(stored.seq, {}))
            for stored in store.nodes.path(row.tip)
        ],
    }


def _exported(node: Node, entries: dict[str, JournalEntry]) -> dict[str, Any]:
    message = node.message
    return {
        "node_id": node.node_id,
        "turn": node.turn,
        "role": message.role,
        "text": message.text,
        "reasoning": message.reasoning,
        "model": message.model,
        "finish_reason": message.finish_reason,
        "created_ms": message.created_ms,
        "journals": {
            tokenizer_id: {"keep": entry.keep, "new_ids": entry.new_ids.to_list()}
            for tokenizer_id, entry in entries.items()
        },
    }


def import_session(
    store: SessionStore, document: object, tell: Callable[[int, int], None] | None = None
) -> str:
    """A new session from a document; returns its id. All of it is stored, or nothing.

    `tell` hears the steps done of all; what it raises ends the import.

    Raises UsageError when it is not such a document, DamageError when its words do not have the
    ids that are written beside them.
    """
    name, messages = _header(document)
    tell = tell or (lambda done, total: None)
    nodes: list[tuple[Node, dict[str, JournalEntry]]] = []
    parent: Node | None = None
    for number, item in enumerate(messages, start=1):
        tell(number, 2 * len(messages))
        parent = _read_node(parent, item, number)
        nodes.append((parent, _read_journals(item, number)))
    with store.database.writing():
        session_id = store.create(store.sessions.free_name(name)).session_id
        above: StoredNode | None = None
        lengths: dict[str, int] = {}
        for number, (node, entries) in enumerate(nodes, start=len(messages) + 1):
            tell(number, 2 * len(messages))
            for tokenizer_id, entry in entries.items():
                if entry.keep > lengths.get(tokenizer_id, 0):
                    raise DamageError(
                        f"The token ids of message {node.node_id} do not follow those before.",
                        "Export the session again.",
                    )
                lengths[tokenizer_id] = entry.keep + len(entry.new_ids)
            num_tokens = max((lengths[tokenizer_id] for tokenizer_id in entries), default=None)
            above = store.nodes.insert(node, above, session_id, num_tokens)
            for tokenizer_id, entry in entries.items():
                store.journals.write(above.seq, tokenizer_id, entry)
        store.sessions.point(session_id, above.seq if above else None)
        if isinstance(document, dict) and document.get("history_mode") == "append":
            store.sessions.set_history_mode(session_id, "append")
    return session_id


def _header(document: object) -> tuple[str, list[Any]]:
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise UsageError(
            "This is not an exported chatcache session.",
            "Give a file that `chatcache sessions export` has written.",
        )
    version, messages = document.get("version"), document.get("messages")
    if version != FORMAT_VERSION:
        raise UsageError(
            f"The session was exported in format {version}, this chatcache knows {FORMAT_VERSION}.",
            "Import it with the chatcache that wrote it, or a newer one.",
        )
    if not isinstance(messages, list):
        raise _malformed("it has no list of messages")
    name = document.get("session")
    if not isinstance(name, str) or not one_line(name):
        name = "imported"
    return clean_name(one_line(name, 200)), messages


def _read_node(parent: Node | None, item: object, number: int) -> Node:
    if not isinstance(item, dict):
        raise _malformed(f"message {number} is not an object")
    role, text, created_ms = item.get("role"), item.get("text"), item.get("created_ms")
    finish_reason = item.get("finish_reason")
    is_time = _is_whole(created_ms, MAX_CREATED_MS)
    if role not in _ROLES or not isinstance(text, str) or not is_time:
        raise _malformed(f"message {number} lacks a role, a text or a time")
    if finish_reason is not None and finish_reason not in _FINISH_REASONS:
        raise _malformed(f"message {number} has the finish reason {finish_reason!r}")
    for field in ("reasoning", "model"):
        value = item.get(field)
        if value is not None and (not isinstance(value, str) or replace_unstorable(value) != value):
            raise _malformed(f"message {number} has an unreadable {field}")
    if problem := order_problem(parent.role if parent else None, role):
        raise _malformed(f"in message {number}, {problem}")
    message = Message(
        role, text, item.get("reasoning"), item.get("model"), finish_reason, int(created_ms or 0)
    )
    if replace_unstorable(text) != text:
        raise _malformed(f"message {number} has characters that cannot be stored")
    node = child_of(parent, message)
    if node.node_id != item.get("node_id"):
        raise DamageError(
            f"Message {number} (turn {node.turn}) is not what was exported: its id does not match.",
            "The file was altered or damaged. Export the session again.",
        )
    return node


def _read_journals(item: dict[str, Any], number: int) -> dict[str, JournalEntry]:
    journals = item.get("journals", {})
    if not isinstance(journals, dict):
        raise _malformed(f"message {number} has unreadable token ids")
    entries = {}
    for tokenizer_id, entry in journals.items():
        keep = entry.get("keep") if isinstance(entry, dict) else None
        new_ids = entry.get("new_ids") if isinstance(entry, dict) else None
        if replace_unstorable(tokenizer_id) != tokenizer_id:
            raise _malformed(f"message {number} has token ids of an unreadable tokenizer")
        if not _is_id(keep) or not isinstance(new_ids, list) or not all(map(_is_id, new_ids)):
            raise _malformed(f"message {number} has unreadable token ids")
        entries[tokenizer_id] = JournalEntry(keep, TokenIds(new_ids))
    return entries


def _is_id(value: object) -> TypeGuard[int]:
    return _is_whole(value, MAX_TOKEN_ID)


def _is_whole(value: object, high: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= high


def _malformed(what: str) -> UsageError:
    return UsageError(f"The exported session cannot be read: {what}.", "Export it again.")
