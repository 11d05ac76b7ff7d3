"""What has been learned of one server from what it refused, so that it refuses it only once.

Owns the lessons: fields that are left out, renamed or wanted, where reasoning is handed back, and a
system prompt that has to be folded. It learns from words of servers, in their many forms. Pure.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from chatcache.backends.remote.refusal import (
    Refusal,
    is_about_limit,
    is_context_full,
    refused_field,
)

# Without these it is no request; all others are left out where they are refused.
ESSENTIAL = ("model", "messages")
MAX_TOKENS = "max_tokens"
STREAM = "stream"
# The statuses with which servers refuse a request for what is in it; 0: in a stream.
REFUSING = (0, 400, 422, 500, 501)
REASONING_FIELDS = ("reasoning_content", "reasoning_details", "reasoning", "thinking")
# What stands where an earlier answer has no reasoning, tried in this order.
FILLERS: tuple[str | None, ...] = (None, "", " ")

_REASONING = re.compile(r"reasoning|\bthinking|thinking\b|\bthoughts?\b", re.I)
_FIELD_LIKE = re.compile(
    r"\w*(?:reason|think|thought)\w*_\w+|(?<=[`'\"])(?:reasoning|thinking)(?=[`'\"])"
)
# Fields that say how to think, and hold no thoughts.
_OTHER_REASONING = re.compile(r"enable_|effort|budget|include_|_config|_mode\b", re.I)
_NOT_EMPTY = re.compile(
    r"(?:not|n't) be (?:empty|missing|omitted|absent|blank|null|none|left out)|non-?empty", re.I
)
_UNWANTED = re.compile(
    r"(?:must|should|may|can) ?not|\bcannot\b|\bnot (?:be )?(?:allowed|permitted|supported|"
    r"accepted|included|expected|recogni[sz]ed|known|valid)|unsupported|unknown|unrecogni[sz]ed|unexpected|"
    r"\bextra\b|forbidden|additional propert|does(?: not|n't) (?:support|accept|take|know)",
    re.I,
)
_UNKNOWN_FIELD = re.compile(
    r"(?:unknown|unrecogni[sz]ed|unexpected|unsupported|extra|additional|invalid|undeclared)\W+"
    r"(?:\w+\W+){0,3}?(?:fields?|param\w*|arguments?|inputs?|propert\w+|keys?|options?|names?)\b|"
    r"(?:fields?|param\w*|arguments?|inputs?|propert\w+|keys?|options?)\b.{0,40}?\bnot (?:be )?"
    r"(?:allowed|permitted|supported|accepted|recogni[sz]ed|known)",
    re.I,
)
_WANTED = re.compile(
    r"\bmust\b|\bneed|\brequire|\bmissing\b|\bexpect|\bback\b|\binclude|\bprovide|\bpreserve|\black|"
    r"\bwithout\b|\babsent\b|\bshould\b",
    re.I,
)
_NO_STREAM = re.compile(r"[`'\"]stream[`'\"]|stream(?:ing)? (?:\w+ )?not |verified to stream", re.I)
_PREFIX = re.compile(r"\bprefix\b", re.I)
_OTHER_LIMIT = re.compile(
    r"(?:use|favou?r of|replaced by)\W+(?:\w+\W+)?max_completion_tokens", re.I
)
_SYSTEM_ROLE = re.compile(
    r"system\W{0,3}(?:role|message|prompt|instruction)|\brole.{0,40}\bsystem\b|developer inst"
    r"ruction|roles? must alternate|only user",
    re.I,
)


@dataclass
class Dialect:
    """How one server wants to be asked. `owner`: what it says of itself in its list."""

    owner: str = ""
    unknown: set[str] = field(default_factory=set)
    reasoning_field: str = ""  # "": reasoning is not handed back
    reasoning_filler: str | None = None
    refuses_reasoning: bool = False
    folds_system: bool = False
    needs_limit: bool = False
    marks_prefix: bool = False
    continues_without_thinking: bool = False
    thinks_unopened: bool = False  # its answers begin with thoughts that no mark opens

    def learn(
        self, refusal: Refusal, body: Mapping[str, Any], chosen: tuple[str, ...], heard: str = ""
    ) -> bool:
        """Take a refusal into account; True when something was learned.

        `chosen` are the fields that the user has set, which are never left out in silence;
        `heard` is the field in which the server itself sends reasoning.
        """
        if refusal.status not in REFUSING:
            return False
        if MAX_TOKENS in body and _OTHER_LIMIT.search(refusal.message):
            return self._leave_out(MAX_TOKENS)
        if is_about_limit(refusal) or is_context_full(refusal):
            return False
        if self._learn_reasoning(refusal, heard) or self._learn_limit(refusal, body):
            return True
        if _is_about_continuing(refusal, body):
            return self._learn_continuing(refusal)
        own = tuple(_own_fields(body, chosen))
        return self._learn_system(refusal, body) or self._learn_unknown(refusal, own, chosen)

    def _learn_reasoning(self, refusal: Refusal, heard: str) -> bool:
        words = _words(refusal)
        if not _REASONING.search(words) or _OTHER_REASONING.search(words):
            return False
        is_unwanted = bool(_UNWANTED.search(words)) and not _NOT_EMPTY.search(words)
        if self.reasoning_field and is_unwanted:
            self.reasoning_field, self.refuses_reasoning = "", True
            return True
        if self.refuses_reasoning:
            return False
        if not self.reasoning_field:
            # A field that is named, and was not sent, is missed, in whatever words.
            is_missed = _FIELD_LIKE.search(words) or (_WANTED.search(words) and not is_unwanted)
            self.reasoning_field = _reasoning_field(words, heard) if is_missed else ""
            return bool(is_missed)
        at = FILLERS.index(self.reasoning_filler) + 1
        if at < len(FILLERS):
            self.reasoning_filler = FILLERS[at]
        return at < len(FILLERS)

    def _learn_limit(self, refusal: Refusal, body: Mapping[str, Any]) -> bool:
        words = _words(refusal)
        names_limit = re.search(r"\bmax_(?:completion_|output_)?tokens\b", words) is not None
        is_there = MAX_TOKENS in body or "max_completion_tokens" in body
        if not names_limit or is_there or self.needs_limit or not _WANTED.search(words):
            return False
        self.needs_limit = True
        return True

    def _learn_continuing(self, refusal: Refusal) -> bool:
        """Set the mark that is wanted, or switch the thinking off that is in the way: once."""
        if not self.marks_prefix and _PREFIX.search(_words(refusal)):
            self.marks_prefix = True
            return True
        is_new = not self.continues_without_thinking
        self.continues_without_thinking = True
        return is_new

    def _learn_system(self, refusal: Refusal, body: Mapping[str, Any]) -> bool:
        has_system = body["messages"][0]["role"] == "system"
        if self.folds_system or not has_system or not _SYSTEM_ROLE.search(_words(refusal)):
            return False
        self.folds_system = True
        return True

    def _learn_unknown(
        self, refusal: Refusal, own: tuple[str, ...], chosen: tuple[str, ...]
    ) -> bool:
        name = refused_field(refusal, [name for name in own if name != STREAM], REFUSING)
        if name is not None:
            return self._leave_out(name)
        if STREAM in own and (STREAM in refusal.fields or _NO_STREAM.search(refusal.message)):
            return self._leave_out(STREAM)
        if refused_field(refusal, chosen, REFUSING) or not _UNKNOWN_FIELD.search(_words(refusal)):
            return False
        new = set(own) - {STREAM} - self.unknown
        self.unknown |= new  # it does not say which one
        return bool(new)

    def _leave_out(self, name: str) -> bool:
        is_new = name not in self.unknown
        self.unknown.add(name)
        return is_new

    # As it is kept

    def lessons(self) -> dict[str, Any]:
        """What was learned, as JSON; {} where nothing was."""
        plain = asdict(Dialect())
        values = {name: value for name, value in asdict(self).items() if value != plain[name]}
        values.pop("owner", None)
        return values | ({"unknown": sorted(self.unknown)} if self.unknown else {})

    def recall(self, lessons: Any) -> None:
        """Take over what was learned before; what makes no sense is passed over."""
        if not isinstance(lessons, dict):
            return
        for key in fields(self):
            value, now = lessons.get(key.name), getattr(self, key.name)
            if key.name == "unknown" and isinstance(value, list):
                self.unknown |= {name for name in value if isinstance(name, str)} - {*ESSENTIAL}
            elif key.name == "reasoning_filler" and value in FILLERS:
                self.reasoning_filler = value
            elif key.name == "reasoning_field" and not _REASONING.search(str(value)):
                continue
            elif type(value) is type(now) and key.name not in ("owner", "unknown"):
                setattr(self, key.name, value)


def _own_fields(body: Mapping[str, Any], chosen: tuple[str, ...]) -> Iterator[str]:
    """The fields of a request that nobody asked for, those inside others first."""
    for name, value in body.items():
        if name in ESSENTIAL or name in chosen:
            continue
        if isinstance(value, dict):
            yield from value
        yield name


def _is_about_continuing(refusal: Refusal, body: Mapping[str, Any]) -> bool:
    """Is it the end of a request that is refused, an answer which is to go on?"""
    words = _words(refusal)
    if body["messages"][-1]["role"] != "assistant" or _UNKNOWN_FIELD.search(words):
        return False
    return bool(_PREFIX.search(words) or _REASONING.search(words))


def _words(refusal: Refusal) -> str:
    return " ".join((refusal.message, *refusal.fields))


def _reasoning_field(words: str, heard: str) -> str:
    """The field that reasoning is wanted in: the one it names, else the one it sends it in."""
    named = next((name for name in REASONING_FIELDS[:2] if name in words), None)
    found = _FIELD_LIKE.search(words)
    return named or (found[0] if found else "") or heard or REASONING_FIELDS[0]
