"""The corpus: an endless, seeded stream of dialogues in several shapes."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from dialogues import Dialogue, DialogueWriter, Message
from heldout import is_held_out


@dataclass(frozen=True)
class Shape:
    """How long dialogues of one kind are and how their turns are mixed."""

    share: float
    min_turns: int
    max_turns: int
    styled_share: float
    turns: dict[str, float]
    # Questions at the end are cheap in tokens and teach to look far back.
    closing_asks: tuple[int, int] = (0, 0)


KNOWLEDGE = {
    "program": 5.0,
    "explain": 5.0,
    "smalltalk": 2.0,
    "beyond": 3.5,
    "more": 1.0,
    "unknown": 0.7,
    "both": 0.5,
    "marks": 0.4,
    "paste": 0.4,
}
MIXED = {
    "tell": 3.5,
    "recall": 5.0,
    "unknown": 1.8,
    "correct": 1.3,
    "program": 2.0,
    "explain": 2.0,
    "smalltalk": 1.6,
    "beyond": 1.3,
    "summary": 0.3,
    "repeat": 0.4,
    "more": 0.5,
    "both": 0.3,
    "marks": 0.3,
    "paste": 0.3,
}
DENSE = {
    "tell": 5.0,
    "recall": 6.0,
    "unknown": 3.0,
    "correct": 2.0,
    "summary": 0.5,
    "repeat": 0.6,
    "smalltalk": 0.6,
}
COPYING = {"repeat": 5.0, "tell": 1.0, "recall": 1.0}
STYLED = {
    "smalltalk": 4.0,
    "program": 2.0,
    "explain": 2.0,
    "tell": 2.5,
    "recall": 3.5,
    "unknown": 0.8,
    "correct": 0.4,
    "beyond": 1.5,
    "marks": 0.6,
    "paste": 0.5,
}
FAR = {
    "program": 2.4,
    "explain": 2.4,
    "smalltalk": 2.2,
    "beyond": 2.0,
    "tell": 1.4,
    "recall": 2.0,
    "unknown": 0.5,
    "correct": 0.3,
}

QUICK = {
    "program": 7.0,
    "explain": 3.4,
    "beyond": 3.0,
    "smalltalk": 1.7,
    "tell": 0.5,
    "unknown": 0.3,
    "styled": 3.4,
    "marks": 1.0,
    "paste": 1.0,
}
# After a history that another model has answered.
AFTER_OTHERS = {
    "beyond": 4.0,
    "follow": 4.0,
    "program": 2.0,
    "explain": 2.0,
    "recall": 5.0,
    "smalltalk": 1.5,
    "unknown": 0.6,
    "tell": 0.6,
    "marks": 0.3,
    "paste": 0.3,
    "other": 0.8,
}

SHAPES: dict[str, Shape] = {
    "knowledge": Shape(0.15, 1, 6, 0.06, KNOWLEDGE),
    "mixed": Shape(0.26, 3, 14, 0.08, MIXED, (1, 6)),
    "dense": Shape(0.24, 1, 10, 0.04, DENSE, (2, 5)),
    "copying": Shape(0.02, 2, 8, 0.0, COPYING),
    "styled": Shape(0.26, 1, 8, 1.0, STYLED, (0, 3)),
    "far": Shape(0.07, 8, 24, 0.1, FAR, (3, 9)),
    "others": Shape(0.12, 2, 7, 0.12, AFTER_OTHERS, (0, 2)),
}
# The first steps see short, dense copying so that the induction circuit forms early.
WARMUP_SHARES = {
    "knowledge": 0.15,
    "mixed": 0.1,
    "dense": 0.45,
    "copying": 0.25,
    "styled": 0.05,
    "far": 0.0,
    "others": 0.0,
}
# Memory dialogues of several facts of one kind (two numbers, three names): the subject decides.
CROWD_SHARE = 0.35
# Rows of words to be copied: a word that is one rare token is never an answer otherwise.
WORDS_SHARE = 0.25


class Corpus:
    """Dialogues by seed: the same seed gives the same stream."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.writer = DialogueWriter()

    def draw(self, shares: dict[str, float] | None = None) -> list[Message]:
        """One dialogue as a list of messages."""
        return self._until_unseen(lambda: self._dialogue(shares))

    def draw_question(self) -> list[Message]:
        """One question and its answer, meant to be cut after the first answer tokens."""
        return self._until_unseen(self._question)

    def draw_memory(self) -> list[Message]:
        """A few facts told, changed, and asked back at once: many wordings in few tokens."""
        return self._until_unseen(self._memory)

    def draw_after_others(self) -> list[Message]:
        """A history of another model and one question, meant to be cut like `draw_question`."""
        return self._until_unseen(self._after_others)

    @staticmethod
    def _until_unseen(draw: Callable[[], Dialogue]) -> list[Message]:
        """Draws again while a message has a wording of the held-out dialogues."""
        while True:
            dialogue = draw()
            values = [fact.value for fact in dialogue.facts]
            users = [m["content"] for m in dialogue.messages if m["role"] != "assistant"]
            if not any(is_held_out(user, values) for user in users):
                return dialogue.messages

    def _dialogue(self, shares: dict[str, float] | None) -> Dialogue:
        rng = self.rng
        weights = shares or {name: shape.share for name, shape in SHAPES.items()}
        shape = SHAPES[rng.choices(list(weights), list(weights.values()))[0]]
        dialogue = self.writer.begin(rng, shape.styled_share)
        count = rng.randint(shape.min_turns, shape.max_turns)
        if shape.turns is FAR:
            for _ in range(rng.randint(2, 6)):
                self._turn(dialogue, rng.choice(("tell", "tell", "smalltalk", "tell2")))
        if shape.turns is AFTER_OTHERS:
            for _ in range(rng.choice((1, 1, 2, 3))):
                self._turn(dialogue, "other")
        while self._num_turns(dialogue) < count:
            self._turn(dialogue, rng.choices(list(shape.turns), list(shape.turns.values()))[0])
        unasked = rng.sample(dialogue.facts, len(dialogue.facts))
        for _ in range(rng.randint(*shape.closing_asks)):
            if unasked and rng.random() < 0.72:
                self.writer.recall_turn(dialogue, unasked.pop())
            else:
                self._turn(dialogue, "unknown")
        return dialogue

    def _memory(self) -> Dialogue:
        rng = self.rng
        if rng.random() < WORDS_SHARE:
            dialogue = self.writer.begin(rng, styled_share=0.0)
            self.writer.copy_words_turn(dialogue)
            return dialogue
        dialogue = self.writer.begin(rng, styled_share=0.36)
        crowd = rng.random() < CROWD_SHARE
        for _ in range(rng.choice((2, 2, 3, 4)) if crowd else rng.choice((1, 1, 1, 2, 2, 3))):
            self._turn(dialogue, "tell_alike" if crowd and dialogue.facts else "tell")
        if rng.random() < 0.3:
            self._turn(dialogue, "correct")
        if rng.random() < 0.15:
            self._turn(dialogue, rng.choice(("smalltalk", "beyond")))
        asked = dialogue.facts if crowd else dialogue.corrected + dialogue.facts[-2:]
        for _ in range(rng.choice((1, 2, 2, 3)) if crowd else rng.choice((1, 1, 2))):
            if rng.random() < 0.72:
                self.writer.recall_turn(dialogue, rng.choice(asked))
            else:
                self._turn(dialogue, "unknown")
        return dialogue

    def _question(self) -> Dialogue:
        kind = self.rng.choices(list(QUICK), list(QUICK.values()))[0]
        dialogue = self.writer.begin(self.rng, styled_share=float(kind == "styled"))
        if kind == "styled":
            kinds = ("smalltalk", "smalltalk", "program", "explain", "beyond", "marks", "paste")
            kind = self.rng.choice(kinds)
        self._turn(dialogue, kind)
        return dialogue

    def _after_others(self) -> Dialogue:
        rng = self.rng
        dialogue = self.writer.begin(rng, styled_share=0.1)
        for _ in range(rng.choice((1, 1, 1, 2, 3))):
            self._turn(dialogue, "other")
        kinds = {name: share for name, share in AFTER_OTHERS.items() if name != "other"}
        self._turn(dialogue, rng.choices(list(kinds), list(kinds.values()))[0])
        return dialogue

    def stream(self) -> Iterator[list[Message]]:
        """Endless dialogues."""
        while True:
            yield self.draw()

    @staticmethod
    def _num_turns(dialogue: Dialogue) -> int:
        return sum(message["role"] == "assistant" for message in dialogue.messages)

    def _turn(self, dialogue: Dialogue, kind: str) -> None:
        writer, rng = self.writer, self.rng
        if kind in ("recall", "correct") and not dialogue.facts:
            kind = "tell" if rng.random() < 0.8 else "unknown"
        if kind == "tell":
            writer.tell_turn(dialogue, rng.choices((1, 2, 3), (80, 15, 5))[0])
        elif kind == "tell2":
            writer.tell_turn(dialogue, 2)
        elif kind == "both":
            writer.tell_and_ask_turn(dialogue)
        elif kind == "program":
            writer.knowledge_turn(dialogue, writer.program)
        elif kind == "explain":
            writer.knowledge_turn(dialogue, writer.explain)
        else:
            getattr(writer, f"{kind}_turn")(dialogue)
