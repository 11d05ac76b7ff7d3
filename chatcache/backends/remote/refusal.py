"""What a server said when it did not answer, and the sentence that a person gets for it.

Owns the shapes of error bodies (OpenAI, vLLM, llama-server, FastAPI, Ollama, plain text) and their
meanings. What a server writes is foreign text: it is cut to a line, and a key in it is taken out.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

from chatcache.backends.remote.characters import whole
from chatcache.errors import (
    ChatcacheError,
    ContextFullError,
    NotFoundError,
    UnavailableError,
    did_you_mean,
)
from chatcache.formatting import one_line, plural, shorten
from chatcache.remotes import RemoteModel

MAX_WORDS = 240
MAX_NAMES = 6
# Settings of chatcache by the names that they have in a request.
OPTION_OF_FIELD = {
    "temperature": "temperature",
    "top_p": "top_p",
    "top_k": "top_k",
    "min_p": "min_p",
    "repetition_penalty": "repetition_penalty",
    "repeat_penalty": "repetition_penalty",
    "seed": "seed",
    "max_tokens": "max_new_tokens",
    "max_completion_tokens": "max_new_tokens",
    "chat_template_kwargs": "think",
}
_CONTEXT = re.compile(
    r"context[ _](?:length|window|size)|maximum context|too many tokens|exceed_context|prompt is"
    r" too long",
    re.IGNORECASE,
)
_LIMIT = re.compile(
    r"(?:context (?:length|window|size)|limit|maximum)\D{0,40}?(\d[\d,]{2,})", re.IGNORECASE
)
_ASKED = re.compile(
    r"(?:requested|resulted in|has|contains?|prompt is|input|tokens? \(?|prompt \()\D{0,30}?"
    r"(\d[\d,]{2,})(?= ?(?:tokens|input|\)))",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class Refusal:
    """What came instead of an answer; status 0: in the middle of one."""

    status: int
    message: str
    code: str = ""
    fields: tuple[str, ...] = ()
    retry_after: float | None = None
    location: str = ""
    num_prompt: int | None = None
    num_context: int | None = None


class RefusedError(Exception):
    """The server refused; never leaves the backend."""

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(f"HTTP {refusal.status}: {refusal.message}")
        self.refusal = refusal


def read_refusal(status: int, headers: Mapping[str, str], body: bytes) -> Refusal:
    """What a body says, whatever its shape."""
    text = body.decode("utf-8", "replace")
    try:
        content = json.loads(text)
    except (ValueError, RecursionError):
        is_page = text.lstrip().startswith("<")
        content = {"message": "" if is_page else text}
    return _from_json(
        content,
        status,
        retry_after=_seconds(headers.get("retry-after", "")),
        location=headers.get("location", ""),
    )


def refusal_in_stream(content: Any) -> Refusal:
    """What an error says that comes instead of a piece of the answer."""
    return _from_json(content, 0)


def _from_json(
    content: Any, status: int, *, retry_after: float | None = None, location: str = ""
) -> Refusal:
    error = content.get("error", content) if isinstance(content, dict) else content
    detail = error.get("detail") if isinstance(error, dict) else None
    fields: list[str] = []
    if isinstance(detail, list):  # FastAPI names each field that it does not take
        complaints = [complaint for complaint in detail if isinstance(complaint, dict)]
        fields = [str(complaint["loc"][-1]) for complaint in complaints if complaint.get("loc")]
        error = {"message": "; ".join(str(complaint.get("msg", "")) for complaint in complaints)}
    elif isinstance(detail, str):
        error = {"message": detail}
    if not isinstance(error, dict):
        error = {"message": error if isinstance(error, str) else ""}
    if isinstance(param := error.get("param"), str):
        fields.append(param)
    return Refusal(
        status=status,
        message=shorten(whole(str(error.get("message") or "")), MAX_WORDS),
        code=f"{error.get('code') or ''} {error.get('type') or ''}".strip(),
        fields=tuple(fields),
        retry_after=retry_after,
        location=location,
        num_prompt=_number(error.get("n_prompt_tokens")),
        num_context=_number(error.get("n_ctx")),
    )


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


def refused_field(refusal: Refusal, names: Sequence[str]) -> str | None:
    """Which of the fields of a request a server does not take; None when it is not about one."""
    if refusal.status not in (400, 422) or is_context_full(refusal):
        return None
    for name in names:
        if name in refusal.fields or re.search(rf"(?<!\w){name}(?!\w)", refusal.message):
            return name
    return None


def is_context_full(refusal: Refusal) -> bool:
    if refusal.status == 413:
        return True
    if refusal.status not in (0, 400, 422, 500):
        return False
    return bool(_CONTEXT.search(f"{refusal.code} {refusal.message}"))


def explain(
    refusal: Refusal, remote: RemoteModel, key: str | None, offered: Sequence[str] = ()
) -> ChatcacheError:
    """The error that a person sees. `offered`: the models that the server has, where it told."""
    host = remote.profile.host
    says = _quoted(refusal.message, key)
    if 300 <= refusal.status < 400:
        there = shorten(refusal.location, MAX_WORDS) or "another place"
        return UnavailableError(
            f"{host} sends its callers on to {there}. That is not followed: your key and your"
            " messages would go there.",
            f"If it is right, set remote.{remote.profile.name}.base_url to it.",
        )
    if is_context_full(refusal):
        return _context_full(refusal, host, says)
    if refusal.status in (401, 403):
        return _not_allowed(remote, host, says)
    if refusal.status == 404 or "model_not_found" in refusal.code:
        return _not_found(remote, host, says, offered)
    if refusal.status == 429:
        return UnavailableError(
            f"{host} takes no more requests for now (429).{says}", _when(refusal)
        )
    if refusal.status >= 500:
        return UnavailableError(f"{host} failed ({refusal.status}).{says}", _when(refusal))
    if refusal.status == 0:
        return UnavailableError(
            f"{host} broke the answer off with an error.{says}", "What was written is kept."
        )
    name = refused_field(refusal, tuple(OPTION_OF_FIELD))
    if name is not None:
        option = OPTION_OF_FIELD[name]
        return UnavailableError(
            f"{host} does not take {name} ({refusal.status}).{says}",
            f"Leave {option} out: `/set {option} default`, or no --{option.replace('_', '-')}.",
        )
    return UnavailableError(
        f"{host} refused the request ({refusal.status}).{says}", "See what the server logs."
    )


def _context_full(refusal: Refusal, host: str, says: str) -> ChatcacheError:
    limit, asked = refusal.num_context, refusal.num_prompt
    if limit is None and (found := _LIMIT.search(refusal.message)):
        limit = int(found[1].replace(",", ""))
    if asked is None:
        numbers = (int(digits.replace(",", "")) for digits in _ASKED.findall(refusal.message))
        asked = next((number for number in numbers if number != limit), None)
    hint = "Start a new chat, or fork at an earlier turn."
    if limit is not None and asked is not None:
        return ContextFullError(
            f"The conversation has {plural(asked, 'token')}, the model at {host} takes {limit:,}.",
            hint,
        )
    return ContextFullError(f"The conversation is too long for the model at {host}.{says}", hint)


def _not_allowed(remote: RemoteModel, host: str, says: str) -> ChatcacheError:
    profile = remote.profile
    if profile.api_key_env is None:
        hint = f"Name the variable that has it: remote.{profile.name}.api_key_env in config.toml."
        return UnavailableError(f"{host} wants a key, and the profile has none.{says}", hint)
    return UnavailableError(
        f"{host} does not accept the key of ${profile.api_key_env}.{says}",
        "Check it, and that it may use this model.",
    )


def _not_found(remote: RemoteModel, host: str, says: str, offered: Sequence[str]) -> ChatcacheError:
    name = remote.model or ""
    if not name:
        hint = f"Check remote.{remote.profile.name}.base_url (often it ends in /v1)."
        return NotFoundError(f"{host} has no OpenAI-compatible API there (404).{says}", hint)
    if not offered:
        hint = f"Check the name, and remote.{remote.profile.name}.base_url (often it ends in /v1)."
        return NotFoundError(f"{host} has no model {name!r}, or no such API.{says}", hint)
    if name in offered:
        return NotFoundError(f"{host} does not answer with {name!r}.{says}", "Choose another one.")
    return NotFoundError(
        f"{host} has no model {name!r}.", did_you_mean(name, offered) or names_words(offered)
    )


def names_words(offered: Sequence[str]) -> str:
    """`It has a, b, c and 12 more.`"""
    shown = ", ".join(one_line(name) for name in offered[:MAX_NAMES])
    more = len(offered) - MAX_NAMES
    return f"It has {shown} and {more:,} more." if more > 0 else f"It has {shown}."


def _when(refusal: Refusal) -> str:
    if refusal.retry_after is None:
        return "Try again in a while."
    return f"It asks to be left alone for {plural(round(refusal.retry_after), 'second')}."


def _quoted(words: str, key: str | None) -> str:
    """` It says: ...`, without the key, which some servers repeat."""
    if key:
        words = words.replace(key, "[key]")
    words = shorten(words, MAX_WORDS)
    if not words:
        return ""
    return f" It says: {words}" + ("" if words[-1] in ".!?…" else ".")
