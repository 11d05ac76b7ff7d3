"""Answers what is asked of the model and its cache beside turns.

Owns who answers what. Nothing of it is a turn: it is never committed, written or counted.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass

from chatcache.backends.local.run.live_context import LiveContext
from chatcache.backends.local.study.pieces import Vocabulary
from chatcache.backends.local.study.tree import tree_shape
from chatcache.backends.questions import (
    Answer,
    AskTree,
    DescribeTokens,
    Question,
    Tokenize,
)
from chatcache.errors import UnavailableError


@dataclass(frozen=True, slots=True)
class Answers:
    """On one loaded model."""

    vocabulary: Vocabulary
    context: LiveContext

    def to(self, question: Question) -> Generator[None, None, Answer]:
        """The answer; between two steps of the generator it may be given up.

        Raises UnavailableError for what cannot be answered."""
        if isinstance(question, DescribeTokens):
            return self.vocabulary.pieces(question.ids)
        if isinstance(question, Tokenize) and not question.model:
            return self.vocabulary.tokenize(question.text)
        if isinstance(question, AskTree):
            return tree_shape(question, self.context.prefixes, self.context.path.ids)
        yield
        raise UnavailableError("This engine cannot answer that yet.", "A newer chatcache may.")
