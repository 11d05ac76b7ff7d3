"""The answer of one turn while it is produced: ids, text, reasoning, and how it ended."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from chatcache.backends.base import (
    CacheReport,
    FinishReason,
    TextDelta,
    Timings,
    TurnResult,
    Usage,
)
from chatcache.backends.local.prompt.detokenize import Detokenizer
from chatcache.backends.local.prompt.planner import PromptPlan
from chatcache.backends.local.prompt.reasoning import (
    ReasoningSplitter,
    TextPiece,
    reasoning_format,
    shown_tokens,
)
from chatcache.token_ids import TokenIds


class GeneratedAnswer:
    """Push ids, get text events; afterwards `result`."""

    def __init__(self, tokenizer: Any, plan: PromptPlan):
        added = [token.content for token in tokenizer.added_tokens_decoder.values()]
        style = reasoning_format(added)
        context = plan.ids if plan.continues_answer else ()
        self._detokenizer = Detokenizer(tokenizer, shown=shown_tokens(style), context=context)
        self._splitter = ReasoningSplitter(
            style, is_open=plan.opens_reasoning, is_continued=plan.continues_answer
        )
        self._text: list[str] = []
        self._reasoning: list[str] = []
        self.token_ids: list[int] = []
        self.finish_reason: FinishReason | None = None

    def push(self, token_id: int, turn_id: str) -> Iterator[TextDelta]:
        """Take the next id; yields the text that is certain now."""
        self.token_ids.append(token_id)
        text = self._detokenizer.push(token_id)
        if text:
            yield from self._emit(self._splitter.push(text), turn_id)

    def finish(self, reason: FinishReason) -> None:
        self.finish_reason = reason

    def close(self, turn_id: str) -> Iterator[TextDelta]:
        """The text that was held back, once nothing follows."""
        pieces = [*self._splitter.push(self._detokenizer.finish()), *self._splitter.finish()]
        yield from self._emit(pieces, turn_id)

    def result(self, usage: Usage, timings: Timings, cache: CacheReport) -> TurnResult:
        return TurnResult(
            text="".join(self._text),
            reasoning="".join(self._reasoning) or None,
            finish_reason=self.finish_reason or "stopped",
            answer_ids=TokenIds(self.token_ids),
            usage=usage,
            timings=timings,
            cache=cache,
        )

    def _emit(self, pieces: Sequence[TextPiece], turn_id: str) -> Iterator[TextDelta]:
        for piece in pieces:
            (self._reasoning if piece.is_reasoning else self._text).append(piece.text)
            yield TextDelta(turn_id, piece.text, piece.is_reasoning, len(self.token_ids))
