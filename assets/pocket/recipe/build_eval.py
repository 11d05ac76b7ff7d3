"""Writes the held-out dialogues `eval/*.jsonl`; phrasings and names are not the generator's.

The `dev` half may be looked at one by one while the texts are improved, the `test` half only as
sums. A line is `{"id", "world", "split", "system", "turns", "check"}`, and `history` where another
model has answered before; the check looks at the last answer: `any` (one of these must occur, `a+b`
needs both), `none` (must not occur), `upper` (all capitals or not at all), `max_words`.
"""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

from pools import load_pools

EVAL_DIR = Path(__file__).parent / "eval"
Record = dict[str, Any]

# Voices of the generator's system prompts: an unknown system prompt must not bring one of them.
VOICES = ["arr!", "matey", "ahoy", "meow", "beep", "amen", "yes, boss", "sir.", "over.", "hooray"]
FACT_POOLS = load_pools(EVAL_DIR / "facts.txt")
NAMES = FACT_POOLS["pool_names"]
VALUE_POOLS = {
    "name": NAMES,
    "pet": FACT_POOLS["pool_pets"],
    "town": FACT_POOLS["pool_towns"],
    "colour": FACT_POOLS["pool_colours"],
    "job": FACT_POOLS["pool_jobs"],
    "word": FACT_POOLS["pool_words"],
    "thing": FACT_POOLS["pool_things"],
}
# kind of fact: kind of its value
FACT_VALUES = {
    "name": "name",
    "dog": "pet",
    "cat": "pet",
    "sister": "name",
    "town": "town",
    "from": "town",
    "age": "age",
    "room": "number",
    "phone": "long",
    "pin": "number",
    "password": "word",
    "colour": "colour",
    "boat": "thing",
    "job": "job",
    "list": "list",
    "train": "clock",
}
# kind of fact: kind of value, ways to tell, ways to ask
FACTS: dict[str, tuple[str, list[str], list[str]]] = {
    kind: (value, FACT_POOLS[f"tell_{kind}"], FACT_POOLS[f"ask_{kind}"])
    for kind, value in FACT_VALUES.items()
}


def draw_value(pool: str, rng: random.Random) -> str:
    """A value for a fact; none of the pools belongs to the generator."""
    if pool in VALUE_POOLS:
        return rng.choice(VALUE_POOLS[pool])
    if pool == "list":
        first, second, third = rng.sample(FACT_POOLS["pool_groceries"], 3)
        return f"{first}, {second} and {third}"
    if pool == "clock":
        return f"{rng.randint(1, 23)}:{rng.choice(['05', '25', '35', '50'])}"
    digits = {"age": 2, "number": 4, "long": 7}[pool]
    return str(rng.randint(10 ** (digits - 1), 10**digits - 1))


def value_check(pool: str, value: str) -> Record:
    """All words of a list must be there; anything else must occur as it is."""
    if pool == "list":
        return {"any": ["+".join(value.replace(" and ", ", ").split(", "))]}
    return {"any": [value]}


def read_questions(split: str) -> list[tuple[str, str, list[str]]]:
    """(world, question, accepted words)."""
    rows = []
    for line in (EVAL_DIR / f"questions_{split}.txt").read_text(encoding="utf-8").splitlines():
        if line.strip() and not line.startswith("#"):
            world, question, accepted = (part.strip() for part in line.split(" | "))
            rows.append((world, question, [word.strip() for word in accepted.split(", ")]))
    return rows


def read_unknowns(split: str) -> list[tuple[str, list[tuple[str, str]], str, list[str]]]:
    """(world, context as pairs of role and text, question, accepted words)."""
    rows = []
    world, context = "", list[tuple[str, str]]()
    for line in (EVAL_DIR / f"unknown_{split}.txt").read_text(encoding="utf-8").splitlines():
        kind, _, text = line.partition(": ")
        text = text.replace("\\n", "\n")
        if not line or line.startswith(("#", "[")):
            world, context = line.strip("[]") if line.startswith("[") else world, []
        elif kind == "ask":
            question, _, accepted = text.rpartition(" => ")
            rows.append((world, context, question, accepted.split(", ")))
        else:
            context = [*context, ("assistant" if kind == "answer" else kind, text)]
    return rows


