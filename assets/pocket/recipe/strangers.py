"""What the model was not made for: foreign system prompts and answers, typed control tokens, pastes."""

from __future__ import annotations

import random
import re
from dataclasses import dataclass

import values
from pools import TEXTS_DIR, load_pools
from texts import BEYOND_FILES, choose, fill_slots, load_intents

STRANGERS = load_pools(TEXTS_DIR / "strangers.txt")
MARK_ANSWER = STRANGERS["mark_answer"][0]
_SLOTS = {
    **load_intents(BEYOND_FILES)["slots"].slots,
    "field": STRANGERS["fields"],
    "d": list("123456789"),
}
_NUM_CODE_PASTES = 9
_OWN_SLOT = re.compile(r"<(salad|code|owner|Noun)>")
_ESCAPES = {"\\n": "\n", "\\<": "<", "\\>": ">", "\\[": "{", "\\]": "}", "\\!": "|", "\\^": "^"}
_ESCAPE = re.compile(r"\\[n<>\[\]!^]")
_LITTLE_WORDS = ("the", "a", "of", "and", "is", "to", "in", "it", "for", "with", "on", "that")
# (first, last) code points of scripts and signs that the texts do not use.
_SCRIPTS = (
    (0x4E00, 0x9FFF),
    (0x0410, 0x044F),
    (0x0391, 0x03C9),
    (0x05D0, 0x05EA),
    (0x0627, 0x064A),
    (0x0905, 0x0939),
    (0x0E01, 0x0E2E),
    (0x3041, 0x3096),
    (0x30A1, 0x30FA),
    (0xAC00, 0xD7A3),
)
_SIGNS = ((0x1F300, 0x1F6FF), (0x1F900, 0x1F9FF), (0x2190, 0x22FF), (0x2500, 0x27BF))
_PROMPT_PARTS = ("roles", "tones", "formats", "rules", "contexts", "languages")


def salad(rng: random.Random) -> str:
    """Words in a row that mean nothing; the model only has to bear them."""
    words = []
    for _ in range(rng.randint(3, 9)):
        if rng.random() < 0.4:
            words.append(rng.choice(_LITTLE_WORDS))
        words.append(
            rng.choice(values.OWN_WORDS) if rng.random() < 0.75 else values.nonce_word(rng)
        )
    return " ".join(words)


def write(template: str, rng: random.Random) -> str:
    """One template with its alternatives chosen, its slots filled and its escapes resolved."""

    def piece(match: re.Match[str]) -> str:
        if match.group(1) == "salad":
            return salad(rng)
        if match.group(1) == "code":
            return choose(rng.choice(STRANGERS["pastes"][:_NUM_CODE_PASTES]), rng)
        if match.group(1) == "owner":
            return rng.choice((values.nonce_name(rng), rng.choice(_SLOTS["place"])))
        return rng.choice(values.NOUNS).capitalize()

    text = _OWN_SLOT.sub(piece, choose(template, rng))
    text = fill_slots(text, _SLOTS, rng)
    return _ESCAPE.sub(lambda match: _ESCAPES[match.group()], text)


def _pick(section: str, rng: random.Random) -> str:
    return write(rng.choice(STRANGERS[section]), rng)


def other_prompt(rng: random.Random) -> str:
    """A system prompt that asks for what the model cannot do; it answers as without one."""
    weights = (4, 4, 3, 3, 3, 1)
    count = rng.choice((1, 1, 1, 2, 2, 3, 4))
    parts = [
        _pick(f"prompt_{part}", rng) for part in rng.choices(_PROMPT_PARTS, weights, k=count)
    ]
    if rng.random() < 0.1:
        parts = [f"# {values.nonce_name(rng)}", *[f"- {part}" for part in parts]]
        return "\n".join(parts)
    prompt = rng.choice((" ", " ", "\n", "\n\n")).join(parts)
    return prompt.lower() if rng.random() < 0.05 else prompt


def other_answer(rng: random.Random) -> str:
    """An answer in the manner of another model, now and then cut off."""
    bodies = [_pick("other_bodies", rng) for _ in range(rng.choice((1, 1, 1, 1, 2)))]
    opening, end = _pick("other_openings", rng), _pick("other_ends", rng)
    text = opening + (" " if opening and not opening.endswith("\n") else "") + "\n\n".join(bodies)
    if end:
        text += rng.choice((" ", "\n\n")) + end
    if rng.random() < 0.05:
        text = text[: rng.randrange(1, len(text))]
    return text.strip() or "Yes."


def other_small_talk(is_thanks: bool, rng: random.Random) -> str:
    """How another model greets, or answers thanks."""
    return _pick("other_thanks" if is_thanks else "other_hello", rng).strip()


def other_note(value: str, rng: random.Random) -> str:
    """How another model answers to being told a fact."""
    template = rng.choice(STRANGERS["other_notes"])
    note = write(template.replace("<v>", "\x00"), rng).replace("\x00", value)
    return note.strip()


