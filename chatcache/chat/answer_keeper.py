"""What a turn leaves on disk: the ids that were read, the words as they come, the answer.

Owns what is known of one answer until it is whole. Knows the store; what waits, asks and stops is
the turn's business.
"""

from __future__ import annotations

import time

from chatcache.backends.base import (
    CacheReport,
    ModelInfo,
    TextDelta,
    Timings,
    TurnPlanned,
    TurnRequest,
    TurnResult,
    Usage,
)
from chatcache.chat.conversation import Message, replace_unstorable
from chatcache.chat.figures import encode, figures_of
from chatcache.chat.journal_table import JournalEntry, Namespace, PathJournal
from chatcache.chat.node_table import StoredNode
from chatcache.chat.partials import Partial
from chatcache.chat.store import Origin, SessionStore
from chatcache.chat.tasks import TurnTask, journal_before
from chatcache.errors import StorageError
from chatcache.token_ids import NO_IDS, TokenIds

PARTIAL_SECONDS = 1.0


class AnswerKeeper:
    """Keeps one answer. A task without a question is kept nowhere."""

    def __init__(
        self,
        store: SessionStore,
        task: TurnTask,
        info: ModelInfo,
        request: TurnRequest,
        path: PathJournal,
    ) -> None:
        self._store = store
        self._task = task
        self._info = info
        self._journal = request.journal
        self._parent_journal = journal_before(task, path).ids
        # As it is stored; None while that is not known.
        self._question_journal: TokenIds | None = None
        if task.question is not None and task.question.seq in path.lengths:
            self._question_journal = path.up_to(task.question.seq)
        self._planned: TurnPlanned | None = None
        self._prompt_ids = NO_IDS
        self._text: list[str] = []
        self._reasoning: list[str] = []
        self._num_tokens = 0
        self._created_ms = 0
        self._next_partial = 0.0
        self.saved: StoredNode | None = None

    def plan(self, planned: TurnPlanned) -> None:
        """Keep what the model reads."""
        self._planned, self._created_ms = planned, _now_ms()
        self._prompt_ids = self._journal[: planned.keep] + planned.new_ids
        question, tokenizer_id = self._task.question, self._info.tokenizer_id
        # An answer that is continued has a prompt beyond its question: that becomes a part of the
        # answer's own entry.
        if question is None or self._task.continued is not None or not self._prompt_ids:
            return
        keep = self._parent_journal.common_prefix(self._prompt_ids)
        entry = JournalEntry(keep, self._prompt_ids[keep:])
        if self._store.plan_turn(question, tokenizer_id, entry):
            self._question_journal = self._prompt_ids

    def add(self, delta: TextDelta) -> None:
        """Take in a piece of the answer; about once a second all of it is kept."""
        (self._reasoning if delta.is_reasoning else self._text).append(delta.text)
        self._num_tokens = delta.num_tokens
        question, now = self._task.question, time.monotonic()
        if question is None or now < self._next_partial:
            return
        message = self._message("".join(self._text), "".join(self._reasoning), "stopped")
        partial = Partial(question.seq, self._task.session_id, self._num_tokens, message)
        try:
            self._store.partials.write(partial)
        except StorageError:
            # The answer itself may still find room when it ends, and says so if it does not.
            self._next_partial = now + 10 * PARTIAL_SECONDS
            return
        self._next_partial = time.monotonic() + PARTIAL_SECONDS

    def save(self, result: TurnResult | None) -> None:
        """Keep the answer, once. None: nobody could tell how it ended; its words are kept."""
        task, info = self._task, self._info
        result = result or self._cut_off()
        if self.saved is not None or task.question is None or task.seen is None or result is None:
            return
        has_said = result.text or result.reasoning or result.answer_ids
        if not has_said and result.finish_reason == "stopped":
            return
        origin = Origin(
            namespace=Namespace(info.namespace, info.tokenizer_id, info.namespace_fields),
            backend=info.backend,
            result_json=encode(figures_of(result)),
            prompt_ids=self._prompt_ids,
            answer_ids=result.answer_ids,
            num_tokens=(result.usage.prompt_tokens or 0) + (result.usage.completion_tokens or 0),
            question_journal=self._question_journal,
        )
        message = self._message(result.text, result.reasoning, result.finish_reason)
        self.saved = self._store.add_answer(
            task.session_id, task.question, message, task.seen, origin, self._num_tokens
        )

    def _cut_off(self) -> TurnResult | None:
        """What is left of an answer whose engine died. Its ids died with it, so the next turn
        reads the words again. None: nothing had been said."""
        planned = self._planned
        if planned is None or not (self._text or self._reasoning):
            return None
        usage = Usage(
            prompt_tokens=planned.prompt_tokens,
            completion_tokens=self._num_tokens,
            cached_ram_tokens=planned.cached_ram_tokens,
            cached_disk_tokens=planned.cached_disk_tokens,
        )
        return TurnResult(
            text="".join(self._text),
            reasoning="".join(self._reasoning) or None,
            finish_reason="stopped",
            answer_ids=NO_IDS,
            usage=usage,
            timings=Timings(None, None, None, None, None, None),
            cache=CacheReport(
                outcome="partial" if usage.cached_tokens else "miss",
                reason=planned.reason,
                diverged_at=usage.cached_tokens,
                detail=planned.detail,
            ),
        )

    def _message(self, text: str, reasoning: str | None, finish_reason: str) -> Message:
        continued = self._task.continued
        if continued is not None:
            text = continued.text + text
            reasoning = (continued.reasoning or "") + (reasoning or "")
        return Message(
            role="assistant",
            text=replace_unstorable(text),
            reasoning=replace_unstorable(reasoning) if reasoning else None,
            model=self._info.model,
            finish_reason=finish_reason,  # type: ignore[arg-type]
            created_ms=self._created_ms or _now_ms(),
        )


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
