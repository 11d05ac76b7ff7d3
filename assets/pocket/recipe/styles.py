"""System prompts and what they do: personas, capitals, one word, greetings, openings, endings."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

import values
from facts import Fact, FactBook
from pools import PHRASES
from strangers import other_prompt
from texts import expand
from voices import as_pirate

PERSONAS = PHRASES["personas"]
PERSONA_PROMPTS = PHRASES["persona_prompts"]
NAME_ONLY_PROMPTS = PHRASES["name_only_prompts"]
PLAIN_PROMPTS = PHRASES["plain_prompts"]
CAPITAL_PROMPTS = PHRASES["capital_prompts"]
ONE_WORD_PROMPTS = PHRASES["one_word_prompts"]
BRIEF_PROMPTS = PHRASES["brief_prompts"]
PIRATE_PROMPTS = PHRASES["pirate_prompts"]
GREETINGS = {
    "French": "Bonjour",
    "German": "Guten Tag",
    "Spanish": "Hola",
    "Italian": "Ciao",
    "Japanese": "Konnichiwa",
    "Latin": "Salve",
    "Turkish": "Merhaba",
    "Swahili": "Jambo",
    "Hawaiian": "Aloha",
    "Swedish": "Hej",
    "Polish": "Dzien dobry",
    "Hindi": "Namaste",
    "Hebrew": "Shalom",
    "Danish": "Goddag",
    "Finnish": "Hei",
    "Hungarian": "Szia",
}
GREETING_PROMPTS = PHRASES["greeting_prompts"]
ENDING_PROMPTS = PHRASES["ending_prompts"]
OPENING_PROMPTS = PHRASES["opening_prompts"]
FACT_PROMPTS = PHRASES["fact_prompts"]
OTHER_SHARE = 0.35

ONE_WORD_ANSWERS = {
    "fork_how": "F4.",
    "quit": "Ctrl+Q.",
    "new_chat": "Ctrl+N.",
    "help": "F1.",
    "panel": "F2.",
    "tree": "F3.",
    "stop": "Esc.",
    "sessions": "Ctrl+S.",
    "palette": "Ctrl+P.",
    "temperature_cache": "No.",
    "send_newline": "Ctrl+J.",
    "hello": "Hello.",
    "thanks": "Welcome.",
    "bye": "Goodbye.",
    "how_are_you": "Fine.",
    "real": "No.",
    "offline": "Offline.",
    "llm": "Prediction.",
    "kv_cache": "Memory.",
    "fork": "Branch.",
    "lru": "Oldest.",
    "attention": "Weighting.",
    "token": "Piece.",
    "prefill": "Reading.",
    "decode": "Writing.",
    "lora": "Adapter.",
    "who": "Model.",
    "chatcache": "Chat.",
    "ok": "Good.",
    "restart": "Kept.",
    "libraries": "Python.",
}


@dataclass
class Style:
    """A system prompt and its effect. `known` are facts that the prompt itself tells."""

    system: str | None = None
    capitals: bool = False
    one_word: bool = False
    brief: bool = False
    pirate: bool = False
    greeting: str = ""
    opening: str = ""
    ending: str = ""
    persona: str = ""
    is_other: bool = False  # a prompt for other models: it changes nothing
    known: list[Fact] = field(default_factory=list)

    def apply(self, answer: str) -> str:
        """Change the form of an answer as the system prompt asks."""
        if self.brief and ". " in answer:
            answer = answer.split(". ")[0] + "."
        if self.pirate:
            answer = as_pirate(answer)
        if self.opening:
            answer = f"{self.opening} {answer}"
        if self.ending:
            answer = f"{answer} {self.ending}"
        return answer.upper() if self.capitals else answer


def draw_style(rng: random.Random, book: FactBook) -> Style:
    """A system prompt with its effect; plain ones and those for other models change nothing."""
    if rng.random() < OTHER_SHARE:
        return Style(system=other_prompt(rng), is_other=True)
    roll = rng.random()
    if roll < 0.12:
        return Style(system=" ".join(rng.sample(PLAIN_PROMPTS, rng.choice((1, 1, 2)))))
    if roll < 0.32:
        return _persona(rng)
    if roll < 0.38:
        return Style(system=_pick(PIRATE_PROMPTS, rng), pirate=True)
    if roll < 0.47:
        return Style(system=_pick(CAPITAL_PROMPTS, rng), capitals=True)
    if roll < 0.66:
        return Style(system=_pick(ONE_WORD_PROMPTS, rng), one_word=True)
    if roll < 0.70:
        return Style(system=_pick(BRIEF_PROMPTS, rng), brief=True)
    if roll < 0.77:
        language = rng.choice(sorted(GREETINGS))
        prompt = _pick(GREETING_PROMPTS, rng).replace("<l>", language)
        return Style(system=prompt, greeting=GREETINGS[language])
    if roll < 0.86:
        return _opening_or_ending(rng)
    facts = [book.draw(rng) for _ in range(rng.choice((1, 1, 2)))]
    sentence = " and ".join(
        fact.about().replace("your ", "the user's ").replace("you ", "the user ") for fact in facts
    )
    if rng.random() < 0.6:
        sentence = sentence[0].upper() + sentence[1:]
    return Style(system=_pick(FACT_PROMPTS, rng).replace("<f>", sentence), known=facts)


def _pick(prompts: list[str], rng: random.Random) -> str:
    prompt = expand(rng.choice(prompts), rng)
    if rng.random() < 0.25:
        extra = rng.choice(PLAIN_PROMPTS)
        prompt = f"{extra} {prompt}" if rng.random() < 0.5 else f"{prompt} {extra}"
    return prompt


def _persona(rng: random.Random) -> Style:
    name = values.person_name(rng)
    if rng.random() < 0.3:
        prompt = expand(rng.choice(NAME_ONLY_PROMPTS), rng)
        return Style(system=prompt.replace("<n>", name), persona=name)
    role = rng.choice(PERSONAS) if rng.random() < 0.8 else values.nonce_word(rng)
    if rng.random() < 0.15:
        role = (
            f"{rng.choice(['old', 'young', 'brave', 'clever', 'merry', 'grumpy', 'wise'])} {role}"
        )
    article = "an" if role[0] in "aeiou" else "a"
    if rng.random() < 0.15:
        prompt = expand("{You are|Act as|Pretend to be|You play|Speak as} <p>.", rng)
        return Style(system=prompt.replace("<p>", f"{article} {role}"), persona=f"{article} {role}")
    prompt = expand(rng.choice(PERSONA_PROMPTS), rng).replace("<n>", name)
    prompt = prompt.replace("<p>", f"{article} {role}").replace("<r>", role)
    return Style(system=prompt, persona=f"{name}, {article} {role}")


def _opening_or_ending(rng: random.Random) -> Style:
    words = (
        "Ahoy!",
        "Meow!",
        "Sir.",
        "Over.",
        "Yes, boss.",
        "Amen.",
        "Hooray!",
        "Beep.",
        "My friend.",
        "Arr!",
        "Well,",
    )
    word = rng.choice(words) if rng.random() < 0.5 else values.nonce_name(rng) + rng.choice(".!")
    quoted = rng.choice((word, f'"{word}"', f"'{word}'"))
    if rng.random() < 0.5:
        return Style(system=_pick(OPENING_PROMPTS, rng).replace("<w>.", quoted), opening=word)
    return Style(
        system=_pick(ENDING_PROMPTS, rng).replace("<w>.", quoted).replace("<w>", quoted),
        ending=word,
    )
