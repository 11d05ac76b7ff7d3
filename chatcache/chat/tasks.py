"""What a turn needs to know, gathered from the store: messages, journal, and what was left behind.

Owns `TurnTask`, what is to be answered, and the request that a backend is asked for it. Writes
nothing.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from chatcache.backends.base import (
    ChatMessage,
    HistoryMode,
    ModelInfo,
    PreviousTurn,
    SamplingParams,
    TurnRequest,
)
from chatcache.chat.conversation import Message, Node, messages_for_model, replace_unstorable
from chatcache.chat.journal_table import PathJournal
from chatcache.chat.node_table import StoredNode
from chatcache.chat.session_table import Cause
from chatcache.chat.store import SessionStore
from chatcache.token_ids import NO_IDS


@dataclass(frozen=True, slots=True)
class TurnOptions:
    """How a turn is answered."""

    sampling: SamplingParams = field(default_factory=SamplingParams)
    think: bool | None = None
    use_cache: bool = True


@dataclass(frozen=True, slots=True)
class TurnTask:
    """A turn to be answered.

    question: the user message to answer; None when nothing is kept. seen: the tip that the answer
    replaces. journal_tip: whose journal the prompt continues. continued: the cut-off answer that
    goes on. left_*: the line that the session has just left, and why. num_read_at: for each answer
    on the path, by node number, how many of the messages there are up to it.
    """

    session_id: str
    session_name: str
    turn: int
    messages: tuple[ChatMessage, ...]
    options: TurnOptions
    question: StoredNode | None = None
    seen: int | None = None
    journal_tip: int | None = None
    continued: Message | None = None
    left_tip: int | None = None
    left_cause: Cause | None = None
    history_mode: HistoryMode = "canonical"
    num_read_at: Mapping[int, int] = field(default_factory=dict)


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
        num_read_at=_num_read_at(path),
    )


def unsaved_task(
    store: SessionStore,
    session_id: str,
    tip: int | None,
    text: str,
    options: TurnOptions,
    system: str | None,
) -> TurnTask:
    """Answer `text` after the path to `tip` in a session ("": after nothing), keeping nothing."""
    row = store.sessions.row(session_id) if session_id else None
    stored = store.nodes.path(tip)
    path = [stored_node.node for stored_node in stored]
    prompt = system_message(system)
    first = (ChatMessage("system", prompt.text),) if prompt and not path else ()
    question = Node("", None, (path[-1].turn if path else 0) + 1, user_message(text))
    return TurnTask(
        session_id=session_id,
        session_name=row.name if row else "",
        turn=question.turn,
        messages=first + messages_for_model([*path, question]),
        options=options,
        journal_tip=tip,
        history_mode=row.history_mode if row else "canonical",
        num_read_at=_num_read_at(stored),
    )


def read_journal(store: SessionStore, task: TurnTask, info: ModelInfo) -> PathJournal:
    """What is known of the path of a task, its question included: all that a turn reads of it."""
    is_new = task.question is not None and task.continued is None
    tip = task.question.seq if task.question is not None and is_new else task.journal_tip
    return store.journals.along(tip, info.tokenizer_id)


def journal_before(task: TurnTask, path: PathJournal) -> PathJournal:
    """The part of it that the prompt goes on from."""
    if task.question is None or task.continued is not None:
        return path
    return path.without(task.question.seq)


def turn_request(
    store: SessionStore, task: TurnTask, info: ModelInfo, path: PathJournal
) -> TurnRequest:
    """What the backend is asked for a task; `path` is from `read_journal`.

    In append mode the prompt goes on from the last answer that was produced: what was read behind
    it (a question without an answer) is written anew.
    """
    before, answers = journal_before(task, path), task.num_read_at
    answer = before.last_of(answers)
    journal, num_read = before.ids, 0
    num_answered = before.lengths[answer] if answer is not None else 0
    if task.history_mode == "append":
        journal = before.up_to(answer) if answer is not None else NO_IDS
        num_read = answers[answer] if answer is not None else 0
    elif task.journal_tip is None or task.journal_tip in answers:
        num_answered = len(journal)
    # Else the model may have been stopped on the way through a question without an answer.
    return TurnRequest(
        turn_id=uuid.uuid4().hex,
        messages=task.messages,
        journal=journal,
        sampling=task.options.sampling,
        think=task.options.think,
        use_cache=task.options.use_cache,
        continue_answer=task.continued is not None,
        previous=_previous_turn(store, task, info),
        history_mode=task.history_mode,
        num_read=num_read,
        num_answered=num_answered,
    )


def _previous_turn(store: SessionStore, task: TurnTask, info: ModelInfo) -> PreviousTurn | None:
    namespace = store.answers.last_namespace(task.journal_tip)
    if namespace is None and task.left_tip is not None:
        namespace = store.answers.last_namespace(task.left_tip)
    if namespace is None and task.left_cause is None:
        return None
    left = NO_IDS
    if task.left_tip is not None:
        left = store.journals.journal(task.left_tip, info.tokenizer_id)
    return PreviousTurn(
        namespace=namespace.fields if namespace else info.namespace_fields,
        cause=task.left_cause,
        journal=left,
    )


def _num_read_at(path: Sequence[StoredNode]) -> dict[int, int]:
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
