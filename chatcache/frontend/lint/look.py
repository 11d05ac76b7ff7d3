"""Looks at chats, personas and files with the rules of the linter.

Owns what is read for them: the conversations that are kept, as far as the rules need them. Asks no
model, and changes nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from chatcache.chat.figures import decode
from chatcache.errors import NotFoundError
from chatcache.frontend.lint.documents import LintDocument
from chatcache.frontend.lint.finding import LintFinding, TokenScale
from chatcache.frontend.lint.history import PastTurn, history_findings
from chatcache.frontend.lint.requests import LintRequest, request_findings
from chatcache.frontend.lint.talks import (
    SYSTEM_ROLES,
    KnownPrompt,
    LintMessage,
    file_findings,
    named,
    shared_instruction_finding,
    unstable_findings,
)
from chatcache.frontend.lint.variants import difference_finding, persona_findings
from chatcache.personas import Persona

if TYPE_CHECKING:
    from chatcache.chat.node_table import Opening, StoredNode
    from chatcache.chat.service import ChatService
    from chatcache.chat.views import SessionSummary

MAX_KNOWN = 200  # chats, the newest, that one is compared with
MAX_BESIDE = 32  # requests of a file before one, and behind it, that it is compared with
CONFIG = "config.toml"


def look_at_open(service: ChatService, session: SessionSummary | None) -> list[LintFinding]:
    """The chat that is open; one without a row has nothing to look at."""
    try:
        return look_at_chat(service, session) if session is not None else []
    except NotFoundError:  # another window has deleted it
        return []


def look_at_chat(
    service: ChatService, session: SessionSummary, openings: Sequence[Opening] | None = None
) -> list[LintFinding]:
    """What keeps a chat from reuse: its system prompt, its files, its template, its history.

    `openings`: how other chats begin, if that is known already."""
    store = service.store
    path = store.nodes.path(store.sessions.tip(session.session_id))
    if not path:
        return []
    openings = store.nodes.openings(MAX_KNOWN) if openings is None else openings
    own = {stored.seq for stored in path}  # what a fork shares was said in another chat
    others = [
        opening
        for opening in openings
        if opening.stored.session_id != session.session_id and opening.stored.seq not in own
    ]
    turns = list(_past_turns(service, path))
    found = [
        *_prompt_findings(path, turns, others),
        *history_findings(turns, session.session_id, is_append=session.history_mode == "append"),
    ]
    return named(found, session.name, session.session_id)


def _prompt_findings(
    path: Sequence[StoredNode], turns: Sequence[PastTurn], others: Sequence[Opening]
) -> Iterator[LintFinding]:
    """What the words of a chat tell."""
    messages = [_message(stored) for stored in path]
    on_path = {stored.node.text for stored in path}
    prompts = [_known(other) for other in others if other.stored.node.role == "system"]
    scale = _scale(path, turns)
    first = messages[0]
    if first.role == "system":
        system_tokens = turns[-1].figures.cache.system_tokens if turns else 0
        of_system = TokenScale(len(first.text) / system_tokens) if system_tokens else scale
        unstable = list(
            unstable_findings(messages, [], of_system, prompts, num_tokens=path[-1].num_tokens)
        )
        yield from unstable
        difference = None if unstable else difference_finding(first, prompts, of_system)
        if difference is not None:
            yield difference
    yield from file_findings(messages, scale)
    question = next((message for message in messages if message.role == "user"), None)
    if question is not None:
        firsts = [
            _known(other)
            for other in others
            if other.stored.node.role == "user" and other.stored.node.text not in on_path
        ]
        shared = shared_instruction_finding(question, firsts, scale)
        if shared is not None:
            yield shared


def _past_turns(service: ChatService, path: Sequence[StoredNode]) -> Iterator[PastTurn]:
    answers = service.store.answers.along(path[-1].seq)
    num_read = 0
    for stored in path:
        answer = answers.get(stored.seq)
        figures = decode(answer.result_json) if answer is not None else None
        if answer is None or figures is None:
            continue
        if answer.backend == "local":
            yield PastTurn(stored.node.turn, figures, num_read)
        num_read = figures.prompt_tokens + figures.completion_tokens


def _scale(path: Sequence[StoredNode], turns: Sequence[PastTurn]) -> TokenScale:
    """Characters per token, as the model of the chat counted them."""
    num_chars = sum(len(stored.node.text) for stored in path)
    num_tokens = path[-1].num_tokens
    if not turns or num_tokens <= 0 or num_chars < num_tokens / 2:
        return TokenScale()
    return TokenScale(max(0.5, min(12.0, num_chars / num_tokens)))


def _message(stored: StoredNode) -> LintMessage:
    node = stored.node
    place = "system prompt" if node.role == "system" else f"turn {node.turn}"
    return LintMessage(node.role, node.text, place, _when(stored))


def _known(opening: Opening) -> KnownPrompt:
    return KnownPrompt(opening.stored.node.text, opening.session, _when(opening.stored))


def _when(stored: StoredNode) -> datetime | None:
    created_ms = stored.node.message.created_ms
    return datetime.fromtimestamp(created_ms / 1000, UTC) if created_ms else None


def look_at_personas(personas: Mapping[str, Persona], now: datetime) -> list[LintFinding]:
    """Personas of the settings: each for itself, and against each other."""
    scale = TokenScale()
    found: list[LintFinding] = []
    for persona in personas.values():
        message = LintMessage("system", persona.system, f"persona {persona.name}")
        found += unstable_findings([message], [now], scale)
        found += file_findings([message], scale)
    return named([*found, *persona_findings(personas, scale)], CONFIG)


def look_at_everything(
    service: ChatService, personas: Mapping[str, Persona], now: datetime
) -> list[LintFinding]:
    """The personas, and all chats, the last used first. What several chats share is said once."""
    found = look_at_personas(personas, now)
    openings = service.store.nodes.openings(MAX_KNOWN)
    told = set()
    for session in service.list_sessions():
        for finding in look_at_chat(service, session, openings):
            key: object = (finding.rule, finding.place, finding.found, finding.what)
            if finding.rule == "differs_early":  # the other one says the same of this one
                key = (finding.rule, finding.line, finding.column, finding.saves_tokens)
            if key not in told:
                told.add(key)
                found.append(finding)
    return found


def look_at_document(
    document: LintDocument, name: str, moments: Sequence[datetime]
) -> list[LintFinding]:
    """A text, requests, or exported chats. What all requests of a log have is said once."""
    scale = TokenScale()
    openings = [_opening(request) for request in document.requests]
    found: list[LintFinding] = []
    told = set()
    for at, request in enumerate(document.requests):
        beside = openings[max(0, at - MAX_BESIDE) : at] + openings[at + 1 : at + 1 + MAX_BESIDE]
        prompts = [opening for opening in beside if opening is not None]
        for finding in _request_findings(request, prompts, scale, moments, document):
            key = (finding.rule, finding.line, finding.column) if document.is_log else finding
            if key not in told:
                told.add(key)
                found.append(finding)
    if document.is_log:
        found += request_findings(document.requests, scale)
    return named(found, name)


def _request_findings(
    request: LintRequest,
    prompts: Sequence[KnownPrompt],
    scale: TokenScale,
    moments: Sequence[datetime],
    document: LintDocument,
) -> Iterator[LintFinding]:
    messages, is_template = request.messages, document.is_template
    unstable = list(unstable_findings(messages, moments, scale, prompts, is_template=is_template))
    yield from unstable
    yield from file_findings(messages, scale)
    if _opening(request) is not None and not unstable:
        difference = difference_finding(messages[0], prompts, scale)
        if difference is not None:
            yield replace(difference, cost_per="request") if document.is_log else difference


def _opening(request: LintRequest) -> KnownPrompt | None:
    first = request.messages[0] if request.messages else None
    if first is None or first.role not in SYSTEM_ROLES:
        return None
    return KnownPrompt(first.text, request.name, first.written)
