"""A backend without a model, for tests of everything above the `Backend` protocol.

It keeps the journals it has seen, so that hits and misses obey the same identities as the real
thing. It knows nothing of sessions. Nothing here sleeps: a test that wants to look at a moment has
the backend wait at a `Gate`.

    backend = FakeBackend(answers=["Hello there, friend."])
    gate = backend.gate("delta:1")           # points: load, plan, prefill, answer, delta:N
    ... run a turn in a thread ...
    gate.arrived.wait(5); ...look...; gate.open()
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Literal

from chatcache.backends.base import (
    BackendEvent,
    BackendFailed,
    CacheEvent,
    CacheSnapshot,
    ChatMessage,
    CostEstimate,
    FinishReason,
    ModelInfo,
    ModelLoading,
    ModelReady,
    PrefillProgress,
    Prepare,
    SegmentRow,
    TextDelta,
    TierUse,
    TurnEvent,
    TurnFailed,
    TurnFinished,
    TurnPlanned,
    TurnRequest,
    TurnStream,
    TurnWaiting,
)
from chatcache.backends.questions import Answer, Question
from chatcache.errors import (
    ContextFullError,
    EngineDiedError,
    ModelLoadError,
    UnavailableError,
)
from chatcache.token_ids import TokenIds
from tests.toymodel import (
    BYTES_PER_TOKEN,
    END_ID,
    MS_PER_CACHED_TOKEN,
    MS_PER_COMPUTED_TOKEN,
    THINK_END_ID,
    THINK_ID,
    Gate,
    ToyTurn,
    encode,
    fake_model_info,
    render,
    split_words,
)

__all__ = ["END_ID", "FakeBackend", "Gate", "encode", "fake_model_info"]

CLOCK = 1_763_700_000.0

Answers = Sequence[str] | Callable[[TurnRequest], str]


class FakeBackend:
    """Implements `Backend` deterministically.

    answers: texts used in turn (the last one repeats), or a function of the request; left out,
        it echoes the last message. reasoning: produced before each answer. tokens_per_char: ids
        per character. fail_at / die_at: a point at which the turn fails, or the engine dies (once;
        it restarts). load_error: loading fails. starts_ready: `start` loads in the calling thread.
    """

    def __init__(
        self,
        answers: Answers | None = None,
        *,
        model: str = "fake",
        info: ModelInfo | None = None,
        reasoning: str | None = None,
        tokens_per_char: int = 1,
        prefill_chunk: int = 512,
        fail_at: str | None = None,
        failure: Exception | None = None,
        die_at: str | None = None,
        load_error: Exception | None = None,
        known_journals: Iterable[Sequence[int]] = (),
        starts_ready: bool = False,
    ) -> None:
        self.info = info or fake_model_info(model)
        self.requests: list[TurnRequest] = []
        self.prepares: list[Prepare] = []
        self.num_cancels = 0
        self.others_ahead = 0  # so many turns of other chats come before each of ours
        self.num_stops = self.num_spills = 0
        self.spilled: list[str | None] = []
        self.studied: list[Question] = []
        self.study_answers: dict[type, Answer | Callable[[Any], Answer]] = {}
        self.is_started = False
        self.is_closed = False
        self.fail_at = fail_at
        self.failure = failure or ModelLoadError("The fake model failed.", "Try again.")
        self.die_at = die_at
        self.load_error = load_error
        self.ram_journals: list[TokenIds] = []
        self.disk_journals: list[TokenIds] = [TokenIds(journal) for journal in known_journals]
        self._answers = answers
        self._reasoning = reasoning
        self._tokens_per_char = tokens_per_char
        self._prefill_chunk = prefill_chunk
        self._starts_ready = starts_ready
        self._gates: dict[str, Gate] = {}
        self._listeners: list[Callable[[BackendEvent], None]] = []
        self._status: BackendEvent = ModelLoading("waiting to start")
        self._lock = threading.RLock()
        self._turn_lock = threading.Lock()
        self._loaded = threading.Event()
        self._turn: ToyTurn | None = None

    # What tests use

    def gate(self, point: str) -> Gate:
        """Make the backend wait at `point`: load, plan, prefill, answer or delta:N (from 0)."""
        return self._gates.setdefault(point, Gate())

    def emit(self, event: BackendEvent) -> None:
        """Tell all listeners, as the engine's reader thread would."""
        with self._lock:
            if isinstance(event, ModelLoading | ModelReady | BackendFailed):
                self._status = event
            listeners = list(self._listeners)
        for listener in listeners:
            listener(event)

    def snapshot(self) -> CacheSnapshot:
        with self._lock:
            rows = [
                *self._rows(self.ram_journals, is_ram=True),
                *self._rows(self.disk_journals, is_ram=False),
            ]
        live = len(self.ram_journals[-1]) if self.ram_journals else 0
        return CacheSnapshot(
            ram=self._use(self.ram_journals, 1 << 30),
            disk=self._use(self.disk_journals, 8 << 30),
            live_tokens=live,
            segments=tuple(reversed(rows)),
        )

    def _rows(self, journals: list[TokenIds], *, is_ram: bool) -> Iterator[SegmentRow]:
        for index, journal in enumerate(journals):
            yield SegmentRow(
                segment_id=f"{'ram' if is_ram else 'disk'}-{index}",
                namespace=self.info.namespace,
                parent_id=None,
                start=0,
                stop=len(journal),
                num_bytes=len(journal) * BYTES_PER_TOKEN,
                in_ram=is_ram,
                on_disk=not is_ram,
                is_live=is_ram and index == len(journals) - 1,
                is_pinned=False,
                last_used=CLOCK + index,
                hits=0,
            )

    @staticmethod
    def _use(journals: list[TokenIds], budget: int) -> TierUse:
        num_bytes = sum(len(journal) for journal in journals) * BYTES_PER_TOKEN
        return TierUse(num_bytes, budget, len(journals))

    # Backend

    def engine_use(self) -> None:
        return None

    def start(self) -> None:
        self.is_started = True
        if self._starts_ready:
            self._load()
        else:
            threading.Thread(target=self._load, name="fake-load", daemon=True).start()

    def _load(self) -> None:
        self.emit(ModelLoading("reading the weights", 0, 2))
        if gate := self._gates.get("load"):
            gate.wait(lambda: self.is_closed)
        if self.load_error is not None:
            self._loaded.set()
            self.emit(BackendFailed(self.load_error))
            return
        self.emit(ModelLoading("reading the weights", 2, 2))
        self._loaded.set()  # first: who is told may ask at once
        self.emit(ModelReady(self.info))
        self.emit(self.snapshot())

    def subscribe(self, listener: Callable[[BackendEvent], None]) -> Callable[[], None]:
        with self._lock:
            self._listeners.append(listener)
            status = self._status
        listener(status)
        listener(self.snapshot())

        def unsubscribe() -> None:
            with self._lock:
                if listener in self._listeners:
                    self._listeners.remove(listener)

        return unsubscribe

    def wait_ready(self, timeout: float | None = None) -> ModelInfo:
        if not self._loaded.wait(timeout):
            raise TimeoutError("The fake model is not loaded yet.")
        if self.load_error is not None:
            raise self.load_error
        return self.info

    def estimate(self, journals: Sequence[TokenIds]) -> list[CostEstimate]:
        with self._lock:
            return [self._estimate(journal) for journal in journals]

    def study(self, question: Question, timeout: float | None = None) -> Answer:
        """What a test has put into `study_answers` for the class of the question."""
        self.studied.append(question)
        answer = self.study_answers.get(type(question))
        if answer is None:
            raise UnavailableError("The fake model has no answer.", "Put one there.")
        return answer(question) if callable(answer) else answer

    def _estimate(self, journal: TokenIds) -> CostEstimate:
        num_ram, num_disk = self._match(journal)
        num_missing = len(journal) - num_ram - num_disk
        return CostEstimate(
            ram_tokens=num_ram,
            disk_tokens=num_disk,
            recompute_tokens=num_missing,
            estimated_ms=num_disk * MS_PER_CACHED_TOKEN + num_missing * MS_PER_COMPUTED_TOKEN,
            disk_bytes=num_disk * BYTES_PER_TOKEN,
        )

    def spill(self, segment_id: str | None = None) -> bool:
        self.num_spills += 1
        self.spilled.append(segment_id)
        return self._loaded.is_set()

    def prepare(self, request: Prepare) -> bool:
        """Remembers what it was asked to do ahead; does nothing of it."""
        if self._turn is not None or not self._loaded.is_set():
            return False
        self.prepares.append(request)
        return True

    def cancel_prepare(self) -> None:
        self.num_cancels += 1

    def close(self) -> None:
        self.is_closed = True
        if turn := self._turn:
            turn.is_stopped.set()

    def ask(self, request: TurnRequest) -> TurnStream:
        return FakeStream(self, ToyTurn(request))

    def events(self, turn: ToyTurn) -> Iterator[TurnEvent]:
        """The events of one turn; it goes on as far as they are read."""
        with self._turn_lock:
            self._turn = turn
            self.requests.append(turn.request)
            try:
                yield from self._run(turn)
            except _PointFailedError as failed:
                yield self._failed(turn, failed.point)
            except Exception as error:
                yield TurnFailed(turn.request.turn_id, error)
            finally:
                self._turn = None

    # One turn

    def _reach(self, turn: ToyTurn, point: str) -> None:
        if gate := self._gates.get(point):
            gate.wait(lambda: turn.is_stopped.is_set() or self.is_closed)
        if point in (self.fail_at, self.die_at):
            raise _PointFailedError(point)

    def _run(self, turn: ToyTurn) -> Iterator[TurnEvent]:
        request = turn.request
        if self.others_ahead:
            yield TurnWaiting(request.turn_id, self.others_ahead, "ask")
        self._reach(turn, "plan")
        if self.others_ahead:
            yield TurnWaiting(request.turn_id, 0)
        self._plan(turn)
        limit = self.info.max_context_tokens
        if len(turn.prompt) >= limit:
            error = ContextFullError(
                f"The conversation has {len(turn.prompt):,} tokens, the model takes {limit:,}.",
                "Start a new chat, or fork at an earlier turn.",
                len(turn.prompt),
                limit,
            )
            yield TurnFailed(request.turn_id, error)
            return
        yield TurnPlanned(
            turn_id=request.turn_id,
            keep=turn.keep,
            new_ids=TokenIds(turn.prompt[turn.keep :]),
            cached_ram_tokens=turn.num_ram,
            cached_disk_tokens=turn.num_disk,
            prompt_tokens=len(turn.prompt),
            reason=turn.reason,
            detail=turn.detail,
        )
        yield from self._prefill(turn)
        self._reach(turn, "answer")
        yield from self._decode(turn)

    def _prefill(self, turn: ToyTurn) -> Iterator[TurnEvent]:
        done, total = turn.num_cached, len(turn.prompt)
        yield PrefillProgress(turn.request.turn_id, done, total, turn.num_cached)
        self._reach(turn, "prefill")
        while done < total and not turn.is_stopped.is_set():
            done = min(total, done + self._prefill_chunk)
            yield PrefillProgress(turn.request.turn_id, done, total, turn.num_cached)

    def _decode(self, turn: ToyTurn) -> Iterator[TurnEvent]:
        limit = turn.request.sampling.max_new_tokens
        finish: FinishReason = "stop"
        for index, (piece, is_reasoning, ids) in enumerate(self._pieces(turn.request)):
            self._reach(turn, f"delta:{index}")
            if turn.is_stopped.is_set():
                finish = "stopped"
                break
            room = None if limit is None else limit - len(turn.answer_ids)
            if room is not None and room < len(ids):
                piece, ids = piece[: room // self._tokens_per_char], ids[:room]
            turn.answer_ids += ids
            if is_reasoning:
                turn.reasoning += piece
            else:
                turn.text += piece
            if piece:
                yield TextDelta(turn.request.turn_id, piece, is_reasoning, len(turn.answer_ids))
            if room is not None and len(turn.answer_ids) >= (limit or 0):
                finish = "length"
                break
        if finish == "stop":
            turn.answer_ids.append(END_ID)
        result = turn.result(finish)
        self._remember(turn)
        yield TurnFinished(turn.request.turn_id, result)

    def _pieces(self, request: TurnRequest) -> Iterator[tuple[str, bool, list[int]]]:
        if self._reasoning and request.think is not False:
            for index, piece in enumerate(split_words(self._reasoning)):
                ids = encode(piece, self._tokens_per_char)
                yield piece, True, [THINK_ID, *ids] if index == 0 else ids
            yield "", True, [THINK_END_ID]
        for piece in split_words(self._answer(request)):
            yield piece, False, encode(piece, self._tokens_per_char)

    def _answer(self, request: TurnRequest) -> str:
        if callable(self._answers):
            return self._answers(request)
        if self._answers is None:
            return f"You said: {request.messages[-1].text}"
        return self._answers[min(len(self.requests), len(self._answers)) - 1]

    def _plan(self, turn: ToyTurn) -> None:
        request = turn.request
        turn.prompt = self.render(request.messages, is_continued=request.continue_answer)
        head = request.messages[0]
        turn.num_system = len(self.render([head])) - 1 if head.role == "system" else 0
        turn.keep = request.journal.common_prefix(TokenIds(turn.prompt))
        with self._lock:
            num_ram, num_disk = self._match(TokenIds(turn.prompt)) if request.use_cache else (0, 0)
        # At least one prompt token is always computed.
        excess = max(0, num_ram + num_disk - (len(turn.prompt) - 1))
        turn.num_disk = max(0, num_disk - excess)
        turn.num_ram = num_ram - max(0, excess - num_disk)
        turn.explain(self.info)

    def render(self, messages: Sequence[ChatMessage], *, is_continued: bool = False) -> list[int]:
        """The prompt of these messages."""
        return render(messages, self._tokens_per_char, is_continued=is_continued)

    def _match(self, prompt: TokenIds) -> tuple[int, int]:
        num_ram = max((known.common_prefix(prompt) for known in self.ram_journals), default=0)
        num_all = max((known.common_prefix(prompt) for known in self.disk_journals), default=0)
        return num_ram, max(0, num_all - num_ram)

    def _remember(self, turn: ToyTurn) -> None:
        if not turn.request.use_cache:
            return
        with self._lock:
            self.ram_journals.append(TokenIds([*turn.prompt, *turn.answer_ids]))
        self.emit(self.snapshot())
        kind: Literal["restored", "spilled"] = "restored" if turn.num_disk else "spilled"
        self.emit(CacheEvent(CLOCK, kind, f"{kind} {len(turn.prompt):,} tokens"))

    def _failed(self, turn: ToyTurn, point: str) -> TurnFailed:
        partial = turn.result("stopped") if turn.answer_ids else None
        if point != self.die_at:
            return TurnFailed(turn.request.turn_id, self.failure, partial)
        self.die_at = None
        error = EngineDiedError("The engine ended unexpectedly.", "It is being started again.")
        with self._lock:
            self.disk_journals += self.ram_journals
            self.ram_journals = []
        self._loaded.clear()
        self.emit(BackendFailed(error, will_restart=True))
        self.start()
        return TurnFailed(turn.request.turn_id, error, partial)


class FakeStream(TurnStream):
    """A turn that goes on only while it is read, so that nothing happens behind a test's back."""

    def __init__(self, backend: FakeBackend, turn: ToyTurn) -> None:
        super().__init__(lambda: None)
        self._backend = backend
        self._turn = turn
        self._steps = backend.events(turn)

    def get(self, timeout: float | None = None) -> TurnEvent | None:
        event = next(self._steps, None)
        if isinstance(event, TurnFinished | TurnFailed):
            next(self._steps, None)  # to its end: the next turn waits for that
        return event

    def stop(self) -> None:
        self._backend.num_stops += 1
        self._turn.is_stopped.set()

    def close(self) -> None:
        self.stop()


class _PointFailedError(Exception):
    """A scripted failure at a point of the turn."""

    def __init__(self, point: str) -> None:
        super().__init__(point)
        self.point = point
