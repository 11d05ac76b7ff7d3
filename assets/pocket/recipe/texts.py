"""Reads the hand-written pieces and expands their grammar: {x|y} alternatives and <slots>."""

from __future__ import annotations

import random
import re
from dataclasses import dataclass, field

from pools import TEXTS_DIR
from values import nonce_word

PROGRAM_FILES = (
    "program_basics.txt",
    "program_cache.txt",
    "program_more.txt",
    "program_words.txt",
    "program_new.txt",
    "program_asks.txt",
    "program_situations.txt",
)
EXPLAIN_FILES = (
    "explain_basics.txt",
    "explain_cache.txt",
    "explain_more.txt",
    "explain_words.txt",
    "explain_asks.txt",
)
SMALLTALK_FILES = (
    "smalltalk.txt",
    "chatter_more.txt",
    "chatter_words.txt",
    "smalltalk_asks.txt",
)
BEYOND_FILES = ("beyond.txt", "beyond_words.txt")

_CHOICE = re.compile(r"\{([^{}]*)\}")
_SLOT = re.compile(r"<([A-Za-z]+)>")
_SPACES = re.compile(r" {2,}")


@dataclass
class Intent:
    """One meaning: how people ask for it and what the answer is."""

    intent_id: str
    noun_phrases: list[str] = field(default_factory=list)
    questions: list[str] = field(default_factory=list)
    answers: list[str] = field(default_factory=list)
    elaborations: list[str] = field(default_factory=list)
    slots: dict[str, list[str]] = field(default_factory=dict)

    @property
    def weight(self) -> float:
        """How often it is asked: what can be asked in many ways gets more practice."""
        return (len(self.questions) + len(self.noun_phrases)) ** 0.5


def load_intents(file_names: tuple[str, ...]) -> dict[str, Intent]:
    """Parse text files into intents by id."""
    intents: dict[str, Intent] = {}
    for file_name in file_names:
        current = Intent("")
        for line in (TEXTS_DIR / file_name).read_text(encoding="utf-8").splitlines():
            if not line.strip() or line.startswith("#"):
                continue
            if line.startswith("[") and line.endswith("]"):
                current = intents.setdefault(line[1:-1], Intent(line[1:-1]))
                continue
            kind, _, text = line.partition(": ")
            _add_piece(current, kind, text)
    return intents


def _add_piece(intent: Intent, kind: str, text: str) -> None:
    if kind == "q":
        intent.questions.append(text)
    elif kind == "a":
        intent.answers.append(text)
    elif kind == "more":
        intent.elaborations.append(text)
    elif kind == "np":
        intent.noun_phrases.extend(part.strip() for part in text.split("|"))
    else:
        intent.slots[kind] = [part.strip() for part in text.split("|")]


def choose(template: str, rng: random.Random) -> str:
    """Choose one alternative in every brace, innermost first; spaces stay as they are."""
    while match := _CHOICE.search(template):
        choice = rng.choice(match.group(1).split("|"))
        template = template[: match.start()] + choice + template[match.end() :]
    return template


def expand(template: str, rng: random.Random) -> str:
    """Choose like `choose`; spaces that an empty alternative leaves behind go away."""
    return _SPACES.sub(" ", choose(template, rng)).strip()


def fill_slots(template: str, slots: dict[str, list[str]], rng: random.Random) -> str:
    """Replace <slot> by a piece of its list; <nonce>, <num>, <small>, <year> are drawn freshly."""

    def value(match: re.Match[str]) -> str:
        name = match.group(1)
        if name == "num":
            return str(rng.randint(10, 9999))
        if name == "small":
            return str(rng.randint(0, 99))
        if name == "year":
            return str(rng.randint(1000, 2040))
        if name in ("nonce", "Nonce"):
            word = nonce_word(rng)
            return word.capitalize() if name == "Nonce" else word
        return rng.choice(slots[name])

    while _SLOT.search(template):
        template = _SLOT.sub(value, template)
    return template
