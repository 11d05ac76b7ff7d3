"""Conversations with real engines on tiny models, in this process; nothing is faked."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from chatcache.backends.base import (
    BackendEvent,
    CacheEvent,
    ChatMessage,
    SamplingParams,
    TurnEvent,
    TurnFailed,
    TurnFinished,
    TurnPlanned,
    TurnRequest,
    TurnResult,
)
from chatcache.backends.local.engine.process import build_runner
from chatcache.backends.local.engine.server import Runner
from chatcache.backends.local.engine.settings import EngineSettings
from chatcache.token_ids import NO_IDS, TokenIds

_ids = itertools.count()


class Engine:
    """An engine in this process. `events` are those of the backend itself."""

    def __init__(self, model: Path, place: Path, **settings: Any):
        options = {"num_threads": 1, "prefill_chunk_tokens": 16, **settings}
        self.events: list[BackendEvent] = []
        self.runner: Runner = build_runner(
            EngineSettings(str(model), place / "cache", place / "engine.log", **options),
            self.events.append,
        )

    @property
    def warnings(self) -> list[str]:
        found = [event for event in self.events if isinstance(event, CacheEvent)]
        return [event.text for event in found if event.kind == "warning"]

    def close(self) -> None:
        self.runner.close()


@dataclass
class Talk:
    """A conversation: its messages and journal as the chat service keeps them."""

    messages: list[ChatMessage] = field(default_factory=list)
    journal: TokenIds = NO_IDS
    options: dict[str, Any] = field(default_factory=dict)
    num_answered: int = 0

    def request(self, text: str) -> TurnRequest:
        return TurnRequest(
            f"t{next(_ids)}",
            (*self.messages, ChatMessage("user", text)),
            self.journal,
            sampling=SamplingParams(temperature=0.0, max_new_tokens=12),
            num_answered=self.num_answered,
            num_read=len(self.messages) if self.journal else 0,
            **self.options,
        )

    def say(self, engine: Engine, text: str) -> TurnResult:
        """Ask and be answered."""
        last = self.events(engine, text)[-1]
        assert isinstance(last, TurnFinished), last
        return last.result

    def fail(self, engine: Engine, text: str) -> Exception:
        """Ask, and be told why there is no answer."""
        last = self.events(engine, text)[-1]
        assert isinstance(last, TurnFailed), last
        return last.error

    def events(
        self, engine: Engine, text: str, stop_at: type[TurnEvent] | None = None
    ) -> Sequence[TurnEvent]:
        """The events of a turn; it is stopped at the first of `stop_at`."""
        stop, events = threading.Event(), []
        request = self.request(text)
        for event in engine.runner.run(request, stop):
            events.append(event)
            if stop_at is not None and isinstance(event, stop_at):
                stop.set()
        self._keep(request, events)
        return events

    def _keep(self, request: TurnRequest, events: Sequence[TurnEvent]) -> None:
        planned, last = events[0], events[-1]
        if not isinstance(planned, TurnPlanned) or not isinstance(last, TurnFinished):
            return
        self.journal = self.journal[: planned.keep] + planned.new_ids
        self.messages = list(request.messages)
        if last.result.answer_ids:
            self.journal += last.result.answer_ids
            self.num_answered = len(self.journal)
            answer = ChatMessage("assistant", last.result.text, last.result.reasoning)
            self.messages.append(answer)
