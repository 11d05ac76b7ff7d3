"""The body of an answer, byte by byte: which pieces it has, whatever its label says.

Owns the three forms that servers send (server-sent events, a JSON object per line, one JSON
document) and what they do to them: comments, heartbeats, missing blank lines, `null`. What carries
nothing is skipped, what is called an error is one. Pure: knows no HTTP, and never raises.
"""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterator
from typing import Any, Literal, NamedTuple

_FIELDS = ("data", "event", "id", "retry", "error")
_DONE = ("[DONE]", "DONE")
# Reasons to end an answer that is not whole.
_FAILING = ("abort", "aborted", "cancelled", "insufficient_system_resource")
_MAX_FOREIGN_CHARS = 2000
PieceKind = Literal["chunk", "error", "done", "broken", "foreign"]


class StreamPiece(NamedTuple):
    """chunk: an object. error: what is said of it, None where nothing is. done: that was all.
    broken: words for what cannot be read. foreign: the body is something else, e.g. a web page.
    After any of them but a chunk nothing is read."""

    kind: PieceKind
    content: Any = None


class StreamReader:
    """Push bytes, get pieces; how the bytes are cut makes no difference."""

    def __init__(self, max_event: int, max_body: int) -> None:
        self._max_event = max_event
        self._max_body = max_body
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._is_at_start = True
        self._is_after_cr = False
        self._line: list[str] = []  # a line in the making
        self._label = ""
        self._data: list[str] = []  # an event in the making
        self._document: list[str] | None = None
        self._num_line = self._num_data = 0  # characters of it, or of the document
        self._foreign = ""
        self._is_events = self._is_json = self._is_whole = False
        self._has_choices = self._is_over = False

    def push(self, data: bytes) -> Iterator[StreamPiece]:
        """The pieces that are complete now."""
        yield from self._push_text(self._decoder.decode(data))

    def finish(self) -> Iterator[StreamPiece]:
        """What is left, now that nothing follows. A piece that was cut off is none."""
        yield from self._push_text(self._decoder.decode(b"", final=True))
        if (rest := "".join(self._line)) and not self._is_over:
            yield from self._take(rest, is_cut=True)
        yield from self._dispatch(is_cut=True)
        if self._document is not None and not self._is_over:
            yield from self._read_document("\n".join(self._document))
        if self._is_over:
            return
        if self._is_whole:
            yield self._over("done")
        elif self._is_json and not self._has_choices:
            yield self._over("broken", "its answer has no choices")
        elif self._foreign and not self._has_choices and not self._is_events:
            yield self._over("foreign", self._foreign)

    def _push_text(self, text: str) -> Iterator[StreamPiece]:
        if not text:
            return
        if self._is_at_start:
            text, self._is_at_start = text.removeprefix("\ufeff"), False
        if self._is_after_cr:
            text, self._is_after_cr = text.removeprefix("\n"), False
        self._is_after_cr = text.endswith("\r")
        *lines, rest = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
        for line in lines:
            if self._is_over:
                return
            self._line.append(line)
            self._num_line += len(line)
            yield from self._check_length()
            whole, self._line, self._num_line = "".join(self._line), [], 0
            yield from self._take(whole)
        if rest and not self._is_over:
            self._line.append(rest)
            self._num_line += len(rest)
            yield from self._check_length()

    def _check_length(self) -> Iterator[StreamPiece]:
        num_held = self._num_line + self._num_data
        if self._document is None and num_held > self._max_event:
            yield self._over("broken", "a line of it is far too long")
        elif num_held > self._max_body:
            yield self._over("broken", "its answer does not end")

    # Lines

    def _take(self, line: str, *, is_cut: bool = False) -> Iterator[StreamPiece]:
        if self._is_over:
            return
        if self._document is not None:
            self._hold(self._document, line)
            return
        name, colon, value = line.lstrip().partition(":")
        name = name.lower()
        if not line.strip():
            yield from self._dispatch()
        elif colon and not name:
            return  # a comment, which keeps the connection open
        elif name in _FIELDS and (colon or name == line.strip()):
            self._is_events = True
            yield from self._field(name, value.removeprefix(" "), is_cut)
        elif self._data:
            self._hold(self._data, line)  # the rest of an object that was not cut into fields
        else:
            yield from self._bare(line.strip(), is_cut)

    def _field(self, name: str, value: str, is_cut: bool) -> Iterator[StreamPiece]:
        if name == "event":
            yield from self._dispatch()
            self._label = value.strip()
        elif name == "error":
            yield from self._dispatch()
            self._label, self._data = name, [value]
            yield from self._dispatch(is_cut=is_cut)
        elif name == "data":
            self._hold(self._data, value)
            is_more = len(self._data) > 1 or (value.lstrip()[:1] == "{" and _parsed(value) is None)
            if not is_more and not _is_error(self._label):
                yield from self._dispatch(is_cut=is_cut)

    def _bare(self, line: str, is_cut: bool) -> Iterator[StreamPiece]:
        """A line without the name of a field: an object of its own, or the start of a document."""
        if line[0] not in "{[" or (self._is_events and _parsed(line) is None):
            self._note_foreign(line)
        elif _parsed(line) is None and line not in _DONE and not self._has_choices and not is_cut:
            self._document = []
            self._hold(self._document, line)
        else:
            self._data = [line]
            yield from self._dispatch(is_cut=is_cut)

    def _hold(self, lines: list[str], line: str) -> None:
        lines.append(line)
        self._num_data += len(line) + 1

    # Events

    def _dispatch(self, *, is_cut: bool = False) -> Iterator[StreamPiece]:
        label, lines = self._label, self._data
        self._label, self._data = "", []
        if self._is_over or not (label or lines):
            return
        self._num_data = 0
        text = "\n".join(lines).strip()
        if _is_error(label):
            yield self._over("error", _error_content(text))
        elif len(lines) > 1 and _parsed(text) is None and all(_is_piece(line) for line in lines):
            for line in lines:  # events without a blank line between them
                yield from self._read(line.strip(), is_cut=is_cut)
        else:
            yield from self._read(text, is_cut=is_cut)

    def _read(self, text: str, *, is_cut: bool) -> Iterator[StreamPiece]:
        if self._is_over or not text:
            return
        if text.strip('"').upper() in _DONE:
            yield self._over("done")
            return
        parsed = _parsed(text)
        if parsed is not None:
            yield from self._mean(parsed[0])
        elif text[0] not in "{[":
            self._note_foreign(text)  # a heartbeat
        elif not is_cut:
            yield self._over("broken", "a piece of the answer is no JSON")

    def _mean(self, value: Any) -> Iterator[StreamPiece]:
        """What a JSON value says; null, an empty object and a bare word say nothing."""
        values = value if isinstance(value, list) else [value]
        if isinstance(value, list) and not all(isinstance(item, dict) for item in value):
            yield self._over("broken", "a piece of the answer is no object")
            return
        for chunk in values:
            if self._is_over or not isinstance(chunk, dict) or not chunk:
                continue
            choice = _first_choice(chunk)
            self._is_json = self._is_json or not self._is_events
            self._has_choices = self._has_choices or "choices" in chunk
            self._is_whole = self._is_whole or isinstance(choice.get("message"), dict)
            if "choices" in chunk or not _is_failure(chunk):
                yield StreamPiece("chunk", chunk)
            if _is_failure(chunk):
                yield self._over("error", chunk)

    def _read_document(self, text: str) -> Iterator[StreamPiece]:
        """One document over many lines, or several in a row."""
        decoder, at, text = json.JSONDecoder(), 0, text.strip()
        try:
            while at < len(text):
                value, at = decoder.raw_decode(text, at)
                yield from self._mean(value)
                at += len(text[at:]) - len(text[at:].lstrip())
        except (ValueError, RecursionError):
            if not self._has_choices:
                self._note_foreign(text)

    def _note_foreign(self, text: str) -> None:
        self._foreign = (self._foreign + text + "\n")[:_MAX_FOREIGN_CHARS]

    def _over(self, kind: PieceKind, content: Any = None) -> StreamPiece:
        self._is_over = True
        return StreamPiece(kind, content)


