"""Finds what will be another text tomorrow in a text that is meant to stay the same.

A system prompt that a script writes anew each time, with the date or the id of a request in it,
ends all reuse at its first changed word, and nothing tells why. Owns what looks like that. What
only might (a year, a version number, a date of the past) is let pass: a warning that is wrong is
worse than none. Pure functions; nothing is changed.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from itertools import pairwise
from typing import Literal

UnstableKind = Literal["date", "time", "timestamp", "random_id", "placeholder"]

NEAR = timedelta(minutes=5)
NEAR_EPOCH = timedelta(days=2)
_DAY = 24 * 60

_MONTHS = {
    name[:3]: number
    for names in (
        "january february march april may june july august september october november december",
        "januar februar märz april mai juni juli august september oktober november dezember",
        "enero febrero marzo abril mayo junio julio agosto septiembre octubre noviembre diciembre",
    )
    for number, name in enumerate(names.split(), 1)
} | {"fév": 2, "fev": 2, "avr": 4, "aoû": 8, "déc": 12, "gen": 1, "mag": 5, "giu": 6, "lug": 7}
_MONTH = r"(?P<month>[^\W\d_]{3,10})\.?"
_ORDINAL = r"(?P<day>\d{1,2})(?:st|nd|rd|th|\.|º)?"
_DATES = tuple(
    re.compile(rf"(?<![\w.]){pattern}(?![.\-/]?\d)(?![^\W\d_T])", re.IGNORECASE)
    for pattern in (
        r"(?P<year>\d{4})(?P<mark>[-/.])(?P<month>\d{1,2})(?P=mark)(?P<day>\d{1,2})",
        r"(?P<year>20\d\d)(?P<month>\d\d)(?P<day>\d\d)",
        r"(?P<day>\d{1,2})(?P<mark>[-/.])(?P<month>\d{1,2})(?P=mark)(?P<year>\d{4})",
        rf"{_ORDINAL}\s+(?:of\s+|de\s+)?{_MONTH},?\s+(?:de\s+)?(?P<year>\d{{4}})",
        rf"{_MONTH}\s+{_ORDINAL},?\s+(?P<year>\d{{4}})",
        r"(?P<year>\d{4})年\s?(?P<month>\d{1,2})月\s?(?P<day>\d{1,2})日",
    )
)
_WEEKDAYS = (
    "monday|tuesday|wednesday|thursday|friday|saturday|sunday"
    "|montag|dienstag|mittwoch|donnerstag|freitag|samstag|sonntag"
)
_WEEKDAY = re.compile(rf"\b(?:{_WEEKDAYS})\b", re.IGNORECASE)
_TIME = re.compile(
    r"(?<![\d:.])(?P<hour>[01]?\d|2[0-3]):(?P<minute>[0-5]\d)(?P<second>:[0-5]\d)?(?!:?\d)"
    r"(?:\s?(?P<half>[ap])\.?m\b\.?)?",
    re.IGNORECASE,
)
_EPOCH = re.compile(r"(?<![\w.])1\d{9}(?:\d{3})?(?:\.\d{1,9})?(?![\w.]*\w)")
_UUID = re.compile(
    r"(?<![0-9a-z/-])[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}(?![0-9a-z-])",
    re.IGNORECASE,
)
_EXAMPLE_UUIDS = ("123e4567-e89b-12d3-a456-426614174000", "550e8400-e29b-41d4-a716-446655440000")
_TOKEN = re.compile(r"(?<![\w/#.:+@-])(?:[a-z]{2,10}[-_])?(?P<id>[A-Za-z0-9]{12,}+)(?![\w/.@-]*\w)")
# In the path of a link an id names what is there; behind the question mark it may be made anew.
_IN_QUERY = re.compile(r"(?<==)(?P<id>[A-Za-z0-9]{16,}+)(?![\w/.@-])")
_NAMED_ID = re.compile(
    r"\b(?:(?:request|session|trace|span|run|correlation|conversation|transaction|invocation)"
    r"[ _-]?(?:id|uuid|guid)|nonce)\b[\"'`*]*\s*(?:is\b|[:=#])\s*[\"'`*<(]*"
    r"(?P<id>[A-Za-z0-9][\w-]{5,})",
    re.IGNORECASE,
)
_FIXED_HASH = re.compile(r"(?:sha\d*|md5|digest|checksum|integrity|hash)\W{0,3}$", re.IGNORECASE)
_MOVING = (
    r"(?:current_?|present_?|today_?)*(?:date|time|datetime|now|today|timestamp|weekday)"
    r"|uuid4?|(?:request|session|trace|run)_id|nonce|random\w*"
)
_PLACEHOLDER = re.compile(
    rf"\{{\{{?-?\s*(?:\w+\.)*(?:{_MOVING})(?:_(?:utc|str|iso|local))?(?:\([^)}}]*\))?"
    r"\s*(?:[|:!][^}]*)?-?\}\}?"
    r"|\$\(\s*(?:date|uuidgen)\b[^)]*\)"
    r"|(?-i:\$\{?(?:DATE|TIME|NOW|TODAY|TIMESTAMP|UUID|RANDOM|REQUEST_ID)\b\}?)"
    r"|\bstrftime_now\([^)]*\)",
    re.IGNORECASE,
)
# What says that the moment of writing follows: then it need not be the present one any more.
_CUE = re.compile(
    r"(?:\b(?:today(?:['’]s date)?|heute|aujourd['’]hui|hoy|now"
    r"|(?:current|present|today['’]s|aktuelle[sr]?)[ _-]?(?:date|time|day|datetime|timestamp|datum"
    r"|zeit|uhrzeit)(?:[ _-]?(?:and|&)[ _-]?time)?|the (?:date|time) is|generated (?:on|at))"
    r"|^\W*(?:date|time|datetime|timestamp))"
    rf"(?:[\s:=*_\"'`(\[<>,-]|\b(?:is|ist|the|der|den|now|on|at|it|utc|{_WEEKDAYS})\b)*$",
    re.IGNORECASE,
)
_TIME_CUE = re.compile(
    r"(?:^[\s*#>-]*|\b(?:current|now)\W{1,2})(?:unix[ _-]?)?(?:epoch|timestamp|time)"
    r"[*`]*\s*[:=]\W{0,3}$",
    re.IGNORECASE,
)
_VERSION = re.compile(r"(?:\bv|version|release[ds]?(?: on)?)\W{0,2}$", re.IGNORECASE)
_CUE_LENGTH = 60
_JOINED = re.compile(r"(?:[\s,T·-]|\bat\b|\bum\b){1,6}")


@dataclass(frozen=True, slots=True)
class UnstablePart:
    """A part of a text, from character `start` to `stop`."""

    kind: UnstableKind
    start: int
    stop: int
    text: str


def warning(system: str | None, now: datetime) -> str | None:
    """What to tell somebody who gives this system prompt; None: nothing."""
    found = [] if system is None else unstable_parts(system, [now])
    if not found:
        return None
    return (
        f"The system prompt says {found[0].text!r}: once that changes, conversations are read again"
        " from there. Put it into a message instead."
    )


def unstable_parts(
    text: str, moments: Sequence[datetime], *, is_template: bool = False
) -> list[UnstablePart]:
    """What in `text` changes by itself, in order. `moments` are those at which it may have been
    written; `is_template`: it is filled in before it is sent, so placeholders count."""
    found = [*_moments(text, moments), *_random_ids(text)]
    if is_template:
        found += _made(text, "placeholder", _PLACEHOLDER.finditer(text))
    return _joined(text, sorted(found, key=lambda part: (part.start, -part.stop)))


def _joined(text: str, parts: Sequence[UnstablePart]) -> list[UnstablePart]:
    """A date and the time behind it are one; what lies within another part is left out."""
    joined: list[UnstablePart] = []
    for part in parts:
        last = joined[-1] if joined else None
        if last is not None and part.start < last.stop:
            continue
        between = text[last.stop : part.start] if last is not None else ""
        is_moment = {part.kind, last.kind if last else ""} <= {"date", "time"}
        if last is not None and is_moment and _JOINED.fullmatch(between):
            whole = text[last.start : part.stop]
            joined[-1] = UnstablePart("date", last.start, part.stop, whole)
        else:
            joined.append(part)
    return joined


def _made(
    text: str, kind: UnstableKind, matches: Iterator[re.Match[str]], group: str | int = 0
) -> Iterator[UnstablePart]:
    for match in matches:
        yield UnstablePart(kind, match.start(group), match.end(group), match[group])


def _before(text: str, start: int) -> str:
    """What stands before a place on its line."""
    line = text.rfind("\n", 0, start) + 1
    return text[max(line, start - _CUE_LENGTH) : start]


# Moments


def _moments(text: str, moments: Sequence[datetime]) -> Iterator[UnstablePart]:
    days = {day for moment in moments for day in (moment.date(), _utc(moment).date())}
    for match in (match for pattern in _DATES for match in pattern.finditer(text)):
        before = _before(text, match.start())
        meant = set(_days(match))
        if meant and (_CUE.search(before) or (meant & days and not _VERSION.search(before))):
            stop = _end_of_time(text, match.end())
            yield UnstablePart("date", match.start(), stop, text[match.start() : stop])
    for match in _WEEKDAY.finditer(text):
        if _CUE.search(_before(text, match.start())):
            yield UnstablePart("date", *match.span(), match[0])
    for match in _TIME.finditer(text):
        is_near = any(_is_near(match, moment) for moment in moments)
        if is_near or _CUE.search(_before(text, match.start())):
            yield UnstablePart("time", *match.span(), match[0].rstrip())
    for match in _EPOCH.finditer(text):
        whole = float(match[0])
        seconds = whole / 1000 if whole > 1e11 else whole
        near = NEAR_EPOCH.total_seconds()
        is_near = any(abs(moment.timestamp() - seconds) <= near for moment in moments)
        if is_near or _TIME_CUE.search(_before(text, match.start())):
            yield UnstablePart("timestamp", *match.span(), match[0])


def _end_of_time(text: str, stop: int) -> int:
    """Where the time ends that stands behind a date; `stop` where none does."""
    between = _JOINED.match(text, stop)
    written = _TIME.match(text, between.end()) if between else None
    return written.end() if written else stop


def _utc(moment: datetime) -> datetime:
    return moment.astimezone(UTC)


def _days(match: re.Match[str]) -> Iterator[date]:
    """The days that a date may mean: in 5/11 either number can be the month."""
    first, month_word = int(match["day"]), match["month"]
    month = int(month_word) if month_word.isdigit() else _MONTHS.get(month_word[:3].casefold())
    pairs: set[tuple[int | None, int | None]] = {(month, first)}
    if month_word.isdigit() and match.start("day") < match.start("month"):
        pairs.add((first, month))
    for number, day in pairs:
        try:
            yield date(int(match["year"]), number or 0, day or 0)
        except ValueError:
            continue


def _is_near(match: re.Match[str], moment: datetime) -> bool:
    """Is it a time of these minutes? Full and half hours are when shops open, too."""
    hour, minute = int(match["hour"]), int(match["minute"])
    if minute in (0, 30) and match["second"] is None:
        return False
    if half := match["half"]:
        hour = hour % 12 + (12 if half.lower() == "p" else 0)
    written = 60 * hour + minute
    for now in (moment, _utc(moment)):
        apart = abs(60 * now.hour + now.minute - written)
        if 60 * min(apart, _DAY - apart) <= NEAR.total_seconds():
            return True
    return False


# What is drawn by lot


def _random_ids(text: str) -> Iterator[UnstablePart]:
    for part in _made(text, "random_id", _UUID.finditer(text)):
        if len(set(part.text)) > 6 and part.text.lower() not in _EXAMPLE_UUIDS:
            yield part
    for match in _TOKEN.finditer(text):
        is_long = len(match["id"]) >= 16 or match.start("id") > match.start()
        is_fixed = _FIXED_HASH.search(_before(text, match.start()))
        if is_long and not is_fixed and looks_random(match["id"]):
            yield UnstablePart("random_id", *match.span(), match[0])
    for part in _made(text, "random_id", _IN_QUERY.finditer(text), "id"):
        if looks_random(part.text):
            yield part
    for part in _made(text, "random_id", _NAMED_ID.finditer(text), "id"):
        digits = sum(character.isdigit() for character in part.text)
        is_number = part.text.isdigit()
        if (is_number and digits >= 6) or (digits >= 3 and _num_changes(part.text) >= 3):
            yield part


def looks_random(word: str) -> bool:
    """Letters and digits mixed as no name mixes them: `9f8a2c41d07b3e65`, not `Utf8ToUtf16`."""
    digits = sum(character.isdigit() for character in word)
    if digits < 4 or len(word) - digits < 3:
        return False
    if re.search(r"[a-z]{6}|[A-Z]{9}|EXAMPLE|X{3}|x{3}", word):
        return False
    return _num_changes(word) >= len(word) / 4


def _num_changes(word: str) -> int:
    """How often small letters, capitals and digits follow each other."""
    kinds = ["d" if c.isdigit() else "u" if c.isupper() else "l" for c in word]
    return sum(kind != after for kind, after in pairwise(kinds))
