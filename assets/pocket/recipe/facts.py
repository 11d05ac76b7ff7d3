"""Facts that a user tells and asks back: how each kind is told, asked, confirmed and denied."""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from dataclasses import dataclass

import values
from pools import PHRASES, TEXTS_DIR
from texts import expand

_NONCE_SUBJECT_SHARE = 0.08
_OPENING_SHARE = 0.3
_TAIL_SHARE = 0.12
_ADJECTIVE_SHARE = 0.2
_ALIAS_SHARE = 0.4
_OF_SHARE = 0.3
_UNSEEN_ITEM_SHARE = 0.4
_OPEN_SUBJECTS = {"pet", "relation", "favourite", "number_of", "where", "colour_of", "appointment"}


@dataclass(frozen=True)
class FactKind:
    """Templates of one kind of fact; <v> is the value, <s> the subject.

    `noun_phrases` and `clauses` name the fact ("my age", "how old i am") inside generic frames.
    """

    kind_id: str
    value: str
    subjects: tuple[str, ...]
    tells: tuple[str, ...]
    asks: tuple[str, ...]
    noun_phrases: tuple[str, ...]
    clauses: tuple[str, ...]
    acks: tuple[str, ...]
    about: str
    unknown: str
    reverse: str


@dataclass
class Fact:
    """One fact of one conversation."""

    kind: FactKind
    subject: str
    value: str

    @property
    def key(self) -> tuple[str, str]:
        """Two facts with one key contradict each other unless they are equal."""
        return _CONFLICTS.get(self.kind.kind_id, self.kind.kind_id), self.subject

    def fill(self, template: str) -> str:
        """Put subject and value into a template."""
        filled = template.replace("<s>", self.subject).replace("<S>", self.subject.capitalize())
        return filled.replace("<v>", self.value)

    def about(self) -> str:
        """The canonical sentence without capital and full stop."""
        return self.fill(self.kind.about)


_CONFLICTS = {"relation": "named", "pet": "named", "thing_name": "named"}


_ALIKE = (
    {"name", "pet", "relation", "thing_name"},
    {"number_of", "password", "code_for", "remember_word", "age", "owns_count"},
    {"home", "origin", "workplace", "plan", "lives"},
    {"colour", "colour_of", "favourite"},
    {"list", "buy"},
    {"birthday", "appointment"},
)


def kinds_alike(kind_id: str) -> set[str]:
    """Kinds whose values look the same, so that only the subject tells them apart."""
    return next((kinds for kinds in _ALIKE if kind_id in kinds), set())


def _likes(rng: random.Random) -> str:
    pool = values.FOODS + values.DRINKS + values.HOBBIES + values.ANIMALS + values.COLOURS
    return values.nonce_word(rng) if rng.random() < 0.2 else rng.choice(pool)


def _location(rng: random.Random) -> str:
    place = rng.choice(values.PLACES_AT_HOME)
    if rng.random() < 0.2:
        place = values.nonce_word(rng)
    elif rng.random() < 0.3:
        place = f"{rng.choice(values.COLOURS)} {place}"
    return f"{rng.choice(['in', 'under', 'behind', 'on', 'next to', 'above'])} the {place}"


def _item_list(rng: random.Random) -> str:
    items = rng.sample(values.ITEMS, rng.choice((2, 3, 3, 3, 4, 5)))
    for index in range(len(items)):
        if rng.random() < _UNSEEN_ITEM_SHARE:
            items[index] = values.nonce_word(rng)
    return ", ".join(items[:-1]) + " and " + items[-1]


def _favourite(rng: random.Random) -> str:
    pools = (values.FOODS, values.DRINKS, values.ANIMALS, values.SPORTS, values.INSTRUMENTS)
    roll = rng.random()
    if roll < 0.45:
        return rng.choice(rng.choice(pools))
    if roll < 0.75:
        return values.nonce_name(rng)
    return values.nonce_word(rng) if roll < 0.9 else values.number_text(rng, rng.randint(1, 3))


def _thing_name(rng: random.Random) -> str:
    if rng.random() < 0.2:
        return (
            f"{rng.choice(values.COLOURS).capitalize()} {rng.choice(values.ANIMALS).capitalize()}"
        )
    return values.nonce_name(rng)


