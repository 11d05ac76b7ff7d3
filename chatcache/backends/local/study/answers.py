"""Answers what is asked of the model and its cache beside turns.

Owns who answers what. Nothing of it is a turn: it is never committed, written or counted.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass

from chatcache.backends.local.study.attention import AttentionStudy
from chatcache.backends.local.study.beside import Beside
from chatcache.backends.local.study.next_tokens import NextTokenStudy
from chatcache.backends.local.study.pieces import Vocabulary
from chatcache.backends.local.study.vocabularies import Vocabularies
from chatcache.backends.questions import (
    Answer,
    AskAttention,
    AskNextTokens,
    AskTree,
    DescribeTokens,
    ModelShape,
    Question,
    Tokenize,
)
from chatcache.errors import UsageError
from chatcache.formatting import plural
from chatcache.token_ids import TokenIds


@dataclass(frozen=True, slots=True)
class Answers:
    """On one loaded model, which reads at most `max_context` tokens."""

    vocabulary: Vocabulary
    vocabularies: Vocabularies
    describe: Callable[[], ModelShape]
    beside: Beside
    attention: AttentionStudy
    next_tokens: NextTokenStudy
    max_context: int

    def to(self, question: Question) -> Generator[None, None, Answer]:
        """The answer; between two steps of the generator it may be given up. Quick ones take none.

        Raises UnavailableError for what cannot be told, UsageError for what makes no sense."""
        if isinstance(question, DescribeTokens):
            return self.vocabulary.pieces(question.ids)
        if isinstance(question, Tokenize):
            return self._tokenize(question)
        if isinstance(question, AskTree):
            live = self.beside.live
            return live.prefixes.tree(live.path.ids, question.num_events)
        if isinstance(question, AskAttention | AskNextTokens):
            return (yield from self._compute(question))
        return self.describe()

    def forget(self) -> None:
        """Nothing stays of the paths that were asked for last."""
        self.attention.forget()
        self.next_tokens.forget()

    def _tokenize(self, question: Tokenize) -> Answer:
        asked = question.model
        vocabulary = self.vocabularies.of(asked) if asked else self.vocabulary
        return vocabulary.tokenize(question.text)

    def _compute(self, question: AskAttention | AskNextTokens) -> Generator[None, None, Answer]:
        self._check(question.ids)
        with self.beside.live.prefixes.computing():
            if isinstance(question, AskAttention):
                return (yield from self.attention.answer(question))
            return (yield from self.next_tokens.answer(question))

    def _check(self, ids: TokenIds) -> None:
        """Raises UsageError for a path that this model cannot have read."""
        if not ids:
            raise UsageError("Nothing was read yet.", "Say something first.")
        if len(ids) > self.max_context:
            raise UsageError(
                f"The path has {plural(len(ids), 'token')}, but this model reads at most "
                f"{self.max_context:,}.",
                "Choose an earlier turn, or a model that reads more.",
            )
        if max(ids) >= self.describe().vocab_size:
            raise UsageError(
                "These are tokens of another model's vocabulary.",
                "Choose a turn that this model has read.",
            )
