"""Chats to files and back. Long ones report their progress; a cancelled one leaves nothing."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from chatcache import formatting as fmt
from chatcache.errors import NotFoundError, UsageError
from chatcache.frontend.progress import Report
from chatcache.places import path_of

if TYPE_CHECKING:
    from chatcache.chat.service import ChatService
    from chatcache.chat.views import SessionSummary, TranscriptMessage

_READ_BYTES = 1 << 20
_WHO = {"user": "You", "system": "System prompt"}


def file_name(session_name: str) -> str:
    return (re.sub(r"[^\w.-]+", "-", session_name).strip("-.") or "chat") + ".md"


def export_chat(
    service: ChatService, session: SessionSummary, name: str, report: Report
) -> tuple[Path, int]:
    """Write a chat to a file that does not exist yet: `.json` can be imported, others are read.

    Returns the file and its size in bytes. Raises UsageError naming what is in the way."""
    path = path_of(name or file_name(session.name))
    report("reading the chat")
    if path.suffix == ".json":
        document: dict[str, Any] = service.export_session(session.session_id)
        total, pieces = len(document["messages"]), _as_json(document)
    else:
        messages = service.transcript(session.session_id)
        total, pieces = len(messages), _as_markdown(session.name, messages)
    return path, _write_new(path, pieces, total, report)


def import_chat(service: ChatService, name: str, report: Report) -> SessionSummary:
    """A chat from a file that `/export X.json` or `sessions export` has written."""
    try:
        document = json.loads(_read(path_of(name), report))
    except (ValueError, RecursionError) as error:
        raise UsageError(
            f"{fmt.one_line(name)} is not JSON.", "Export it to a .json file."
        ) from error
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise NotFoundError(f"{fmt.one_line(name)} cannot be read: {reason}.", "") from error
    return service.import_session(document, lambda done, total: report("importing", done, total))


def _read(path: Path, report: Report) -> bytes:
    pieces, num_read, total = [], 0, path.stat().st_size
    with path.open("rb") as file:
        while piece := file.read(_READ_BYTES):
            pieces.append(piece)
            num_read += len(piece)
            report("reading the file", num_read, total, is_bytes=True)
    return b"".join(pieces)


def _as_json(document: dict[str, Any]) -> Iterator[str]:
    """The document message by message; together the same as in one go."""
    head = {name: value for name, value in document.items() if name != "messages"}
    yield json.dumps(head, ensure_ascii=False)[:-1] + ', "messages": ['
    for index, message in enumerate(document["messages"]):
        yield (", " if index else "") + json.dumps(message, ensure_ascii=False)
    yield "]}\n"


def _as_markdown(name: str, messages: Sequence[TranscriptMessage]) -> Iterator[str]:
    yield f"# {fmt.one_line(name)}\n"
    for message in messages:
        yield f"\n## {speaker(message)}\n\n{message.text}\n"


def speaker(message: TranscriptMessage) -> str:
    """The word for who said it; the name of the model for an answer."""
    return _WHO.get(message.role, fmt.model_label(message.model or "Answer", message.quantization))


def _write_new(path: Path, pieces: Iterator[str], total: int, report: Report) -> int:
    try:
        with path.open("x", encoding="utf-8") as file:
            try:
                for done, piece in enumerate(pieces):
                    report("writing", min(done, total), total)
                    file.write(piece)
                return file.tell()
            except BaseException:
                path.unlink()
                raise
    except FileExistsError:
        raise UsageError(f"{path} is there already.", "Say /export with another name.") from None
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise UsageError(f"{path} cannot be written: {reason}.", "Say /export FILE.") from None