DRAW: dict[str, Callable[[random.Random], str]] = {
    "person_name": values.person_name,
    "pet_name": values.pet_name,
    "city_name": values.city_name,
    "plan_place": values.city_name,
    "thing_name": _thing_name,
    "company": values.nonce_name,
    "age": lambda rng: str(rng.randint(3, 109)),
    "small_count": lambda rng: (
        str(rng.randint(1, 99))
        if rng.random() < 0.6
        else rng.choice("two three four five six seven eight nine ten eleven twelve".split())
    ),
    "job": values.from_pool(values.JOBS),
    "hobby": values.from_pool(values.HOBBIES),
    "colour_name": values.colour_name,
    "favourite_of": _favourite,
    "liked_thing": _likes,
    "number_of": lambda rng: (
        values.phone_number(rng)
        if rng.random() < 0.25
        else values.number_text(rng, rng.randint(1, 6))
    ),
    "code_text": values.code_text,
    "word_or_number": lambda rng: rng.choice(
        (values.nonce_word, values.nonce_name, values.code_text, _likes)
    )(rng),
    "calendar_day": values.calendar_day,
    "time_or_day": lambda rng: (
        values.clock_time(rng) if rng.random() < 0.6 else rng.choice(values.WEEKDAYS)
    ),
    "location": _location,
    "item_list": _item_list,
}


def load_fact_kinds() -> list[FactKind]:
    """Parse `texts/facts.txt`."""
    kinds: list[FactKind] = []
    for block in re.split(r"\n(?=\[)", (TEXTS_DIR / "facts.txt").read_text(encoding="utf-8")):
        if not block.startswith("["):
            continue
        lines = block.strip().splitlines()
        pieces: dict[str, str] = {}
        for line in lines[1:]:
            piece, _, text = line.partition(": ")
            pieces[piece] = f"{pieces[piece]} | {text}" if piece in pieces else text
        kinds.append(
            FactKind(
                kind_id=lines[0][1:-1],
                value=pieces["value"],
                subjects=_alternatives(pieces.get("subject", "")),
                tells=_alternatives(pieces["tell"]),
                asks=_alternatives(pieces["ask"]),
                noun_phrases=_alternatives(pieces.get("np", "")),
                clauses=_alternatives(pieces["clause"]),
                acks=_alternatives(pieces.get("ack", "")),
                about=pieces["about"],
                unknown=pieces["unknown"],
                reverse=pieces.get("reverse", ""),
            )
        )
    return kinds


def _alternatives(line: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in re.split(r"\|(?![^{]*\})", line) if part.strip())


class FactBook:
    """Draws facts of all kinds."""

    def __init__(self) -> None:
        self.kinds = load_fact_kinds()
        self.weights = [_WEIGHTS.get(kind.kind_id, 1.0) for kind in self.kinds]

    def draw(self, rng: random.Random) -> Fact:
        """A fresh fact."""
        kind = rng.choices(self.kinds, self.weights)[0]
        return Fact(kind, draw_subject(kind, rng), DRAW[kind.value](rng))

    def draw_alike(self, fact: Fact, rng: random.Random) -> Fact:
        """A fact that only its subject tells from `fact`: a room number beside a phone number."""
        alike = kinds_alike(fact.kind.kind_id) or {fact.kind.kind_id}
        kinds = [kind for kind in self.kinds if kind.kind_id in alike and kind.subjects]
        kind = rng.choice(kinds or [fact.kind])
        return Fact(kind, draw_subject(kind, rng), DRAW[kind.value](rng))


_WEIGHTS = {
    "name": 4.0,
    "home": 1.5,
    "pet": 3.0,
    "relation": 2.0,
    "number_of": 3.0,
    "list": 1.6,
    "thing_name": 1.4,
    "password": 1.5,
}


def draw_subject(kind: FactKind, rng: random.Random) -> str:
    """A subject of this kind; open kinds also get nouns that nobody has seen."""
    if not kind.subjects:
        return ""
    if kind.kind_id in _OPEN_SUBJECTS and rng.random() < _NONCE_SUBJECT_SHARE:
        return values.nonce_word(rng)
    subject = rng.choice(kind.subjects)
    if subject == "<nonce>":
        return values.nonce_word(rng)
    return values.person_name(rng) if subject == "<Person>" else subject


def with_new_value(fact: Fact, rng: random.Random) -> Fact:
    """The same fact corrected: another value."""
    value = fact.value
    while value == fact.value:
        value = DRAW[fact.kind.value](rng)
    return Fact(fact.kind, fact.subject, value)


