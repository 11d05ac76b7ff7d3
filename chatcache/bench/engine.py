"""An engine as a front end meets it: how long it takes to be there, and how soon it stops.

It runs in a process of its own, with a directory of its own.
"""

from __future__ import annotations

import threading
import time
import uuid
from dataclasses import replace
from pathlib import Path

from chatcache.backends.base import (
    BackendEvent,
    ChatMessage,
    PrefillProgress,
    Prepare,
    Prepared,
    SamplingParams,
    TextDelta,
    TurnFailed,
    TurnFinished,
    TurnPlanned,
    TurnRequest,
    TurnResult,
)
from chatcache.backends.local.engine.client import LocalBackend
from chatcache.backends.local.engine.settings import EngineSettings
from chatcache.bench.program import prompt_of
from chatcache.bench.report import CHATCACHE, Row, Say
from chatcache.bench.setup import Models
from chatcache.errors import UnavailableError
from chatcache.token_ids import NO_IDS, TokenIds

_STOPS = 5
_SECONDS = 120.0
_PREPARE_SECONDS = 60.0
_SPARE_TOKENS = 256  # a message leaves room for its own answer
_SHORT_ANSWER = 4
_LONGEST_ANSWER = 256
_DRAFT_TOKENS = 200
_FEW_TOKENS = 16


class EngineBench:
    """Rows of an engine on one model. Reading is stopped in a prompt of `tokens`."""

    def __init__(self, models: Models, directory: Path, tokens: int, threads: int | None):
        self._models = models
        limit = models.tuned.config.max_position_embeddings
        self._tokens = min(tokens, limit - _SPARE_TOKENS)
        self._settings = EngineSettings(
            model=models.source,
            device=models.tuned.device.type,
            dtype=models.tuned.dtype_name,
            quantize=models.quantize or "none",
            is_offline=True,
            num_threads=threads,
            cache_dir=directory / "cache",
            log_path=directory / "engine.log",
        )
        directory.mkdir(parents=True)
        self.rows = {
            name: Row(name, title, "engine", bound_by)
            for name, title, bound_by in (
                ("load", "the model is loaded", "disk, Python"),
                ("ready", "from its start to ready", "the same, imports"),
                ("first_turn", f"first turn, {_FEW_TOKENS} tokens", "one pass over weights"),
                ("later_turn", "the same, later", "one pass over weights"),
                ("stop_prefill", "stop, while it reads", "one chunk"),
                ("stop_decode", "stop, while it answers", "two steps"),
                ("draft_ready", f"sent after a draft of {_DRAFT_TOKENS}", "two decode steps"),
                ("draft_plain", "the same, not read ahead", "matrix rate"),
            )
        }

    def run(self, say: Say) -> None:
        """Raises UnavailableError where the model cannot be started."""
        say("an engine: stop, drafts")
        backend = LocalBackend(self._settings)
        try:
            if self._models.is_packed:  # what is made of the files once is there from now on
                _load_once(self._settings)
            began = time.perf_counter()
            backend.start()
            self.rows["load"].add(CHATCACHE, backend.wait_ready(_SECONDS).load_ms / 1000)
            self.rows["ready"].add(CHATCACHE, time.perf_counter() - began)
            self._first_turns(backend)
            self._stops(backend)
            self._after_draft(backend)
        except TimeoutError as error:
            raise UnavailableError("The engine did not start in time.", "Run doctor.") from error
        finally:
            backend.close()

    def _prompt(self, num_tokens: int) -> str:
        return prompt_of(self._models.source, num_tokens, self._models.cache_dir)

    def _first_turns(self, backend: LocalBackend) -> None:
        """What a model is first asked waits for nothing that later turns do not wait for."""
        for number in range(1 + _STOPS):
            question = ChatMessage("user", f"{number}: {self._prompt(_FEW_TOKENS)}")
            _, result = _answered(backend, (question,))
            if result.timings.ttft_ms is not None:
                row = self.rows["later_turn" if number else "first_turn"]
                row.add(CHATCACHE, result.timings.ttft_ms / 1000)

    def _stops(self, backend: LocalBackend) -> None:
        """From the call of `stop` to the end of the turn, as the front end sees it."""
        prompt, short = self._prompt(self._tokens), self._prompt(_FEW_TOKENS)
        for _ in range(_STOPS):
            for name, text, kind in (
                ("stop_prefill", prompt, PrefillProgress),
                ("stop_decode", short, TextDelta),
            ):
                seconds = _stop_at(backend, text, kind)
                if seconds is not None:
                    self.rows[name].add(CHATCACHE, seconds)

    def _after_draft(self, backend: LocalBackend) -> None:
        """Send a message whose words the engine has read while they were typed, all but the last,
        and one of which it has read nothing."""
        ready, plain = self.rows["draft_ready"], self.rows["draft_plain"]
        question = ChatMessage("user", self._prompt(min(_DRAFT_TOKENS, self._tokens)))
        planned, result = _answered(backend, (question,))
        history = question, ChatMessage("assistant", result.text, result.reasoning)
        journal = planned.new_ids + result.answer_ids
        text = self._prompt(_DRAFT_TOKENS)
        for number in range(2 * _STOPS):
            row, draft = plain, f"{number} is a number. {text}"
            if number % 2:
                row, typed = ready, ChatMessage("user", draft.rsplit(" ", 1)[0])
                if not _has_read_ahead(backend, (*history, typed), journal):
                    continue
            _, result = _answered(backend, (*history, ChatMessage("user", draft)), journal)
            if result.timings.ttft_ms is not None:
                row.add(CHATCACHE, result.timings.ttft_ms / 1000)


