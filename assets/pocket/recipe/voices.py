"""Puts an answer into a pirate's words and keeps what it says: facts, keys, commands, numbers."""

from __future__ import annotations

import re

_WORDS = {
    "you": "ye",
    "your": "yer",
    "yours": "yers",
    "my": "me",
    "is": "be",
    "are": "be",
    "am": "be",
    "hello": "ahoy",
    "yes": "aye",
}
_PATTERN = re.compile(rf"\b({'|'.join(_WORDS)})\b", re.IGNORECASE)
OPENING = "Arr! "


def _salty(match: re.Match[str]) -> str:
    word = match.group(0)
    salty = _WORDS[word.lower()]
    return salty.capitalize() if word[0].isupper() else salty


def as_pirate(answer: str) -> str:
    """The same answer as a pirate says it; what stands in backticks is left alone."""
    if answer.startswith(OPENING):
        return answer
    parts = answer.split("`")
    parts[::2] = [_PATTERN.sub(_salty, part) for part in parts[::2]]
    text = "`".join(parts)
    mark = text[-1] if text[-1:] in (".", "!", "?") else ""
    return f"{OPENING}{text.removesuffix(mark)}, matey{mark or '.'}"