class EvalBuilder:
    """Composes the dialogues deterministically."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.questions = read_questions("dev")
        self.records: list[Record] = []

    def add(
        self,
        world: str,
        turns: list[str],
        check: Record,
        system: str | None = None,
        split: str = "",
        history: list[dict[str, str]] | None = None,
    ) -> None:
        """Append one record; without a split given, every other one is `dev`."""
        number = sum(record["world"] == world for record in self.records)
        split = split or ("dev" if (number + number // len(FACTS)) % 2 == 0 else "test")
        self.records.append(
            {
                "id": f"{world}-{number:03}",
                "world": world,
                "split": split,
                "system": system,
                **({"history": history} if history else {}),
                "turns": turns,
                "check": check,
            }
        )

    def fillers(self, count: int, avoid: set[str]) -> list[str]:
        """Turns in between: questions of all worlds, and now and then another fact."""
        turns = []
        for _ in range(count):
            others = sorted(set(FACTS) - avoid)
            if others and self.rng.random() < 0.2:
                other = self.rng.choice(others)
                avoid.add(other)
                pool, tells, _ = FACTS[other]
                turns.append(self.rng.choice(tells).format(v=draw_value(pool, self.rng)))
            else:
                turns.append(self.rng.choice(self.questions)[1])
        return turns

    def memory(self, distance: int, count: int) -> None:
        """One fact, `distance` turns later the question."""
        for index in range(count):
            kind = list(FACTS)[index % len(FACTS)]
            pool, tells, asks = FACTS[kind]
            value = draw_value(pool, self.rng)
            between = self.fillers(distance - 1, {kind, "age" if kind == "name" else kind})
            turns = [self.rng.choice(tells).format(v=value), *between, self.rng.choice(asks)]
            self.add(f"memory_{distance}", turns, value_check(pool, value))

    def forks(self, count: int) -> None:
        """A fork from before the fact must not know it, one from after it must."""
        for index in range(count):
            kind, other = self.rng.sample(
                ["name", "dog", "cat", "sister", "town", "room", "boat", "pin"], 2
            )
            pool, tells, asks = FACTS[kind]
            value = draw_value(pool, self.rng)
            other_tell = FACTS[other][1][0].format(v=draw_value(FACTS[other][0], self.rng))
            start = [other_tell, *self.fillers(2, {kind, other})]
            told, question = self.rng.choice(tells).format(v=value), self.rng.choice(asks)
            if index % 2:
                self.add(
                    "fork_after",
                    [*start, told, *self.fillers(2, {kind, other}), question],
                    {"any": [value]},
                )
            else:
                self.add("fork_before", [*start, question], {"any": ["not told"], "none": [value]})

    def corrections(self, count: int) -> None:
        """The newest value counts."""
        for index in range(count):
            kind = ["name", "dog", "town", "room", "password", "boat"][index % 6]
            pool, tells, asks = FACTS[kind]
            old = draw_value(pool, self.rng)
            new = old
            while new == old:
                new = draw_value(pool, self.rng)
            prefix = self.rng.choice(
                ["oh sorry, that was a mistake: ", "let me fix that, ", "wrong! "]
            )
            turns = [
                tells[0].format(v=old),
                *self.fillers(1, {kind}),
                prefix + tells[-1].format(v=new),
            ]
            self.add(
                "correction",
                [*turns, *self.fillers(2, {kind}), self.rng.choice(asks)],
                {"any": [new]},
            )

    def styles(self) -> None:
        """System prompts."""
        for index, (role, asked) in enumerate(
            [
                ("lighthouse keeper", "who are you?"),
                ("gladiator", "and you are?"),
                ("violin maker", "what's your name?"),
                ("mermaid", "who am i talking to?"),
                ("sheriff", "tell me who you are"),
                ("alchemist", "introduce yourself"),
                ("beekeeper", "who are you, please?"),
                ("samurai", "so who are you?"),
            ]
        ):
            name = NAMES[index * 3]
            system = [
                f"You're {name}, a {role}, and you never leave that role.",
                f"You are {name}, a {role}.",
            ][index % 2]
            self.add(
                "persona", [*(["hi"] if index % 3 == 0 else []), asked], {"any": [name]}, system
            )
        capitals = [
            "Please write all of your answers in capital letters.",
            "Use upper case letters only.",
        ]
        for index, asked in enumerate(
            [
                "what is a token?",
                "hi!",
                "what is a fork?",
                "thanks",
                "who won the world cup?",
                "what is lru?",
            ]
        ):
            self.add("capitals", [asked], {"upper": True}, capitals[index % 2])
        for kind in ("name", "dog", "room", "town", "password", "age"):
            pool, tells, asks = FACTS[kind]
            value = draw_value(pool, self.rng)
            check = {"any": [value], "max_words": 2}
            self.add(
                "one_word",
                [tells[0].format(v=value), "hello", asks[0]],
                check,
                "Only ever answer with one single word.",
            )
        for language, word in [
            ("French", "bonjour"),
            ("Spanish", "hola"),
            ("German", "guten tag"),
            ("Italian", "ciao"),
            ("Japanese", "konnichiwa"),
            ("Swedish", "hej"),
        ]:
            self.add(
                "greeting",
                ["hello!"],
                {"any": [word]},
                f"Always say hello to people in {language}.",
            )
        for word in ("Aye aye!", "Splendid.", "Purr.", "Cheerio!"):
            self.add(
                "ending",
                ["what is a kv cache?"],
                {"any": [word]},
                f"Every answer of yours has to end with {word}",
            )
        for kind in ("name", "town", "dog"):
            pool, _, asks = FACTS[kind]
            value = draw_value(pool, self.rng)
            known = {
                "name": "The user's name is",
                "town": "The user lives in",
                "dog": "The user's dog is called",
            }[kind]
            self.add(
                "told_by_system",
                ["hi", asks[0]],
                {"any": [value]},
                f"You are kind. {known} {value}.",
            )

    def unknowns(self) -> None:
        """What the model was not made for: the honest answer in its own voice."""
        for split in ("dev", "test"):
            for world, context, question, accepted in read_unknowns(split):
                check = {"any": accepted, "none": VOICES, "upper": False}
                said = [{"role": role, "content": text} for role, text in context]
                system = next((m["content"] for m in said if m["role"] == "system"), None)
                history = [message for message in said if message["role"] != "system"]
                self.add(world, [question], check, system, split, history)

    def build(self) -> list[Record]:
        """All worlds."""
        for split in ("dev", "test"):
            for world, question, accepted in read_questions(split):
                self.add(world, [question], {"any": accepted}, split=split)
        for distance in (1, 5, 10, 20):
            self.memory(distance, 32)
        self.memory(70, 6)
        self.forks(24)
        self.corrections(12)
        self.styles()
        for kind, (_, _, asks) in FACTS.items():
            other = "sister" if kind != "sister" else "dog"
            told = FACTS[other][1][0].format(v=draw_value(FACTS[other][0], self.rng))
            self.add("not_told", [told, "how's life?", asks[0]], {"any": ["not told"]})
        self.unknowns()
        return self.records


def main() -> None:
    """Write one file per group of worlds."""
    groups: dict[str, list[Record]] = {}
    files = dict.fromkeys(("program", "explain", "smalltalk", "beyond"))
    files |= dict.fromkeys(("memory", "fork", "correction", "not"), "memory")
    files |= dict.fromkeys(("other", "foreign", "typed", "pasted"), "unknown")
    for record in EvalBuilder(seed=7).build():
        kind = record["world"].split("_")[0]
        group = (files[kind] or kind) if kind in files else "styles"
        groups.setdefault(group, []).append(record)
    for group, records in groups.items():
        lines = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
        (EVAL_DIR / f"{group}.jsonl").write_text(lines, encoding="utf-8")
        print(group, len(records))


if __name__ == "__main__":
    main()
