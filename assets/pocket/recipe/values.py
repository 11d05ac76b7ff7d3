"""Names, places and numbers, drawn from pools too large to be memorised."""

from __future__ import annotations

import random
import re

from pools import TEXTS_DIR, WORDS

ONSETS = WORDS["onsets"]
NUCLEI = WORDS["nuclei"]
CODAS = WORDS["codas"]

FIRST_NAMES = WORDS["first_names"]
PET_NAMES = WORDS["pet_names"]
CITIES = WORDS["cities"]
COLOURS = WORDS["colours"]
FOODS = WORDS["foods"]
DRINKS = WORDS["drinks"]
ANIMALS = WORDS["animals"]
JOBS = WORDS["jobs"]
HOBBIES = WORDS["hobbies"]
ITEMS = WORDS["items"]
WEEKDAYS = WORDS["weekdays"]
MONTHS = WORDS["months"]
INSTRUMENTS = WORDS["instruments"]
SPORTS = WORDS["sports"]
PLACES_AT_HOME = WORDS["places_at_home"]
NOUNS = WORDS["nouns"]


def syllable(rng: random.Random) -> str:
    """One pronounceable syllable."""
    onset = rng.choice(ONSETS) if rng.random() < 0.9 else ""
    coda = rng.choice(CODAS) if rng.random() < 0.4 else ""
    return onset + rng.choice(NUCLEI) + coda


def _own_words() -> list[str]:
    """All longer words of the hand-written texts."""
    texts = "".join(path.read_text(encoding="utf-8") for path in sorted(TEXTS_DIR.glob("*.txt")))
    return sorted(set(re.findall(r"[a-z]{4,}", texts.lower())))


OWN_WORDS = _own_words()


def blended_word(rng: random.Random) -> str:
    """Pieces of words of the texts put together, "conver" and "cket".

    Syllables alone would leave most tokens of the vocabulary without any practice in being copied.
    """
    pieces = []
    for _ in range(rng.choices((1, 2, 3), weights=(25, 50, 25))[0]):
        word = rng.choice(OWN_WORDS)
        start = rng.choice((0, 0, rng.randrange(len(word) - 2)))
        pieces.append(word[start : start + rng.randint(2, 7)])
    return "".join(pieces)[:14]


def nonce_word(rng: random.Random) -> str:
    """A lower-case word, mostly unseen; whole words of the texts give rare tokens practice."""
    roll = rng.random()
    if roll < 0.12:
        return rng.choice(NOUNS)
    if roll < 0.28:
        return rng.choice(OWN_WORDS)[:14]
    if roll < 0.52:
        return blended_word(rng)
    if roll < 0.58:
        letters = "abcdefghijklmnopqrstuvwxyz"
        return "".join(rng.choice(letters) for _ in range(rng.randint(3, 8)))
    count = rng.choices((1, 2, 3, 4), weights=(12, 50, 30, 8))[0]
    return "".join(syllable(rng) for _ in range(count))[:14]


def nonce_name(rng: random.Random) -> str:
    """A capitalised unseen name."""
    return nonce_word(rng).capitalize()


def person_name(rng: random.Random) -> str:
    """Mostly unseen, at times an everyday first name, at times first and last name."""
    first = rng.choice(FIRST_NAMES) if rng.random() < 0.3 else nonce_name(rng)
    return f"{first} {nonce_name(rng)}" if rng.random() < 0.1 else first


def pet_name(rng: random.Random) -> str:
    """A pet's name."""
    return rng.choice(PET_NAMES) if rng.random() < 0.25 else nonce_name(rng)


def city_name(rng: random.Random) -> str:
    """A town."""
    roll = rng.random()
    if roll < 0.3:
        return rng.choice(CITIES)
    return (
        f"{rng.choice(['New', 'Port', 'San', 'Upper', 'Bad', 'North', 'Old'])} {nonce_name(rng)}"
        if (roll < 0.38)
        else nonce_name(rng)
    )


def number_text(rng: random.Random, digits: int) -> str:
    """A number of exactly `digits` digits without a leading zero."""
    return str(rng.randint(10 ** (digits - 1), 10**digits - 1))


def code_text(rng: random.Random) -> str:
    """A code: digits, or letters and digits, or a passphrase word."""
    roll = rng.random()
    if roll < 0.6:
        return number_text(rng, rng.randint(3, 6))
    if roll < 0.75:
        letters = "ABCDEFGHJKLMNPQRSTUVWXYZ"
        return rng.choice(letters) + rng.choice(letters) + number_text(rng, rng.randint(2, 4))
    return nonce_word(rng)


def phone_number(rng: random.Random) -> str:
    """Digits in one or two groups."""
    if rng.random() < 0.5:
        return number_text(rng, rng.randint(5, 8))
    return f"{number_text(rng, 3)} {number_text(rng, rng.randint(3, 5))}"


def clock_time(rng: random.Random) -> str:
    """A time of day."""
    roll = rng.random()
    if roll < 0.4:
        return f"{rng.randint(1, 12)} {rng.choice(['am', 'pm'])}"
    return f"{rng.randint(0, 23)}:{rng.choice(['00', '15', '30', '45', '10', '20'])}"


def calendar_day(rng: random.Random) -> str:
    """A day of the year."""
    day, month = rng.randint(1, 28), rng.choice(MONTHS)
    month = month.capitalize() if rng.random() < 0.5 else month
    return f"{day} {month}" if rng.random() < 0.5 else f"{month} {day}"


def colour_name(rng: random.Random) -> str:
    """A colour."""
    if rng.random() < 0.1:
        return f"{rng.choice(['dark', 'light', 'pale', 'bright'])} {rng.choice(COLOURS)}"
    return rng.choice(COLOURS) if rng.random() < 0.9 else nonce_word(rng)


def from_pool(pool: list[str], nonce_share: float = 0.15):  # type: ignore[no-untyped-def]
    """A drawing function over a pool that sometimes yields an unseen word."""

    def draw(rng: random.Random) -> str:
        return nonce_word(rng) if rng.random() < nonce_share else rng.choice(pool)

    return draw
