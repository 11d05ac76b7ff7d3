"""What a turn needs to know, gathered from the store: messages, journal, and what was left behind.

Builds `TurnTask`s; says and writes nothing.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

from chatcache.backends.base import ChatMessage
from chatcache.chat.conversation import Message, Node, messages_for_model, replace_unstorable
from chatcache.chat.node_table import StoredNode
from chatcache.chat.store import SessionStore
from chatcache.chat.turns import TurnOptions, TurnTask


def answer_task(
    store: SessionStore,
    session_id: str,
    question: StoredNode,
    seen: int,
    options: TurnOptions,
    continued: StoredNode | None = None,
) -> TurnTask:
    """Answer a question that is on disk, or go on with the answer `continued`."""
    row = store.sessions.row(session_id)
    last = continued or question
    path = store.nodes.path(last.seq)
    return TurnTask(
        session_id=session_id,
        session_name=row.name,
        turn=question.node.turn,
        messages=messages_for_model(stored.node for stored in path),
        options=options,
        question=question,
        seen=seen,
        journal_tip=continued.seq if continued else question.parent_seq,
        continued=continued.node.message if continued else None,
        left_tip=row.left_tip,
        left_cause=row.left_cause,
        history_mode=row.history_mode,
        num_read_at=num_read_at(path),
    )


def unsaved_task(
    store: SessionStore, session_id: str, text: str, options: TurnOptions, system: str | None
) -> TurnTask:
    """Answer `text` after the path of a session ("": after nothing), keeping nothing."""
    row = store.sessions.row(session_id) if session_id else None
    stored = store.nodes.path(row.tip) if row else []
    path = [one.node for one in stored]
    prompt = system_message(system)
    first = (ChatMessage("system", prompt.text),) if prompt and not path else ()
    question = Node("", None, (path[-1].turn if path else 0) + 1, user_message(text))
    return TurnTask(
        session_id=session_id,
        session_name=row.name if row else "",
        turn=question.turn,
        messages=first + messages_for_model([*path, question]),
        options=options,
        journal_tip=row.tip if row else None,
        history_mode=row.history_mode if row else "canonical",
        num_read_at=num_read_at(stored),
    )


def num_read_at(path: Sequence[StoredNode]) -> dict[int, int]:
    """For each answer on a path, by node number: how many messages a template gets up to it."""
    counts: dict[int, int] = {}
    num_messages, last = 0, ""
    for stored in path:
        role = stored.node.role
        num_messages += not (last == role == "user")
        last = role
        if role == "assistant":
            counts[stored.seq] = num_messages
    return counts


def user_message(text: str) -> Message:
    """A user message said now."""
    return Message("user", text, created_ms=_now_ms())


def system_message(text: str | None) -> Message | None:
    """A system prompt said now; white space alone is none."""
    if text is None or not text.strip():
        return None
    return Message("system", replace_unstorable(text), created_ms=_now_ms())


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
