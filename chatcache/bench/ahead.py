"""A message that was typed for a while: its first token, with and without what idle time did."""

from __future__ import annotations

import threading
import uuid
from dataclasses import dataclass, replace

from chatcache.backends.base import (
    BackendEvent,
    ChatMessage,
    Prepare,
    Prepared,
    SamplingParams,
    TurnFailed,
    TurnFinished,
    TurnPlanned,
    TurnRequest,
    TurnResult,
)
from chatcache.backends.local.engine.client import LocalBackend
from chatcache.errors import UnavailableError
from chatcache.token_ids import NO_IDS, TokenIds

_ANSWER_TOKENS = 4
_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class History:
    """A conversation of one turn that the engine has read: its messages and its journal."""

    messages: tuple[ChatMessage, ...]
    journal: TokenIds


def begin(backend: LocalBackend, text: str) -> History:
    """Have a first message answered. Raises UnavailableError."""
    question = ChatMessage("user", text)
    planned, result = _answered(backend, _request((question,), NO_IDS))
    answer = ChatMessage("assistant", result.text, result.reasoning)
    return History((question, answer), planned.new_ids + result.answer_ids)


def first_token(
    backend: LocalBackend, history: History, draft: str, *, is_prepared: bool
) -> float | None:
    """Seconds from sending `draft` to the first token. Prepared: all but its last word was typed
    before, and the engine was given the time to read it. None: the engine had nothing to do."""
    if is_prepared:
        typed = draft.rsplit(" ", 1)[0]
        request = _request((*history.messages, ChatMessage("user", typed)), history.journal)
        if not _prepare(backend, request):
            return None
    request = _request((*history.messages, ChatMessage("user", draft)), history.journal)
    _, result = _answered(backend, request)
    milliseconds = result.timings.ttft_ms
    return None if milliseconds is None else milliseconds / 1000


def _request(messages: tuple[ChatMessage, ...], journal: TokenIds) -> TurnRequest:
    sampling = SamplingParams(temperature=0.0, max_new_tokens=_ANSWER_TOKENS)
    return replace(
        TurnRequest(uuid.uuid4().hex, messages, journal, sampling), num_read=len(messages) - 1
    )


def _prepare(backend: LocalBackend, request: TurnRequest) -> bool:
    """Let the engine read ahead until it is done; False when it did not begin."""
    done = threading.Event()

    def listen(event: BackendEvent) -> None:
        if isinstance(event, Prepared) and event.prepare_id == wanted.prepare_id:
            done.set()

    wanted = Prepare(uuid.uuid4().hex, "draft", request)
    unsubscribe = backend.subscribe(listen)
    try:
        return backend.prepare(wanted) and done.wait(_SECONDS)
    finally:
        unsubscribe()


def _answered(backend: LocalBackend, request: TurnRequest) -> tuple[TurnPlanned, TurnResult]:
    planned: TurnPlanned | None = None
    for event in backend.ask(request):
        if isinstance(event, TurnFailed):
            raise UnavailableError(f"The engine failed: {event.error}", "Look into its log.")
        if isinstance(event, TurnPlanned):
            planned = event
        if isinstance(event, TurnFinished) and planned is not None:
            return planned, event.result
    raise UnavailableError("The engine gave no answer.", "Look into its log.")
