"""What the chat service shows to front ends: small frozen types, no behaviour."""

from __future__ import annotations

from dataclasses import dataclass

from chatcache.backends.base import (
    CostEstimate,
    FinishReason,
    HistoryMode,
    PrefillProgress,
    Role,
    TextDelta,
    TurnPlanned,
    TurnResult,
    TurnWaiting,
)
from chatcache.token_ids import TokenIds


@dataclass(frozen=True, slots=True)
class SessionSummary:
    """One row of the session list. `updated_at` is Unix time; `tokens` is the journal's length;
    `quantization` is how the weights were packed that wrote the last answer."""

    session_id: str
    name: str
    num_turns: int
    num_tokens: int
    model: str | None
    updated_at: float
    forked_from: str | None
    tip: str | None
    preview: str = ""
    history_mode: HistoryMode = "canonical"
    is_pinned: bool = False
    quantization: str = ""


@dataclass(frozen=True, slots=True)
class TranscriptMessage:
    """One message of a path. Turn 0 is the system prompt. `result_json` holds an answer's figures
    (usage, timings, cache, as in `ask --json`), None for other roles; `quantization` is how the
    weights of its model were packed."""

    node_id: str
    turn: int
    role: Role
    text: str
    reasoning: str | None
    model: str | None
    finish_reason: FinishReason | None
    created_at: float
    num_tokens: int
    result_json: str | None = None
    num_siblings: int = 1
    sibling_index: int = 0
    quantization: str = ""


@dataclass(frozen=True, slots=True)
class ForkPoint:
    """A place where a conversation can be forked: after turn `turn` (0: the system prompt alone).

    `cost` is None while nothing is known (no engine, never run on this model).
    """

    turn: int
    user_text: str
    answer_text: str
    num_tokens: int
    cost: CostEstimate | None


@dataclass(frozen=True, slots=True)
class ForkResult:
    session_id: str
    name: str
    forked_from: str
    at_turn: int
    shared_tokens: int
    elapsed_ms: float
    cost: CostEstimate | None


# Events of ChatService.send, in this order: UserMessageSaved, then the backend's TurnPlanned,
# PrefillProgress and TextDelta, then one AnswerSaved. Failures are raised as ChatcacheError after
# whatever had been produced is saved.


@dataclass(frozen=True, slots=True)
class UserMessageSaved:
    """The user's words are on disk; the model has not started."""

    turn: int
    node_id: str


@dataclass(frozen=True, slots=True)
class WaitingForModel:
    """The turn is queued until the engine is ready."""


@dataclass(frozen=True, slots=True)
class AnswerSaved:
    """The answer, whole or stopped, is on disk. `node_id` is None when the turn is not kept;
    `remark` is what somebody should know of it, "" mostly; `quantization` is how the weights of
    the model are packed, "" for exact ones."""

    session_id: str
    session_name: str
    turn: int
    node_id: str | None
    model: str
    backend: str
    result: TurnResult
    remark: str = ""
    quantization: str = ""


ChatEvent = (
    UserMessageSaved
    | WaitingForModel
    | TurnWaiting
    | TurnPlanned
    | PrefillProgress
    | TextDelta
    | AnswerSaved
)


@dataclass(frozen=True, slots=True)
class SearchHit:
    """A session whose name matches (`node_id` None, turn 0), or a message whose text does."""

    session_id: str
    session_name: str
    turn: int
    node_id: str | None
    role: Role | None
    snippet: str


@dataclass(frozen=True, slots=True)
class SessionJournal:
    """The token ids of a session's path, and the namespace that its last answer ran in."""

    namespace_id: str
    tokenizer_id: str
    ids: TokenIds
