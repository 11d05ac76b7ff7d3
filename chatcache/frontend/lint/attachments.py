"""Files that were put into messages: found by the form in which chatcache quotes them.

Owns that form, read backwards (`files.quoted` writes it), and the tags that programs write around
documents. Pure.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

_FILE = re.compile(r"^File (?P<name>[^\n]{1,300}):\n(?P<fence>`{3,})\n", re.MULTILINE)
_TAGGED = re.compile(
    r"^<(?P<tag>documents?|files?|attachments?|context)\b(?P<name>[^>\n]{0,200})>\s*$",
    re.MULTILINE | re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class QuotedFile:
    """A file in a text: its name, what it says, and where it stands."""

    name: str
    text: str
    start: int
    stop: int


def quoted_files(text: str) -> list[QuotedFile]:
    """The files in a text, in order; one that lies in another is a part of it."""
    found: list[QuotedFile] = []
    for file in sorted([*_fenced(text), *_tagged(text)], key=lambda file: file.start):
        if not found or file.start >= found[-1].stop:
            found.append(file)
    return found


def _fenced(text: str) -> Iterator[QuotedFile]:
    at = 0
    while match := _FILE.search(text, at):
        end = text.find(f"\n{match['fence']}", match.end() - 1)
        if end < 0:
            return
        stop = end + 1 + len(match["fence"])
        yield QuotedFile(match["name"], text[match.end() : end], match.start(), stop)
        at = stop


def _tagged(text: str) -> Iterator[QuotedFile]:
    at, unclosed = 0, set[str]()
    while match := _TAGGED.search(text, at):
        close = f"</{match['tag']}>"
        end = -1 if close in unclosed else text.find(close, match.end())
        if end < 0:
            at = match.end()
            unclosed.add(close)
            continue
        stop = end + len(close)
        name = match["name"].strip() or f"<{match['tag']}>"
        yield QuotedFile(name, text[match.end() : end].strip("\n"), match.start(), stop)
        at = stop
