"""A session as one JSON document, to be kept, moved to another machine, or read by others.

The document holds the path from root to tip: the words, their ids, and the token ids that models
read and produced; a whole one also what stands on other branches. On the way in every message id is
computed again, so words that were altered are noticed. Figures of answers stay behind: they tell of
the machine, not of the conversation.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
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
ALL_FORMAT, ALL_VERSION = "chatcache-sessions", 1  # of a file with the documents of all sessions
MAX_TOKEN_ID = (1 << 31) - 1  # ids are compared as signed 32-bit integers
MAX_CREATED_MS = 253_402_300_799_999  # the end of the year 9999; later is no date

_ROLES = ("system", "user", "assistant")
_FINISH_REASONS = ("stop", "length", "stopped", "loop")


def export_session(
    store: SessionStore, session_id: str, *, is_whole: bool = False
) -> dict[str, Any]:
    """The document of a session; whole: also of what is on other branches of it."""
    row = store.sessions.row(session_id)
    path = store.nodes.path(row.tip)
    beside = store.nodes.beside(session_id, row.tip) if is_whole else []
    entries = store.journals.entries(stored.seq for stored in (*path, *beside))

    def exported(nodes: Sequence[StoredNode]) -> list[dict[str, Any]]:
        return [_exported(stored.node, entries.get(stored.seq, {})) for stored in nodes]

    document = {
        "format": FORMAT,
        "version": FORMAT_VERSION,
        "session": row.name,
        "history_mode": row.history_mode,
        "exported_at": int(time.time()),
        "messages": exported(path),
    }
    if beside:
        parents = [{"parent_id": stored.node.parent_id} for stored in beside]
        pairs = zip(exported(beside), parents, strict=True)
        document["beside"] = [message | parent for message, parent in pairs]
    return document


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
    name, messages, beside = _header(document)
    tell = tell or (lambda done, total: None)
    total = len(messages) + len(beside)
    read: list[tuple[Node, dict[str, JournalEntry]]] = []
    by_id: dict[str | None, Node] = {}
    for number, item in enumerate([*messages, *beside], start=1):
        tell(number, 2 * total)
        parent = read[-1][0] if read else None
        if number > len(messages):
            parent = _parent_beside(item, by_id, number)
        node = _read_node(parent, item, number)
        by_id[node.node_id] = node
        read.append((node, _read_journals(item, number)))
    with store.database.writing():
        session_id = store.create(store.sessions.free_name(name)).session_id
        stored: dict[str | None, StoredNode] = {}
        lengths: dict[str | None, dict[str, int]] = {}
        for number, (node, entries) in enumerate(read, start=total + 1):
            tell(number, 2 * total)
            known = dict(lengths.get(node.parent_id, {}))
            for tokenizer_id, entry in entries.items():
                if entry.keep > known.get(tokenizer_id, 0):
                    raise DamageError(
                        f"The token ids of message {node.node_id} do not follow those before.",
                        "Export the session again.",
                    )
                known[tokenizer_id] = entry.keep + len(entry.new_ids)
            num_tokens = max((known[tokenizer_id] for tokenizer_id in entries), default=None)
            above = store.nodes.insert(node, stored.get(node.parent_id), session_id, num_tokens)
            stored[node.node_id], lengths[node.node_id] = above, known
            for tokenizer_id, entry in entries.items():
                store.journals.write(above.seq, tokenizer_id, entry)
        tip = stored[read[len(messages) - 1][0].node_id].seq if messages else None
        store.sessions.point(session_id, tip)
        if isinstance(document, dict) and document.get("history_mode") == "append":
            store.sessions.set_history_mode(session_id, "append")
    return session_id


def is_here(store: SessionStore, document: object) -> bool:
    """Whether a session ends where that of a document does, and nothing beside it is missing."""
    _, messages, beside = _header(document)
    ids = [item.get("node_id") if isinstance(item, dict) else None for item in messages + beside]
    if not messages or not all(isinstance(node_id, str) for node_id in ids):
        return False
    found = [store.nodes.find(str(node_id)) for node_id in ids]
    tip = found[len(messages) - 1]
    return None not in found and tip is not None and store.sessions.has_tip(tip.seq)


def _header(document: object) -> tuple[str, list[Any], list[Any]]:
    """The name, the messages of the path, and those beside it."""
    if isinstance(document, dict) and document.get("format") == ALL_FORMAT:
        raise UsageError(
            "This file holds many sessions.", "`chatcache sessions import FILE` reads them."
        )
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
    beside = document.get("beside", [])
    if not isinstance(messages, list) or not isinstance(beside, list):
        raise _malformed("it has no list of messages")
    name = document.get("session")
    if not isinstance(name, str) or not one_line(name):
        name = "imported"
    return clean_name(one_line(name, 200)), messages, beside


def _parent_beside(item: object, by_id: Mapping[str | None, Node], number: int) -> Node | None:
    """What a message of another branch follows; None for one that begins a conversation."""
    parent_id = item.get("parent_id") if isinstance(item, dict) else None
    if parent_id is not None and (not isinstance(parent_id, str) or parent_id not in by_id):
        raise _malformed(f"message {number} follows one that is not there")
    return by_id.get(parent_id)


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