def _load_once(settings: EngineSettings) -> None:
    backend = LocalBackend(settings)
    try:
        backend.start()
        backend.wait_ready(_SECONDS)
    finally:
        backend.close()


def _stop_at(backend: LocalBackend, prompt: str, kind: type) -> float | None:
    """Stop at the second event of a kind; the seconds until the turn has ended. None: it ended
    before (what random weights write may be no text at all, hence the sampling and the limit)."""
    request = TurnRequest(
        turn_id=uuid.uuid4().hex,
        messages=(ChatMessage("user", prompt),),
        sampling=SamplingParams(temperature=1.0, seed=0, max_new_tokens=_LONGEST_ANSWER),
        use_cache=False,
    )
    seen, began = 0, None
    turn = backend.ask(request)
    for event in turn:
        if isinstance(event, TurnFailed):
            raise UnavailableError(f"The engine failed: {event.error}", "Look into its log.")
        if isinstance(event, TurnFinished):
            break
        seen += isinstance(event, kind)
        if seen == 2 and began is None:
            began = time.perf_counter()
            turn.stop()
    return None if began is None else time.perf_counter() - began


def _answered(
    backend: LocalBackend, messages: tuple[ChatMessage, ...], journal: TokenIds = NO_IDS
) -> tuple[TurnPlanned, TurnResult]:
    """Have the last message answered. Raises UnavailableError."""
    planned: TurnPlanned | None = None
    for event in backend.ask(_short_turn(messages, journal)):
        if isinstance(event, TurnFailed):
            raise UnavailableError(f"The engine failed: {event.error}", "Look into its log.")
        if isinstance(event, TurnPlanned):
            planned = event
        if isinstance(event, TurnFinished) and planned is not None:
            return planned, event.result
    raise UnavailableError("The engine gave no answer.", "Look into its log.")


def _has_read_ahead(
    backend: LocalBackend, messages: tuple[ChatMessage, ...], journal: TokenIds
) -> bool:
    """Let the engine read ahead until it is done; False when it did not begin."""
    done = threading.Event()

    def listen(event: BackendEvent) -> None:
        if isinstance(event, Prepared) and event.prepare_id == wanted.prepare_id:
            done.set()

    wanted = Prepare(uuid.uuid4().hex, "draft", _short_turn(messages, journal))
    unsubscribe = backend.subscribe(listen)
    try:
        return backend.prepare(wanted) and done.wait(_PREPARE_SECONDS)
    finally:
        unsubscribe()


def _short_turn(messages: tuple[ChatMessage, ...], journal: TokenIds) -> TurnRequest:
    sampling = SamplingParams(temperature=0.0, max_new_tokens=_SHORT_ANSWER)
    turn = TurnRequest(uuid.uuid4().hex, messages, journal, sampling)
    return replace(turn, num_read=len(messages) - 1)