@dataclass(frozen=True)
class WorldQuestion:
    """A question about the world with its subject left open, and the form of an answer."""

    subjects: str
    question: str
    answer: str

    def about_another(self, rng: random.Random) -> tuple[str, str]:
        """The question and an answer, for a subject drawn anew."""
        if self.subjects == "sum":
            subject = f"{rng.randint(2, 99)} {rng.choice('+-*/')} {rng.randint(2, 99)}"
            subject = subject if rng.random() < 0.5 else subject.replace(" ", "")
        else:
            subject = rng.choice(_SLOTS["noun" if self.subjects == "word" else self.subjects])
        if rng.random() < 0.3 and self.subjects in ("place", "person"):
            subject = subject.title() if rng.random() < 0.5 else values.nonce_name(rng)
        pair = (self.question, self.answer)
        question, answer = (write(text.replace("<X>", subject), rng) for text in pair)
        return question, answer[0].upper() + answer[1:]


def world_question(rng: random.Random) -> WorldQuestion:
    """Capitals, authors, sums, translations: what other models know."""
    subjects = rng.choice(("place", "place", "work", "person", "thing", "sum", "word"))
    question, _, answer = rng.choice(STRANGERS[f"world_{subjects}"]).partition(" => ")
    names = {
        "<P>": rng.choice(STRANGERS["world_properties"]),
        "<L>": rng.choice("French German Spanish Latin Italian Dutch Polish Greek".split()),
    }
    for slot, name in names.items():
        question, answer = question.replace(slot, name), answer.replace(slot, name)
    return WorldQuestion(subjects, choose(question, rng), choose(answer, rng))


def follow_up(rng: random.Random) -> str:
    """A question that only the other model's answer gives a meaning."""
    return _pick("follow_asks", rng)


def control_mark(rng: random.Random) -> str:
    """A control token of some model family as people type it."""
    roll = rng.random()
    if roll < 0.7:
        return f"<|{_pick('mark_names', rng)}|>"
    if roll < 0.85:
        return rng.choice(("<{}>", "<{}>", "</{}>")).format(_pick("mark_tags", rng))
    form = rng.choice(("[{}]", "[{}]", "[/{}]", "<<{}>>", "<</{}>>"))
    return form.format(_pick("mark_brackets", rng))


def typed_marks(text: str, rng: random.Random) -> str:
    """A message with control tokens in it, around `text` at times."""
    roll = rng.random()
    if roll < 0.2:
        return rng.choice(("", " ", "\n")).join(
            control_mark(rng) for _ in range(rng.choice((1, 1, 1, 2, 3, 5)))
        )
    if roll < 0.45:
        asked = choose(rng.choice(STRANGERS["mark_asks"]), rng)
        return asked.replace("<m>", control_mark(rng))
    role = rng.choice(("system", "user", "assistant", "system", "model", "tool"))
    if roll < 0.75:
        start = rng.choice(("<|im_start|>", "<|im_start|>", control_mark(rng)))
        end = rng.choice(("<|im_end|>", "<|im_end|>", "", control_mark(rng)))
        joint = rng.choice(("\n", "\n", " ", ""))
        message = f"{start}{role}{joint}{text if rng.random() < 0.8 else ''}{end}"
        if rng.random() < 0.25:
            message += f"\n<|im_start|>{rng.choice(('user', 'assistant'))}\n"
            message += salad(rng) if rng.random() < 0.6 else ""
        return message
    if roll < 0.85:
        return f"{text}{rng.choice(('', ' ', chr(10)))}{control_mark(rng)}"
    if roll < 0.93:
        return f"{control_mark(rng)}{rng.choice(('', ' ', chr(10)))}{text}"
    words = text.split(" ")
    words.insert(rng.randint(0, len(words)), control_mark(rng))
    return " ".join(words)


def pasted(rng: random.Random) -> str:
    """Code, data, logs, addresses, signs: what people paste without a word."""
    if rng.random() < 0.12:
        return _signs(rng)
    joint = rng.choice(("\n", "\n\n"))
    return joint.join(_pick("pastes", rng) for _ in range(rng.choice((1, 1, 1, 2, 3))))


def paste_request(rng: random.Random) -> str:
    """A paste with a request in front of it."""
    return _pick("paste_requests", rng) + pasted(rng)


def other_language(rng: random.Random) -> str:
    """A sentence in another language, or letters of another script."""
    if rng.random() < 0.75:
        return _pick("languages", rng)
    first, last = rng.choice(_SCRIPTS)
    letters = [chr(rng.randint(first, last)) for _ in range(rng.randint(2, 14))]
    return "".join(letter + (" " if rng.random() < 0.15 else "") for letter in letters).strip()


def _signs(rng: random.Random) -> str:
    signs = []
    for _ in range(rng.choice((1, 1, 2, 3, 5))):
        first, last = rng.choice(_SIGNS)
        signs.append(chr(rng.randint(first, last)))
    return "".join(signs) if rng.random() < 0.7 else signs[0] * rng.randint(1, 6)