def tell(fact: Fact, rng: random.Random, is_plain: bool = False) -> str:
    """How a user says it; `is_plain` leaves out what may stand around it."""
    kind = fact.kind
    if kind.noun_phrases and kind.kind_id not in _NO_NP_TELLS and rng.random() < 0.1:
        frame = rng.choice(PHRASES["np_tells"])
        template = frame.replace("<n>", rng.choice(kind.noun_phrases))
    else:
        template = expand(rng.choice(kind.tells), rng)
    template = _with_adjective(kind, _with_of(fact, template, rng), rng)
    if not is_plain and rng.random() < _OPENING_SHARE:
        template = rng.choice(PHRASES["tell_openings"]) + template
    if not is_plain and rng.random() < _TAIL_SHARE:
        template += rng.choice(PHRASES["tell_tails"])
    return _other_name(fact, rng).fill(template)


_NO_NP_TELLS = {"where", "buy", "likes", "plan"}
_WITH_ADJECTIVE = {"pet", "relation", "thing_name", "appointment", "where", "colour_of"}


def _with_adjective(kind: FactKind, template: str, rng: random.Random) -> str:
    if kind.kind_id not in _WITH_ADJECTIVE or rng.random() >= _ADJECTIVE_SHARE:
        return template
    adjective = rng.choice(PHRASES["adjectives"]) if rng.random() < 0.9 else values.nonce_word(rng)
    return re.sub(r"\b(my|our|the|a) <s>", rf"\1 {adjective} <s>", template, count=1)


def ask(fact: Fact, rng: random.Random) -> str:
    """How a user asks it back."""
    kind, roll = fact.kind, rng.random()
    if kind.noun_phrases and roll < 0.3:
        template = rng.choice(PHRASES["np_asks"]).replace("<n>", rng.choice(kind.noun_phrases))
    elif roll < 0.5:
        template = rng.choice(PHRASES["clause_asks"]).replace("<c>", rng.choice(kind.clauses))
    else:
        template = expand(rng.choice(kind.asks), rng)
    template = _with_of(fact, template, rng)
    if rng.random() < 0.05:
        template = _with_adjective(kind, template, rng)
    if rng.random() < _OPENING_SHARE:
        template = rng.choice(PHRASES["ask_openings"]) + template
    if rng.random() < _TAIL_SHARE and not template.endswith("?"):
        template += rng.choice(PHRASES["ask_tails"])
    return _other_name(fact, rng).fill(template)


_ALIASES = {
    name: others.split(", ")
    for name, _, others in (entry.partition(": ") for entry in PHRASES["subject_aliases"])
}


def _other_name(fact: Fact, rng: random.Random) -> Fact:
    """Users say "pin code" or "pin number" for what the answer calls a pin."""
    names = _ALIASES.get(fact.subject)
    if names is None or rng.random() >= _ALIAS_SHARE:
        return fact
    return Fact(fact.kind, rng.choice(names), fact.value)


def _with_of(fact: Fact, template: str, rng: random.Random) -> str:
    """ "my room number" is at times "the number of my room", "my pin" "the pin of my card"."""
    thing, _, noun = fact.subject.rpartition(" ")
    if fact.subject == "pin":
        thing, noun = rng.choice(PHRASES["things_with_pin"]), "pin"
    if not thing or noun not in ("number", "code", "password", "pin") or rng.random() >= _OF_SHARE:
        return template
    phrase = f"the {noun} {rng.choice(('of', 'of', 'for'))} {rng.choice(('my', 'my', 'the'))} "
    return re.sub(r"\b(my|the|our) <s>(?! of mine)", phrase + thing, template, count=1)


def acknowledge(facts: list[Fact], rng: random.Random) -> str:
    """The answer to being told repeats the facts in canonical words: easy to find again."""
    if len(facts) == 1 and facts[0].kind.acks:
        return facts[0].fill(rng.choice(facts[0].kind.acks))
    return f"Noted: {join_facts(facts)}."


def join_facts(facts: list[Fact]) -> str:
    """Canonical sentences joined by commas and `and`; lists come last and stand alone."""
    parts = [fact.about() for fact in facts]
    return parts[0] if len(parts) == 1 else ", ".join(parts[:-1]) + " and " + parts[-1]


def recall(fact: Fact) -> str:
    """The answer to the question."""
    sentence = fact.about()
    return f"{sentence[0].upper()}{sentence[1:]}."


def not_told(kind: FactKind, subject: str) -> str:
    """The honest answer when the fact was never told."""
    return f"You have not told me {Fact(kind, subject, '').fill(kind.unknown)}."
