"""What a server said when it did not answer, and what it is about.

Owns the shapes of error bodies (OpenAI, vLLM, llama-server, FastAPI, Ollama, plain text, pages of
the web). What a server writes is foreign text: it is cut to a line. The sentences are told
elsewhere. Pure.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from html import unescape
from typing import Any

from chatcache.backends.remote.characters import whole
from chatcache.formatting import shorten

MAX_WORDS = 240
MAX_PAGE = 100_000
_CONTEXT = re.compile(
    r"context[ _](?:length|window|size)|maximum context|too many tokens|exceed_context|"
    r"prompt (?:is )?too long",
    re.IGNORECASE,
)
_ANSWER_LIMIT = re.compile(r"\bmax_(?:completion_|new_|output_)?tokens\b", re.IGNORECASE)
_TOO_LARGE = re.compile(
    r"too (?:large|big|high|many)|at most|exceed|greater|larger|less than|up to|"
    r"maximum(?! context)|range",
    re.IGNORECASE,
)
_MESSAGES = re.compile(
    r"\bmessages?\b|\broles?\b|\bassistant\b|\bhistory\b|\bturns?\b|reasoning_\w+|thinking_\w+|"
    r"thinking blocks?",
    re.IGNORECASE,
)
_ROLES = re.compile(r"\broles?\b|template|jinja", re.IGNORECASE)
_POLICY = re.compile(r"polic|moderation|filter|safety|flagged", re.IGNORECASE)
_NO_ROOM = re.compile(r"at least 1\b.{0,40}(?:got|not|is) -\d", re.IGNORECASE)
_TITLE = re.compile(r"<(title|h1|body)[^>]*>(.*?)</\1>", re.IGNORECASE | re.DOTALL)
_TAG = re.compile(r"<(script|style)\b.*?</\1>|<[^>]*>", re.IGNORECASE | re.DOTALL)


@dataclass(frozen=True, slots=True)
class Refusal:
    """What came instead of an answer; status 0: it came as a stream of its own."""

    status: int
    message: str
    code: str = ""
    fields: tuple[str, ...] = ()
    retry_after: float | None = None
    location: str = ""
    num_prompt: int | None = None
    num_context: int | None = None
    is_page: bool = False  # a web page, made for people by something on the way


class RefusedError(Exception):
    """The server refused; never leaves the backend."""

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(f"HTTP {refusal.status}: {refusal.message}")
        self.refusal = refusal


def read_refusal(status: int, headers: Mapping[str, str], body: bytes) -> Refusal:
    """What a body says, whatever its shape."""
    text, is_page = body.decode("utf-8", "replace"), False
    try:
        content = json.loads(text)
    except (ValueError, RecursionError):
        is_page = text.lstrip("\ufeff \t\r\n").startswith("<")
        content = {"message": _page_words(text) if is_page else text}
    refusal = _from_json(content, status)
    return replace(
        refusal,
        retry_after=_seconds(headers.get("retry-after", "")),
        location=headers.get("location", ""),
        is_page=is_page,
    )


def refusal_in_stream(content: Any) -> Refusal:
    """What an error says that comes instead of a piece of the answer."""
    return _from_json(content, 0)


def _page_words(page: str) -> str:
    """The title of a web page, or how it begins."""
    found = _TITLE.search(page[:MAX_PAGE])
    words = unescape(_TAG.sub(" ", found[2] if found else page[:MAX_PAGE]))
    return " ".join(words.split())


def _from_json(content: Any, status: int) -> Refusal:
    error = content
    if isinstance(content, dict) and isinstance(content.get("error"), dict | str):
        error = content["error"]
    elif isinstance(content, list) and content and isinstance(content[0], dict):
        error = content[0].get("error", content[0])  # one vendor sends a list of one
    fields: list[str] = []
    if isinstance(choice := _first_choice_error(content), dict | str):
        error = choice
    detail = error.get("detail") if isinstance(error, dict) else None
    if isinstance(detail, list):  # FastAPI names each field that it does not take
        complaints = [complaint for complaint in detail if isinstance(complaint, dict)]
        for complaint in complaints:
            fields += _path(complaint.get("loc"))
        error = {"message": "; ".join(map(_complaint, complaints))}
    elif isinstance(detail, str | dict):
        error = detail
    if not isinstance(error, dict):
        error = {"message": error if isinstance(error, str) else ""}
    if isinstance(param := error.get("param"), str):
        fields.append(param)
    return Refusal(
        status=status,
        message=shorten(whole(str(error.get("message") or "")), MAX_WORDS),
        code=f"{error.get('code') or ''} {error.get('type') or ''}".strip(),
        fields=tuple(fields),
        num_prompt=_number(error.get("n_prompt_tokens")),
        num_context=_number(error.get("n_ctx")),
    )


def _complaint(complaint: dict[str, Any]) -> str:
    """What FastAPI says of a field, which its words alone do not name."""
    words, path = str(complaint.get("msg") or ""), _path(complaint.get("loc"))
    return f"{path[0]}: {words}" if path and path[0] not in words else words


def _first_choice_error(content: Any) -> Any:
    """An error that stands in the first choice of a chunk."""
    choices = content.get("choices") if isinstance(content, dict) else None
    first = choices[0] if isinstance(choices, list) and choices else None
    has_own = isinstance(content, dict) and content.get("error")
    return first.get("error") if isinstance(first, dict) and not has_own else None


def _path(location: Any) -> list[str]:
    """The names on the way to a field: `["body", "messages", 1, "name"]`, the last one first."""
    names = location if isinstance(location, list) else []
    return [name for name in reversed(names) if isinstance(name, str) and name != "body"]


def _number(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _seconds(value: str) -> float | None:
    """Retry-After: seconds, or a date."""
    if re.fullmatch(r"\s*\d{1,9}(\.\d*)?\s*", value):
        return float(value)
    try:
        at = parsedate_to_datetime(value)
    except ValueError:
        return None
    at = at if at.tzinfo else at.replace(tzinfo=UTC)
    return max(0.0, (at - datetime.now(UTC)).total_seconds())


def refused_field(
    refusal: Refusal, names: Sequence[str], statuses: Sequence[int] = (400, 422)
) -> str | None:
    """Which of the fields of a request a server does not take; None when it is not about one."""
    if refusal.status not in statuses or is_context_full(refusal):
        return None
    for name in names:
        if name in refusal.fields or re.search(rf"(?<!\w){re.escape(name)}(?!\w)", refusal.message):
            return name
    return None


def is_about_messages(refusal: Refusal) -> bool:
    """Is it what the conversation holds that is refused, and not how it is to be answered?"""
    if refusal.status not in (400, 422, 500) or is_context_full(refusal) or is_about_limit(refusal):
        return False
    words = " ".join((refusal.message, *refusal.fields))
    if refusal.status == 500 and not _ROLES.search(words):
        return False  # it has failed at something else
    return bool(_MESSAGES.search(words)) and not is_about_policy(refusal)


def is_about_policy(refusal: Refusal) -> bool:
    """Is it a filter of what may be said that refuses?"""
    return bool(_POLICY.search(" ".join((refusal.code, refusal.message, *refusal.fields))))


def is_about_limit(refusal: Refusal) -> bool:
    """Is it the limit of the answer that is too large, and not the conversation?"""
    words = " ".join((refusal.message, *refusal.fields))
    if refusal.status not in (0, 400, 422, 500) or _NO_ROOM.search(words):
        return False
    return bool(_ANSWER_LIMIT.search(words) and _TOO_LARGE.search(words))


def is_context_full(refusal: Refusal) -> bool:
    if refusal.status == 413:
        return not refusal.is_page
    if refusal.status not in (0, 400, 422, 500) or is_about_limit(refusal):
        return False
    words = f"{refusal.code} {refusal.message}"
    no_room = _ANSWER_LIMIT.search(words) and _NO_ROOM.search(words)
    return bool(no_room or _CONTEXT.search(words))
