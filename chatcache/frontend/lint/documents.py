"""Files that can be linted: a system prompt as text, requests as JSON, exported chats.

Owns what is taken for which, and reads only: OpenAI-style requests (one object, a list of
messages, or one request per line, as batches and logs have them), and what `sessions export` wrote.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from chatcache.chat.transfer import ALL_FORMAT, FORMAT
from chatcache.errors import UsageError
from chatcache.formatting import one_line
from chatcache.frontend.lint.requests import LintRequest
from chatcache.frontend.lint.talks import LintMessage

HINT = "Give a text, requests as JSON (one per line, or one object), or an exported chat."


@dataclass(frozen=True, slots=True)
class LintDocument:
    """What a file has. `is_log`: its requests were sent one after the other; a text is
    `is_template`: it is filled in before it is sent."""

    requests: tuple[LintRequest, ...]
    is_template: bool = False
    is_log: bool = False


def read_document(content: bytes, name: str) -> LintDocument:
    """Raises UsageError for what is empty, no text, or JSON without messages."""
    text = content.decode("utf-8-sig", "replace")
    if not text.strip():
        raise UsageError(f"{one_line(name)} is empty.", HINT)
    if "\x00" in text or text.count("\ufffd") > len(text) / 10:
        raise UsageError(f"{one_line(name)} is no text file.", HINT)
    suffix = name.lower().rpartition(".")[2]
    looks_like_json = text.lstrip()[0] in "{["
    if suffix in ("json", "jsonl", "ndjson") or looks_like_json:
        read = _read_json(text, name, must=suffix in ("json", "jsonl", "ndjson"))
        if read is not None:
            return read
    message = LintMessage("system", text, "the text")
    return LintDocument((LintRequest(name, (message,)),), is_template=True)


def _read_json(text: str, name: str, *, must: bool) -> LintDocument | None:
    try:
        value = json.loads(text)
    except RecursionError as error:
        raise UsageError(f"{one_line(name)} is nested too deeply.", HINT) from error
    except ValueError as error:
        lines = _read_lines(text, name, must=must)
        if lines is None and must:
            raise UsageError(f"{one_line(name)} is not JSON: {error}.", HINT) from error
        return lines
    if isinstance(value, dict) and value.get("format") == ALL_FORMAT:
        chats = value.get("sessions")
        found = [_request(chat, f"chat {n}") for n, chat in enumerate(_list(chats), 1)]
        return LintDocument(tuple(request for request in found if request is not None))
    is_messages = isinstance(value, list) and all(
        isinstance(entry, dict) and "role" in entry for entry in value
    )
    if isinstance(value, list) and not is_messages:
        return _log([(f"request {n}", entry) for n, entry in enumerate(value, 1)], name, must)
    request = _request({"messages": value} if is_messages else value, "the request")
    if request is None and must:
        raise UsageError(f"{one_line(name)} has no messages.", HINT)
    return None if request is None else LintDocument((request,))


def _read_lines(text: str, name: str, *, must: bool) -> LintDocument | None:
    """One request per line; None where the first line is none already."""
    entries: list[tuple[str, Any]] = []
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        try:
            entries.append((f"line {number}", json.loads(line)))
        except (ValueError, RecursionError) as error:
            if not entries:
                return None
            message = f"{one_line(name)}, line {number}, is not JSON: {error}."
            raise UsageError(message, HINT) from error
    return _log(entries, name, must)


def _log(entries: Sequence[tuple[str, Any]], name: str, must: bool) -> LintDocument | None:
    requests = []
    for place, entry in entries:
        request = _request(entry, place)
        if request is None:
            if not must:
                return None
            raise UsageError(f"{one_line(name)}, {place}, has no messages.", HINT)
        requests.append(request)
    return LintDocument(tuple(requests), is_log=True) if requests else None


def _request(value: Any, name: str) -> LintRequest | None:
    """A request, a line of a batch (with a `body`), or an exported chat; None: none of them."""
    if not isinstance(value, dict):
        return None
    for wrapper in ("body", "request"):  # of batches, and of logs
        if isinstance(value.get(wrapper), dict) and "messages" not in value:
            value = value[wrapper]
    if value.get("format") == FORMAT and isinstance(value.get("session"), str):
        name = value["session"]
    messages = value.get("messages", value.get("input"))
    if isinstance(messages, str):
        messages = [{"role": "user", "content": messages}]
    if not isinstance(messages, list):
        return None
    read = [*_leading(value, name)]
    for number, message in enumerate(messages, 1):
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            return None
        read.append(_message(message, number, name))
    tools = value.get("tools")
    return LintRequest(name, tuple(read), tuple(tools) if isinstance(tools, list) else ())


def _leading(value: Mapping[str, Any], name: str) -> Iterator[LintMessage]:
    """A system prompt that stands beside the messages."""
    for key in ("system", "instructions"):
        if text := _text_of(value.get(key)):
            yield LintMessage("system", text, f"{name}, {key}")


def _message(message: Mapping[str, Any], number: int, name: str) -> LintMessage:
    role = message["role"]
    created = message.get("created_ms")
    is_time = isinstance(created, int) and 0 < created < 1 << 45
    written = datetime.fromtimestamp(created / 1000, UTC) if is_time and created else None
    text = _text_of(message.get("content", message.get("text")))
    return LintMessage(role, text, f"{name}, message {number} ({one_line(role)})", written)


def _text_of(content: Any) -> str:
    """Text, or a list of parts of which some are text."""
    if isinstance(content, list):
        return "".join(_text_of(part) for part in content)
    if isinstance(content, dict):
        content = content.get("text")
    return content if isinstance(content, str) else ""


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []
