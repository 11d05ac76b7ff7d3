"""One turn: from a question that is on disk to an answer that is on disk.

Owns the order of things: wait for the model, keep what it reads, pass its words on while keeping
them about once a second, keep the answer, whole or cut off, however the turn ends. Knows the store
and the `Backend` protocol; where the question came from is the service's business.
"""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Generator, Iterator, Mapping
from dataclasses import dataclass, field, replace

from chatcache.backends.base import (
    Backend,
    CacheReport,
    ChatMessage,
    HistoryMode,
    ModelInfo,
    PrefillProgress,
    PreviousTurn,
    SamplingParams,
    TextDelta,
    Timings,
    TurnEvent,
    TurnFailed,
    TurnFinished,
    TurnPlanned,
    TurnRequest,
    TurnResult,
    Usage,
)
from chatcache.chat.conversation import Message, replace_unstorable
from chatcache.chat.journal_table import JournalEntry, Namespace
from chatcache.chat.node_table import StoredNode
from chatcache.chat.partials import Partial
from chatcache.chat.pump import EventPump, as_shown
from chatcache.chat.report import figures_json
from chatcache.chat.session_table import Cause
from chatcache.chat.store import Origin, SessionStore
from chatcache.chat.views import AnswerSaved, ChatEvent, WaitingForModel
from chatcache.errors import StorageError
from chatcache.token_ids import NO_IDS

PARTIAL_SECONDS = 1.0
READY_POLL_SECONDS = 0.1
DRAIN_SECONDS = 15.0


@dataclass(frozen=True, slots=True)
class TurnOptions:
    """How a turn is answered."""

    sampling: SamplingParams
    think: bool | None = None
    use_cache: bool = True


@dataclass(frozen=True, slots=True)
class TurnTask:
    """A turn to be answered.

    question: the user message to answer; None when nothing is kept. seen: the tip that the answer
    replaces. journal_tip: whose journal the prompt continues. continued: the cut-off answer that
    goes on. left_*: the line that the session has just left, and why. num_read_at: for each answer
    on the path, by node number, how many of the messages there are up to it.
    """

    session_id: str
    session_name: str
    turn: int
    messages: tuple[ChatMessage, ...]
    options: TurnOptions
    question: StoredNode | None = None
    seen: int | None = None
    journal_tip: int | None = None
    continued: Message | None = None
    left_tip: int | None = None
    left_cause: Cause | None = None
    history_mode: HistoryMode = "canonical"
    num_read_at: Mapping[int, int] = field(default_factory=dict)


class TurnRun:
    """Answers one task. `events` is consumed once; `stop` may be called from any thread."""

    def __init__(
        self, store: SessionStore, backend: Backend, task: TurnTask, turn_lock: threading.Lock
    ) -> None:
        self._store = store
        self._backend = backend
        self._task = task
        # Held while the backend works, so that `stop` never ends another conversation's turn.
        self._turn_lock = turn_lock
        self._is_stopped = threading.Event()
        self._running_lock = threading.Lock()
        self._is_running = False
        self._info: ModelInfo | None = None
        self._journal = NO_IDS
        self._prompt_ids = NO_IDS
        self._text: list[str] = []
        self._reasoning: list[str] = []
        self._num_tokens = 0
        self._created_ms = 0
        self._next_partial = 0.0
        self._is_saved = False
        self._saved: StoredNode | None = None

    def stop(self) -> None:
        """End the turn; what was said so far is kept."""
        self._is_stopped.set()
        self._pass_stop_on()

    def _pass_stop_on(self) -> None:
        """Tell the backend, if it is this turn that it works on.

        Said again until the turn ends: a stop that comes before the backend has begun is lost.
        """
        with self._running_lock:
            if self._is_stopped.is_set() and self._is_running:
                self._backend.stop()

    def events(self) -> Iterator[ChatEvent]:
        """The turn. Raises ChatcacheError after what had been produced is on disk."""
        info = yield from self._wait_for_model()
        if info is None or not (yield from self._wait_for_turn()):
            yield self._answered(_nothing_said())
            return
        try:
            closing = yield from self._answer(info)
        finally:
            self._turn_lock.release()
        if isinstance(closing, TurnFinished):
            yield self._answered(closing.result)
            return
        self._save(None)
        error = closing.error if closing else RuntimeError("the turn ended without an answer")
        raise as_shown(error)

    def _answer(
        self, info: ModelInfo
    ) -> Generator[ChatEvent, None, TurnFinished | TurnFailed | None]:
        """Let the backend answer; its closing event, saved."""
        self._info = info
        request = self._request(info)
        self._set_running(True)
        pump = EventPump(request.turn_id, lambda: self._backend.generate(request))
        closing: TurnFinished | TurnFailed | None = None
        try:
            for event in pump.events(self._pass_stop_on):
                self._pass_stop_on()
                if isinstance(event, TurnFinished | TurnFailed):
                    closing = event
                    self._save(_result_of(event))
                else:
                    yield self._observe(event)
        except BaseException:
            self._end_early(pump, closing)
            raise
        finally:
            self._set_running(False)
        return closing

    def _set_running(self, is_running: bool) -> None:
        with self._running_lock:
            self._is_running = is_running

    def _wait_for_model(self) -> Generator[ChatEvent, None, ModelInfo | None]:
        """The model once it is ready; None when the turn was stopped before."""
        timeout = 0.0
        while not self._is_stopped.is_set():
            try:
                return self._backend.wait_ready(timeout)
            except TimeoutError:
                if timeout == 0.0:
                    yield WaitingForModel(self._task.session_id)
                timeout = READY_POLL_SECONDS
            except Exception as error:
                if timeout > 0.0:
                    raise as_shown(error) from error
                # It failed before this turn: whatever was wrong may be right by now.
                self._backend.start()
                timeout = READY_POLL_SECONDS
        return None

    def _wait_for_turn(self) -> Generator[ChatEvent, None, bool]:
        """Wait until no other turn is answered; False when this one was stopped before."""
        if self._turn_lock.acquire(blocking=False):
            return True
        yield WaitingForModel(self._task.session_id)
        while not self._is_stopped.is_set():
            if self._turn_lock.acquire(timeout=READY_POLL_SECONDS):
                return True
        return False

    def request_ahead(self, info: ModelInfo) -> TurnRequest:
        """What the backend would be asked now, for work ahead of the turn."""
        return replace(self._request(info), previous=None)

    def _request(self, info: ModelInfo) -> TurnRequest:
        task, store = self._task, self._store
        journal_tip, num_read = self._read_so_far(info)
        self._journal = store.journals.journal(journal_tip, info.tokenizer_id)
        namespace = store.answers.last_namespace(task.journal_tip)
        if namespace is None:
            namespace = store.answers.last_namespace(task.left_tip)
        previous = None
        if namespace is not None or task.left_cause is not None:
            previous = PreviousTurn(
                namespace=namespace.fields if namespace else info.namespace_fields,
                cause=task.left_cause,
                journal=store.journals.journal(task.left_tip, info.tokenizer_id),
            )
        return TurnRequest(
            turn_id=uuid.uuid4().hex,
            messages=task.messages,
            journal=self._journal,
            sampling=task.options.sampling,
            think=task.options.think,
            use_cache=task.options.use_cache,
            continue_answer=task.continued is not None,
            previous=previous,
            history_mode=task.history_mode,
            num_read=num_read,
            num_answered=self._num_answered(journal_tip, info),
        )

    def _num_answered(self, journal_tip: int | None, info: ModelInfo) -> int:
        """How much of the journal is known to have been read: the model may have been stopped on
        the way through a question without an answer."""
        answers, journals = self._task.num_read_at, self._store.journals
        if journal_tip is None or journal_tip in answers:
            return len(self._journal)
        path = journals.along(journal_tip, info.tokenizer_id)
        last = path.last_of(answers)
        return path.lengths[last] if last is not None else 0

    def _read_so_far(self, info: ModelInfo) -> tuple[int | None, int]:
        """(whose journal the prompt goes on from, how many messages that is known to cover).

        In append mode that is the last answer that was produced: what was read behind it (a
        question without an answer) is written anew.
        """
        task = self._task
        if task.history_mode == "canonical":
            return task.journal_tip, 0
        path = self._store.journals.along(task.journal_tip, info.tokenizer_id)
        answer = path.last_of(task.num_read_at)
        return answer, task.num_read_at[answer] if answer is not None else 0

    def _observe(self, event: TurnEvent) -> TurnPlanned | PrefillProgress | TextDelta:
        if isinstance(event, TurnPlanned):
            self._plan(event)
        elif isinstance(event, TextDelta):
            (self._reasoning if event.is_reasoning else self._text).append(event.text)
            self._num_tokens = event.num_tokens
            self._keep_partial()
        elif not isinstance(event, PrefillProgress):
            raise TypeError(f"unexpected event {type(event).__name__}")
        return event

    def _plan(self, planned: TurnPlanned) -> None:
        self._created_ms = _now_ms()
        self._prompt_ids = self._journal[: planned.keep] + planned.new_ids
        task, info = self._task, self._info
        if task.question is None or info is None or not self._prompt_ids:
            return
        # An answer that is continued has a prompt beyond its question: that becomes a part of the
        # answer's own entry.
        if task.continued is None:
            parent = self._store.journals.journal(task.question.parent_seq, info.tokenizer_id)
            keep = parent.common_prefix(self._prompt_ids)
            entry = JournalEntry(keep, self._prompt_ids[keep:])
            self._store.plan_turn(task.question, info.tokenizer_id, entry)

    def _message(self, text: str, reasoning: str | None, finish_reason: str) -> Message:
        old = self._task.continued
        if old is not None:
            text = old.text + text
            reasoning = (old.reasoning or "") + (reasoning or "") or None
        return Message(
            role="assistant",
            text=replace_unstorable(text),
            reasoning=replace_unstorable(reasoning) if reasoning else None,
            model=self._info.model if self._info else None,
            finish_reason=finish_reason,  # type: ignore[arg-type]
            created_ms=self._created_ms or _now_ms(),
        )

    def _message_so_far(self) -> Message:
        return self._message("".join(self._text), "".join(self._reasoning) or None, "stopped")

    def _keep_partial(self) -> None:
        question = self._task.question
        now = time.monotonic()
        if question is None or now < self._next_partial:
            return
        partial = Partial(
            question.seq, self._task.session_id, self._num_tokens, self._message_so_far()
        )
        try:
            self._store.partials.write(partial)
        except StorageError:
            # The answer itself may still find room when it ends, and says so if it does not.
            self._next_partial = now + 10 * PARTIAL_SECONDS
            return
        self._next_partial = time.monotonic() + PARTIAL_SECONDS

    def _end_early(self, pump: EventPump, closing: TurnFinished | TurnFailed | None) -> None:
        """The consumer has gone (closed, interrupted, or the disk is full): stop and keep."""
        if self._is_saved:
            return
        result: TurnResult | None = _result_of(closing) if closing else None
        try:
            if closing is None:
                self.stop()
                last = pump.drain(DRAIN_SECONDS, self._pass_stop_on)
                result = _result_of(last) if last else None
        finally:
            self._save(result)

    def _save(self, result: TurnResult | None) -> None:
        """Keep the answer: with its ids and figures, or only the words that came through."""
        task, info = self._task, self._info
        if self._is_saved or task.question is None or task.seen is None or info is None:
            return
        if result is None:
            if self._text or self._reasoning:
                self._add(self._message_so_far(), None)
            return
        has_said = result.text or result.reasoning or result.answer_ids
        if not has_said and result.finish_reason == "stopped":
            return
        namespace = Namespace(info.namespace, info.tokenizer_id, info.namespace_fields)
        origin = Origin(
            namespace=namespace,
            backend=info.backend,
            result_json=figures_json(result),
            prompt_ids=self._prompt_ids,
            answer_ids=result.answer_ids,
            num_tokens=(result.usage.prompt_tokens or 0) + (result.usage.completion_tokens or 0),
        )
        self._add(self._message(result.text, result.reasoning, result.finish_reason), origin)

    def _add(self, message: Message, origin: Origin | None) -> None:
        task = self._task
        if task.question is None or task.seen is None:
            return
        self._saved = self._store.add_answer(
            task.session_id, task.question, message, task.seen, origin, self._num_tokens
        )
        self._is_saved = True

    def _answered(self, result: TurnResult) -> AnswerSaved:
        task, info = self._task, self._info
        if self._saved is not None:
            message = self._saved.node.message
            result = replace(result, text=message.text, reasoning=message.reasoning)
        return AnswerSaved(
            session_id=task.session_id,
            session_name=task.session_name,
            turn=task.turn,
            node_id=self._saved.node.node_id if self._saved else None,
            model=info.model if info else "",
            backend=info.backend if info else "local",
            result=result,
        )

    @property
    def saved(self) -> StoredNode | None:
        """The answer as it is on disk; None as long as there is none."""
        return self._saved


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


def _result_of(event: TurnFinished | TurnFailed) -> TurnResult | None:
    return event.result if isinstance(event, TurnFinished) else event.partial


def _nothing_said() -> TurnResult:
    """The result of a turn that was stopped before the model began."""
    return TurnResult(
        text="",
        reasoning=None,
        finish_reason="stopped",
        answer_ids=NO_IDS,
        usage=Usage(0, 0, 0, 0),
        timings=Timings(None, None, None, None, None, None),
        cache=CacheReport("off", "disabled", 0, "Stopped before the model began."),
    )
