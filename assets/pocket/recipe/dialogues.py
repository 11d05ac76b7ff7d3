"""Composes dialogues: which turn comes next, what the user types, and what the answer is."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

import facts as fact_lib
import strangers
import values
from facts import Fact, FactBook
from noise import NOUN_FRAMES, as_typed_question, finish, misspell, telegraphic
from pools import PHRASES
from styles import ONE_WORD_ANSWERS, Style, draw_style
from texts import (
    BEYOND_FILES,
    EXPLAIN_FILES,
    PROGRAM_FILES,
    SMALLTALK_FILES,
    Intent,
    expand,
    fill_slots,
    load_intents,
)

Message = dict[str, str]

TYPO_SHARE = 0.10
# Asked for something never told, while something of the same kind was: the cat, after the dog.
NEAR_MISS_SHARE = 0.85
REPEAT_ASKS = PHRASES["repeat_asks"]
LAST_SAID_ASKS = PHRASES["last_said_asks"]
MORE_ASKS = PHRASES["more_asks"]
SUMMARY_ASKS = PHRASES["summary_asks"]
CORRECTION_PREFIXES = PHRASES["correction_prefixes"]
UPDATE_OPENINGS = PHRASES["update_openings"]
BARE_CORRECTIONS = PHRASES["bare_corrections"] + PHRASES["update_bare"]
NOTHING_TOLD = "You have not told me anything about yourself yet."
_UNTELLABLE = {"invented", "means", "is_a"}
_LAST_WORD_MAX = 16


@dataclass
class Dialogue:
    """One conversation in the making."""

    style: Style
    rng: random.Random
    messages: list[Message] = field(default_factory=list)
    facts: list[Fact] = field(default_factory=list)
    corrected: list[Fact] = field(default_factory=list)
    last_intent: Intent | None = None
    last_user: str = ""
    # What another model was asked about the world; the next question may be of the same form.
    asked_world: strangers.WorldQuestion | None = None

    def add(
        self, user: str, answer: str, intent: Intent | None = None, styled: bool = True
    ) -> None:
        """Append one turn."""
        self.messages.append({"role": "user", "content": user})
        text = self.style.apply(answer) if styled else answer
        self.messages.append({"role": "assistant", "content": text})
        self.last_intent, self.last_user = intent, user

    def add_other(self, user: str, answer: str) -> None:
        """Append one turn that another model has answered; nothing of it is learned."""
        self.messages.append({"role": "user", "content": user})
        self.messages.append({"role": "assistant", "content": answer, "author": "other"})
        self.last_intent, self.last_user = None, user


class DialogueWriter:
    """Knows all pieces and writes turns into dialogues."""

    def __init__(self) -> None:
        self.book = FactBook()
        self.program = list(load_intents(PROGRAM_FILES).values())
        self.explain = list(load_intents(EXPLAIN_FILES).values())
        self.smalltalk = load_intents(SMALLTALK_FILES)
        self.chatter = list(self.smalltalk.values())
        self.beyond = load_intents(BEYOND_FILES)

    def begin(self, rng: random.Random, styled_share: float) -> Dialogue:
        """An empty dialogue, with a system prompt at times."""
        style = draw_style(rng, self.book) if rng.random() < styled_share else Style()
        dialogue = Dialogue(style, rng)
        if style.system is not None:
            dialogue.messages.append({"role": "system", "content": style.system})
        for fact in style.known:
            self._remember(dialogue, fact)
        return dialogue

    def knowledge_turn(self, dialogue: Dialogue, intents: list[Intent]) -> None:
        """A question about the program or about language models."""
        rng = dialogue.rng
        intent = rng.choices(intents, [intent.weight for intent in intents])[0]
        if dialogue.style.one_word:
            known = [candidate for candidate in intents if candidate.intent_id in ONE_WORD_ANSWERS]
            intent = rng.choice(known)
        dialogue.add(self._question(intent, rng), self._answer(intent, dialogue), intent)

    def smalltalk_turn(self, dialogue: Dialogue) -> None:
        """Greeting, thanks, questions about the assistant."""
        rng = dialogue.rng
        intent = rng.choice(self.chatter)
        if dialogue.style.one_word:
            intent = self.smalltalk[
                rng.choice(("hello", "thanks", "bye", "how_are_you", "real", "who", "ok"))
            ]
        if dialogue.style.persona and rng.random() < 0.6:
            intent = self.smalltalk["who"]
        if dialogue.style.greeting and rng.random() < 0.5:
            intent = self.smalltalk["hello"]
        if dialogue.style.is_other and intent.intent_id == "who":
            intent = self.smalltalk["hello"]  # "You are a ..." may be meant as a persona
        user = expand(rng.choice(intent.questions), rng)
        user = self._typo(user, rng) if rng.random() < 0.5 else user
        mark = "?" if user.split(" ")[0] in ("what", "who", "how", "are", "do", "can") else "."
        dialogue.add(finish(user, rng, mark), self._answer(intent, dialogue), intent)

    def beyond_turn(self, dialogue: Dialogue) -> None:
        """A question outside the world gets the honest answer."""
        user, answer = self._beyond_question(dialogue.rng)
        dialogue.add(user, "Unknown." if dialogue.style.one_word else answer)

    def other_turn(self, dialogue: Dialogue) -> None:
        """A turn of another model: it knows the world, and talks in its own way."""
        rng, roll = dialogue.rng, dialogue.rng.random()
        if roll < 0.12:
            intent_id = rng.choice(("hello", "thanks"))
            user = expand(rng.choice(self.smalltalk[intent_id].questions), rng)
            answer = strangers.other_small_talk(intent_id == "thanks", rng)
        elif roll < 0.40:
            fact = self.book.draw(rng)
            self._remember(dialogue, fact)
            user, answer = fact_lib.tell(fact, rng), strangers.other_note(fact.value, rng)
        elif roll < 0.47:
            user = self._question(rng.choice(self.program + self.explain), rng)
            answer = strangers.other_answer(rng)
        elif roll < 0.57 and dialogue.messages:
            user, answer = strangers.follow_up(rng), strangers.other_answer(rng)
        elif roll < 0.82:
            if dialogue.asked_world is None or rng.random() < 0.5:
                dialogue.asked_world = strangers.world_question(rng)
            user, answer = dialogue.asked_world.about_another(rng)
        else:
            user, answer = self._beyond_question(rng)[0], strangers.other_answer(rng)
        user = finish(user, rng, "." if roll < 0.40 else "?")
        dialogue.add_other(user, answer)

    def follow_turn(self, dialogue: Dialogue) -> None:
        """A question about what another model has answered: this one does not know."""
        rng = dialogue.rng
        answer = "Unknown." if dialogue.style.one_word else self.beyond["answers"].answers[0]
        if dialogue.asked_world is not None and rng.random() < 0.7:
            user = dialogue.asked_world.about_another(rng)[0]
        else:
            user = strangers.follow_up(rng)
        dialogue.add(finish(user, rng), answer)

    def marks_turn(self, dialogue: Dialogue) -> None:
        """Control tokens typed by the user are text, and one answer says so."""
        rng = dialogue.rng
        texts = (
            lambda: self._question(rng.choice(self.program + self.explain), rng),
            lambda: self._beyond_question(rng)[0],
            lambda: strangers.salad(rng),
            lambda: strangers.other_prompt(rng),
            lambda: draw_style(rng, self.book).system or "hi",
            lambda: finish(expand(rng.choice(rng.choice(self.chatter).questions), rng), rng),
        )
        user = strangers.typed_marks(rng.choice(texts)(), rng)
        answer = "Text." if dialogue.style.one_word else strangers.MARK_ANSWER
        dialogue.add(user, answer)

    def paste_turn(self, dialogue: Dialogue) -> None:
        """Pasted code and data, and other languages, get the honest answers."""
        rng, roll = dialogue.rng, dialogue.rng.random()
        if roll < 0.35:
            user, answer = strangers.other_language(rng), self.smalltalk["language"].answers[0]
        elif roll < 0.5:
            user, answer = strangers.paste_request(rng), self.beyond["answers"].answers[0]
        else:
            user, answer = strangers.pasted(rng), self.smalltalk["unclear"].answers[0]
        dialogue.add(user, "Unknown." if dialogue.style.one_word else answer)

    def tell_turn(self, dialogue: Dialogue, count: int = 1) -> None:
        """The user tells `count` facts in one message."""
        rng = dialogue.rng
        told: list[Fact] = []
        while len(told) < count:
            fact = self.book.draw(rng)
            known = {known.key for known in dialogue.facts + told}
            if fact.key not in known:
                told.append(fact)
        sentences = [self._typo_around(fact_lib.tell(fact, rng), fact, rng) for fact in told]
        joint = rng.choice((" and ", ", ", ". ", ", and ")) if count > 1 else ""
        user = finish(joint.join(sentences), rng, ".")
        for fact in told:
            self._remember(dialogue, fact)
        dialogue.add(user, "Noted." if dialogue.style.one_word else fact_lib.acknowledge(told, rng))

    def tell_alike_turn(self, dialogue: Dialogue) -> None:
        """The user tells a fact of the same kind as an earlier one."""
        rng = dialogue.rng
        fact = self.book.draw_alike(rng.choice(dialogue.facts), rng)
        if fact.key in {known.key for known in dialogue.facts}:
            return self.tell_turn(dialogue)
        self._remember(dialogue, fact)
        user = finish(self._typo_around(fact_lib.tell(fact, rng), fact, rng), rng, ".")
        answer = "Noted." if dialogue.style.one_word else fact_lib.acknowledge([fact], rng)
        return dialogue.add(user, answer)

    def tell_and_ask_turn(self, dialogue: Dialogue) -> None:
        """A fact and a question in one message; both are answered."""
        rng = dialogue.rng
        fact = self.book.draw(rng)
        if dialogue.style.one_word or fact.key in {known.key for known in dialogue.facts}:
            return self.tell_turn(dialogue)
        intent = rng.choice(self.program + self.explain)
        user = f"{fact_lib.tell(fact, rng)}. {self._question(intent, rng)}"
        self._remember(dialogue, fact)
        answer = f"{fact_lib.acknowledge([fact], rng)} {self._answer(intent, dialogue)}"
        return dialogue.add(user, answer, intent)

    def correct_turn(self, dialogue: Dialogue) -> None:
        """The user changes a fact; the newest value counts."""
        rng = dialogue.rng
        fact = rng.choice(dialogue.facts) if rng.random() < 0.6 else dialogue.facts[-1]
        old, new = fact, fact_lib.with_new_value(fact, rng)
        told_just_now = old is dialogue.facts[-1] and old.value in dialogue.last_user
        if told_just_now and rng.random() < 0.5:
            user = expand(rng.choice(BARE_CORRECTIONS), rng)
            user = user.replace("<v>", new.value).replace("<o>", old.value)
        elif rng.random() < 0.3:
            user = rng.choice(CORRECTION_PREFIXES) + fact_lib.tell(new, rng, is_plain=True)
        else:
            opening = expand(rng.choice(UPDATE_OPENINGS), rng)
            user = f"{opening} {fact_lib.tell(new, rng, is_plain=True)}"
        dialogue.facts[dialogue.facts.index(old)] = new
        dialogue.corrected.append(new)
        answer = "Corrected." if dialogue.style.one_word else f"Corrected: {new.about()}."
        if rng.random() < 0.15:
            user = fact_lib.tell(new, rng)
            answer = "Noted." if dialogue.style.one_word else fact_lib.acknowledge([new], rng)
        dialogue.add(finish(user, rng, "."), answer)

    def recall_turn(self, dialogue: Dialogue, fact: Fact | None = None) -> None:
        """The user asks a fact back, plainly, by yes or no, or from its value."""
        rng = dialogue.rng
        fact = fact or rng.choice(dialogue.facts)
        roll = rng.random()
        if dialogue.style.one_word:
            user, answer = fact_lib.ask(fact, rng), f"{fact.value}."
        elif roll < 0.06:
            other = fact_lib.with_new_value(fact, rng)
            asked = fact if rng.random() < 0.5 else other
            user = rng.choice(
                ("is it true that <f>", "right that <f>", "did i say that <f>", "correct that <f>")
            )
            first_person = (
                asked.about().replace("your ", "my ").replace("you ", "i ").replace("i are", "i am")
            )
            user = user.replace("<f>", first_person)
            answer = ("Yes, " if asked is fact else "No, ") + fact.about() + "."
        elif roll < 0.12 and fact.kind.reverse:
            user = rng.choice(
                ("who is <v>", "who was <v>", "do you know <v>", "what is <v>")
            ).replace("<v>", fact.value)
            answer = f"{fact.value} is {fact.fill(fact.kind.reverse)}."
        else:
            user = fact_lib.ask(fact, rng)
            answer = fact_lib.recall(fact)
        user = self._typo_around(user, fact, rng)
        dialogue.add(as_typed_question(user, rng, is_recall=True), answer)

    def unknown_turn(self, dialogue: Dialogue) -> None:
        """The user asks what was never told."""
        rng = dialogue.rng
        alike = set[str]()
        if dialogue.facts and rng.random() < NEAR_MISS_SHARE:
            alike = fact_lib.kinds_alike(rng.choice(dialogue.facts).kind.kind_id)
        known_keys = {known.key for known in dialogue.facts}
        while True:
            kind = rng.choices(self.book.kinds, self.book.weights)[0]
            fact = Fact(kind, fact_lib.draw_subject(kind, rng), "")
            is_vague = fact.subject == "list"
            if is_vague or kind.kind_id in _UNTELLABLE or fact.key in known_keys:
                continue
            if not alike or kind.kind_id in alike or rng.random() < 0.02:
                break
        answer = "Unknown." if dialogue.style.one_word else fact_lib.not_told(kind, fact.subject)
        user = self._typo_around(fact_lib.ask(fact, rng), fact, rng)
        dialogue.add(as_typed_question(user, rng, is_recall=True), answer)

    def summary_turn(self, dialogue: Dialogue) -> None:
        """The user asks for everything told so far (kept to few facts)."""
        rng = dialogue.rng
        if len(dialogue.facts) > 4 or dialogue.style.one_word:
            return self.recall_turn(dialogue) if dialogue.facts else self.unknown_turn(dialogue)
        answer = (
            f"You told me that {fact_lib.join_facts(dialogue.facts)}."
            if dialogue.facts
            else NOTHING_TOLD
        )
        return dialogue.add(
            as_typed_question(rng.choice(SUMMARY_ASKS), rng, is_recall=True), answer
        )

    def repeat_turn(self, dialogue: Dialogue) -> None:
        """Pure copying: the user gives words to repeat, or asks for the last message."""
        rng = dialogue.rng
        if rng.random() < 0.3 and 0 < len(dialogue.last_user.split()) < _LAST_WORD_MAX:
            user = finish(rng.choice(LAST_SAID_ASKS), rng)
            return dialogue.add(user, f"You said: {dialogue.last_user}", styled=False)
        pools = (values.nonce_word, values.nonce_name, values.code_text, values.city_name)
        words = [rng.choice(pools)(rng) for _ in range(rng.choice((1, 2, 3, 4, 5, 6, 8, 12)))]
        if rng.random() < 0.3:
            words = rng.sample(values.ITEMS + values.FOODS + values.COLOURS, rng.randint(2, 9))
        text = " ".join(words)
        return dialogue.add(rng.choice(REPEAT_ASKS).replace("<x>", text), text, styled=False)

    def copy_words_turn(self, dialogue: Dialogue) -> None:
        """Many words of the texts, to be repeated or kept as a list and given back."""
        rng = dialogue.rng
        if rng.random() < 0.4:
            words = [word[:14] for word in rng.sample(values.OWN_WORDS, rng.randint(6, 14))]
            text = " ".join(words)
            dialogue.add(rng.choice(REPEAT_ASKS).replace("<x>", text), text, styled=False)
            return
        kind = next(kind for kind in self.book.kinds if kind.kind_id == "list")
        words = [word[:14] for word in rng.sample(values.OWN_WORDS, rng.randint(3, 5))]
        fact = Fact(kind, rng.choice(kind.subjects), f"{', '.join(words[:-1])} and {words[-1]}")
        self._remember(dialogue, fact)
        dialogue.add(finish(fact_lib.tell(fact, rng), rng, "."), fact_lib.acknowledge([fact], rng))
        if rng.random() < 0.5:
            self.recall_turn(dialogue, fact)

    def more_turn(self, dialogue: Dialogue) -> None:
        """A follow-up to the last explanation."""
        rng = dialogue.rng
        intent = dialogue.last_intent
        if intent is None or not intent.elaborations or dialogue.style.one_word:
            return self.knowledge_turn(dialogue, self.explain)
        user = as_typed_question(rng.choice(MORE_ASKS), rng, is_recall=True)
        return dialogue.add(user, rng.choice(intent.elaborations))

    def _beyond_question(self, rng: random.Random) -> tuple[str, str]:
        group, reply = ("ask", "answers") if rng.random() < 0.68 else ("ask_cannot", "cannot")
        template = expand(rng.choice(self.beyond[group].questions), rng)
        user = fill_slots(template, self.beyond["slots"].slots, rng)
        asked = as_typed_question(self._typo(user, rng), rng, is_recall=True)
        return asked, self.beyond[reply].answers[0]

    def _question(self, intent: Intent, rng: random.Random) -> str:
        if intent.noun_phrases and (not intent.questions or rng.random() < 0.4):
            text = rng.choice(NOUN_FRAMES).replace("<x>", rng.choice(intent.noun_phrases))
        else:
            text = expand(rng.choice(intent.questions), rng)
            if rng.random() < 0.07 and len(text.split()) > 4:
                text = telegraphic(text, rng)
        return as_typed_question(self._typo(text, rng), rng)

    def _answer(self, intent: Intent, dialogue: Dialogue) -> str:
        rng, style = dialogue.rng, dialogue.style
        if style.one_word:
            return ONE_WORD_ANSWERS.get(intent.intent_id, "Unknown.")
        if intent.intent_id == "who" and style.persona:
            return f"I am {style.persona}."
        if intent.intent_id == "hello" and style.persona:
            return f"Hello! I am {style.persona}."
        if intent.intent_id == "hello" and style.greeting:
            return f"{style.greeting}! What would you like to talk about?"
        return rng.choice(intent.answers)

    def _remember(self, dialogue: Dialogue, fact: Fact) -> None:
        dialogue.facts = [known for known in dialogue.facts if known.key != fact.key] + [fact]

    def _typo(self, text: str, rng: random.Random) -> str:
        return misspell(text, rng) if rng.random() < TYPO_SHARE else text

    def _typo_around(self, text: str, fact: Fact, rng: random.Random) -> str:
        if rng.random() >= TYPO_SHARE:
            return text
        return misspell(
            text, rng, frozenset(f"{fact.subject} {fact.value}".replace(",", "").split())
        )
