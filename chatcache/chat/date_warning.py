"""Finds the present date or time in a text that is meant to stay the same.

A system prompt that a script writes anew each day ends all reuse at its first changed word, and
nothing tells why. Pure functions; nothing is changed.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import datetime, timedelta

_DATE_FORMATS = (
    "%Y-%m-%d",
    "%Y/%m/%d",
    "%Y%m%d",
    "%d.%m.%Y",
    "%d/%m/%Y",
    "%m/%d/%Y",
    "%d %B %Y",
    "%d %b %Y",
    "%B %d, %Y",
    "%b %d, %Y",
    "%B %d %Y",
)
_TIME = re.compile(r"(?<![\d:.])([01]?\d|2[0-3]):([0-5]\d)(?![\d])")
_NEAR = timedelta(minutes=5)


def warning(system: str | None, now: datetime) -> str | None:
    """What to tell somebody who gives this system prompt; None: nothing."""
    found = None if system is None else moment_in(system, now)
    if found is None:
        return None
    return (
        f"The system prompt says {found!r}: once that changes, conversations are read again from"
        " there. Put it into a message instead."
    )


def moment_in(text: str, now: datetime) -> str | None:
    """The date of today, or a time of the last minutes, as `text` writes it; None: neither."""
    folded = text.casefold()
    for written in _dates(now):
        at = folded.find(written.casefold())
        if at >= 0 and not _is_inside_number(text, at, at + len(written)):
            return text[at : at + len(written)]
    for match in _TIME.finditer(text):
        then = now.replace(hour=int(match[1]), minute=int(match[2]))
        if abs(now - then) <= _NEAR:
            return match[0]
    return None


def _dates(now: datetime) -> Iterator[str]:
    """Today as people and programs write it, with and without a leading zero."""
    for pattern in _DATE_FORMATS:
        yield now.strftime(pattern)
        for directive, number in (("%d", now.day), ("%m", now.month)):
            if number < 10 and directive in pattern and pattern != "%Y%m%d":
                yield now.strftime(pattern.replace(directive, str(number)))


def _is_inside_number(text: str, start: int, stop: int) -> bool:
    before, after = text[start - 1 : start], text[stop : stop + 1]
    return before.isdigit() or after.isdigit()
