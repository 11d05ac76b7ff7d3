"""A path as messages that a server takes: the one place where words become what is sent.

Owns what is left out (messages without words, which many servers refuse for ever), what is joined
and folded, and where reasoning is handed back. The same path gives the same bytes each turn, as
long as nothing new is learned of the server. Pure.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from chatcache.backends.base import ChatMessage, TurnRequest
from chatcache.backends.remote.dialect import Dialect

PREFIX = "prefix"
DETAILS = "reasoning_details"
_SPEAKERS = {"user": "User", "assistant": "Assistant", "system": "System"}


def is_continued(request: TurnRequest) -> bool:
    """Does the model go on in the middle of an answer? One that is all reasoning is begun anew."""
    return request.continue_answer and bool(request.messages[-1].text.strip())


def sendable(
    request: TurnRequest, dialect: Dialect, *, as_one: bool = False
) -> list[dict[str, Any]]:
    """The messages of a request. `as_one`: told in one, for a server that refuses them apart."""
    messages = list(request.messages)
    if request.continue_answer and not is_continued(request):
        del messages[-1]
    messages = _joined([message for message in messages if message.text.strip()])
    messages = messages or list(request.messages[-1:])
    if as_one:
        messages = _told(messages)
    elif dialect.folds_system:
        messages = _folded(messages)
    written = [_written(message, dialect) for message in messages]
    if is_continued(request) and dialect.marks_prefix and not as_one:
        written[-1][PREFIX] = True
    return written


def _joined(messages: Sequence[ChatMessage]) -> list[ChatMessage]:
    """Neighbours of one role become one: what stood between them had no words."""
    joined: list[ChatMessage] = []
    for message in messages:
        if joined and joined[-1].role == message.role:
            text = f"{joined[-1].text}\n\n{message.text}"
            joined[-1] = replace(joined[-1], text=text)
        else:
            joined.append(message)
    return joined


def _folded(messages: Sequence[ChatMessage]) -> list[ChatMessage]:
    """The system prompt in front of the first message of the user."""
    if len(messages) < 2 or messages[0].role != "system" or messages[1].role != "user":
        return list(messages)
    system, first, *rest = messages
    return [replace(first, text=f"{system.text}\n\n{first.text}"), *rest]


def _told(messages: Sequence[ChatMessage]) -> list[ChatMessage]:
    """The whole conversation in one message: what any server takes."""
    if len(messages) < 2:
        return list(messages)
    parts = [f"{_SPEAKERS[message.role]}:\n{message.text}" for message in messages]
    return [ChatMessage("user", "\n\n".join(parts))]


def _written(message: ChatMessage, dialect: Dialect) -> dict[str, Any]:
    written: dict[str, Any] = {"role": message.role, "content": message.text}
    if message.role == "assistant" and dialect.reasoning_field:
        reasoning = message.reasoning or dialect.reasoning_filler
        if reasoning is not None:
            written[dialect.reasoning_field] = _as_field(reasoning, dialect.reasoning_field)
    return written


def _as_field(reasoning: str, name: str) -> str | list[dict[str, str]]:
    """Reasoning in the form that a field has: some hold a list of parts."""
    if name != DETAILS:
        return reasoning
    return [{"type": "reasoning.text", "text": reasoning}] if reasoning.strip() else []
