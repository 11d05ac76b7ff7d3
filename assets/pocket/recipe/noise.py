"""How people really type: frames, synonyms, lower case, missing punctuation, typos."""

from __future__ import annotations

import random
import re

from pools import PHRASES, TEXTS_DIR

NOUN_FRAMES = PHRASES["noun_frames"] + PHRASES["noun_frames_more"]

PREFIXES = PHRASES["prefixes"]
SUFFIXES = PHRASES["suffixes"]
RECALL_SUFFIXES = PHRASES["recall_suffixes"]
PREAMBLES = PHRASES["preambles"]
FILLERS = PHRASES["fillers"]

SYNONYMS: tuple[tuple[str, list[str]], ...] = tuple(
    (line.split(": ")[0], line.rstrip("\n").split(": ")[1].split(" | "))
    for line in (TEXTS_DIR / "synonyms.txt").read_text(encoding="utf-8").splitlines()
    if not line.startswith("#")
)
STOPWORDS = frozenset(
    "the a an is are do does i you to of in for me it my can what how this that be".split()
)
_KEY_NEIGHBOURS = {
    "a": "sq",
    "b": "vn",
    "c": "xv",
    "d": "sf",
    "e": "wr",
    "f": "dg",
    "g": "fh",
    "h": "gj",
    "i": "uo",
    "j": "hk",
    "k": "jl",
    "l": "k",
    "m": "n",
    "n": "bm",
    "o": "ip",
    "p": "o",
    "q": "wa",
    "r": "et",
    "s": "ad",
    "t": "ry",
    "u": "yi",
    "v": "cb",
    "w": "qe",
    "x": "zc",
    "y": "tu",
    "z": "x",
}


def substitute(text: str, rng: random.Random, probability: float = 0.25) -> str:
    """Replace some phrases by synonyms."""
    for phrase, replacements in SYNONYMS:
        if phrase in text and rng.random() < probability:
            replacement = rng.choice(replacements)
            text = re.sub(rf"\b{re.escape(phrase)}\b", replacement, text, count=1)
    return text


def misspell(text: str, rng: random.Random, protected: frozenset[str] = frozenset()) -> str:
    """One or two slips of the finger, never inside protected words, commands or numbers."""
    words = text.split(" ")
    candidates = [
        index
        for index, word in enumerate(words)
        if len(word) > 3 and word.isalpha() and word.islower() and word not in protected
    ]
    for index in rng.sample(candidates, min(len(candidates), rng.choice((1, 1, 2)))):
        words[index] = _slip(words[index], rng)
    return " ".join(words)


def _slip(word: str, rng: random.Random) -> str:
    at = rng.randrange(len(word) - 1)
    kind = rng.randrange(4)
    if kind == 0:
        return word[:at] + word[at + 1] + word[at] + word[at + 2 :]
    if kind == 1:
        return word[:at] + word[at + 1 :]
    if kind == 2:
        return word[:at] + word[at] + word[at:]
    return word[:at] + rng.choice(_KEY_NEIGHBOURS.get(word[at], word[at])) + word[at + 1 :]


def telegraphic(text: str, rng: random.Random) -> str:
    """Keyword style: most little words are left out."""
    kept = [word for word in text.split(" ") if word not in STOPWORDS or rng.random() < 0.2]
    return " ".join(kept) if kept else text


def drop_small_word(text: str, rng: random.Random) -> str:
    """Leave out one little word."""
    words = text.split(" ")
    small = [index for index, word in enumerate(words) if word in STOPWORDS]
    if len(words) > 3 and small:
        del words[rng.choice(small)]
    return " ".join(words)


def pad(text: str, rng: random.Random) -> str:
    """Put a word that means little somewhere."""
    words = text.split(" ")
    words.insert(rng.randint(0, len(words)), rng.choice(FILLERS))
    return " ".join(words)


def keywords(text: str, rng: random.Random) -> str:
    """The words that matter, in any order."""
    words = telegraphic(text, rng).split(" ")
    rng.shuffle(words)
    return " ".join(words)


def finish(text: str, rng: random.Random, mark: str = "?") -> str:
    """Case and final punctuation as people type them."""
    roll = rng.random()
    if roll < 0.4 and text:
        text = text[0].upper() + text[1:]
    elif roll < 0.43 and "<" not in text and not any(char.isdigit() for char in text):
        text = text.lower()
    if text and text[-1] not in "?.!" and rng.random() < 0.55:
        text += mark if rng.random() < 0.95 else rng.choice(("!", "??", "...", " ?"))
    return re.sub(r"\bi\b", "I", text) if roll < 0.3 else text


def _reworded(text: str, rng: random.Random) -> str:
    roll = rng.random()
    if roll < 0.10:
        return rng.choice(PREAMBLES) + text
    if roll < 0.20:
        return pad(text, rng)
    if roll < 0.23 and len(text.split()) > 3:
        return keywords(text, rng)
    return drop_small_word(text, rng) if roll < 0.28 else text


def as_typed_question(text: str, rng: random.Random, is_recall: bool = False) -> str:
    """A question with frames, synonyms and slips around it."""
    if not is_recall:
        text = _reworded(substitute(text, rng), rng)
    if rng.random() < 0.05:
        text = drop_small_word(text, rng)
    if rng.random() < 0.22:
        text = rng.choice(PREFIXES) + text
    if rng.random() < 0.10 and not text.endswith("?"):
        text += rng.choice(RECALL_SUFFIXES if is_recall else SUFFIXES)
    return finish(text, rng)