def _parsed(text: str) -> tuple[Any] | None:
    """The JSON value in a tuple; None when it is none."""
    try:
        return (json.loads(text),)
    except (ValueError, RecursionError):
        return None


def _is_piece(line: str) -> bool:
    return not line.strip() or line.strip() in _DONE or _parsed(line) is not None


def _is_error(label: str) -> bool:
    return "error" in label.lower()


def _error_content(text: str) -> Any:
    parsed = _parsed(text)
    value = parsed[0] if parsed else text
    return None if value in ("", *_DONE) else value


def _is_failure(chunk: dict[str, Any]) -> bool:
    """Does a server call this an error, in one of its ways?"""
    told = chunk.get("error")
    if told not in (None, False, "") and (told or "choices" not in chunk):
        return True
    if "error" in (chunk.get("object"), chunk.get("type")):
        return True
    choice = _first_choice(chunk)
    reason = str(choice.get("finish_reason"))
    if "error" in reason or reason in _FAILING or isinstance(choice.get("error"), dict):
        return True
    return "choices" not in chunk and "detail" in chunk


def _first_choice(chunk: dict[str, Any]) -> dict[str, Any]:
    choices = chunk.get("choices")
    first = choices[0] if isinstance(choices, list) and choices else None
    return first if isinstance(first, dict) else {}
