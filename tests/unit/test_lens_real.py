"""The lens on real turns of the built-in model: every count is that of `usage`, to the token."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any, cast

import pytest

from chatcache.assets import pocket_dir
from chatcache.backends.base import (
    Backend,
    ModelInfo,
    SamplingParams,
    TurnFailed,
    TurnFinished,
    TurnRequest,
    TurnStream,
)
from chatcache.backends.local.run.turn_runner import TurnRunner
from chatcache.backends.questions import Answer, DescribeModel, Question
from chatcache.chat.chat_turn import ChatTurn
from chatcache.chat.readings import TurnReading
from chatcache.chat.service import ChatService
from chatcache.chat.store import SessionStore
from chatcache.chat.tasks import TurnOptions
from chatcache.chat.views import AnswerSaved
from chatcache.config import DATABASE_NAME
from chatcache.frontend.lens import (
    attention_view,
    divergence_view,
    growth_view,
    next_view,
    tokens_view,
)
from chatcache.frontend.lens.fates import is_order_known
from chatcache.frontend.lens.studied import StudiedTurn
from tests.talks import Engine

pytestmark = pytest.mark.slow
OPTIONS = TurnOptions(SamplingParams(temperature=0.0, max_new_tokens=12))
LONG = " ".join(f"number {number} of the list," for number in range(60))


class OwnEngine:
    """As much of a backend as turns and questions need, on a real engine in this process."""

    def __init__(self, place: Path, **settings: Any) -> None:
        self.engine = Engine(pocket_dir(), place, prefill_chunk_tokens=64, **settings)
        self.estimate = self.engine.runner.estimate

    def start(self) -> None: ...

    def wait_ready(self, timeout: float | None = None) -> ModelInfo:
        return self.engine.runner.info

    def ask(self, request: TurnRequest) -> TurnStream:
        stream = TurnStream(lambda: None)
        for event in self.engine.runner.run(request, threading.Event()):
            is_last = isinstance(event, TurnFinished | TurnFailed)
            stream.end(event) if is_last else stream.put(event)
        return stream

    def study(self, question: Question, timeout: float | None = None) -> Answer:
        def steps() -> Generator[None, None, Answer]:
            return (yield from self.engine.runner.study(question))

        running = steps()
        while True:
            try:
                next(running)
            except StopIteration as done:
                return cast(Answer, done.value)

    def close(self) -> None:
        self.engine.close()


def opened(place: Path, **settings: Any) -> ChatService:
    backend = cast(Backend, OwnEngine(place, **settings))
    return ChatService(SessionStore(place / DATABASE_NAME), backend)


def answered(turn: ChatTurn) -> AnswerSaved:
    *_, last = turn
    assert isinstance(last, AnswerSaved)
    return last


def check(service: ChatService, saved: AnswerSaved) -> TurnReading:
    """All views of a turn against its usage; returns the reading."""
    usage, cache = saved.result.usage, saved.result.cache
    reading = service.reading(saved.session_id, saved.turn)
    assert is_order_known(reading)
    told = service.study(tokens_view.question(reading))
    facts = tokens_view.tokens_facts(reading, told)  # type: ignore[arg-type]
    data = tokens_view.page(facts, 80, None, tokens_view.TokensState(is_folded=False)).data
    fates = Counter(token["fate"] for token in data["tokens"])
    assert fates["ram"] == usage.cached_ram_tokens
    assert fates["disk"] == usage.cached_disk_tokens
    assert fates["computed"] == usage.computed_tokens
    assert fates["written"] == usage.completion_tokens
    assert data["cut"]["position"] == usage.cached_tokens == cache.diverged_at
    assert data["prompt_tokens"] == usage.prompt_tokens
    texts = "".join(token["text"] for token in data["tokens"] if not token["is_control"])
    assert reading.question in texts
    assert saved.result.text.strip() in texts
    control = [token["text"] for token in data["tokens"] if token["is_control"]]
    assert len(control) == data["control_tokens"] > 0
    diverged = divergence_view.page(divergence_view.DivergenceFacts(reading), 80).data
    assert diverged["cost"]["computed_tokens"] == usage.computed_tokens
    assert diverged["reason"] == cache.reason
    shape = service.study(DescribeModel())
    grown = growth_view.page(growth_view.GrowthFacts(reading, shape), 80).data  # type: ignore[arg-type]
    assert grown["rows_reused"] == usage.cached_tokens
    assert grown["rows_computed"] == usage.computed_tokens
    return reading


@pytest.fixture
def chats() -> Iterator[list[ChatService]]:
    services: list[ChatService] = []
    yield services
    for service in services:
        service.close()


def test_counts_are_those_of_usage_from_ram_from_disk_after_a_fork_and_when_a_part_is_lost(
    tmp_path: Path, chats: list[ChatService]
) -> None:
    service = opened(tmp_path)
    chats.append(service)
    session_id = service.create_session("a", "Be kind.").session_id
    first = answered(service.send(session_id, LONG, OPTIONS))
    reading = check(service, first)
    assert reading.figures is not None
    assert reading.figures.usage.cached_tokens == 0
    second = answered(service.send(session_id, "And then?", OPTIONS))
    check(service, second)
    assert second.result.usage.cached_ram_tokens
    fork = service.fork(session_id, at_turn=1).session_id
    check(service, answered(service.send(fork, "Or else?", OPTIONS)))
    edited = answered(service.edit(fork, 1, LONG[: len(LONG) // 2] + " stop.", OPTIONS))
    assert edited.result.cache.reason == "turn_edited"
    reading = check(service, edited)
    assert divergence_view.is_left(reading)
    shared = reading.history_ids.common_prefix(reading.prompt_ids)
    assert shared >= (edited.result.usage.cached_tokens or 0) > 0
    _check_attention_and_scores(service, reading)
    service.close()
    service = opened(tmp_path)  # all that is known of it lies on disk now
    chats[0] = service
    resumed = answered(service.send(session_id, "Go on.", OPTIONS))
    check(service, resumed)
    assert resumed.result.usage.cached_disk_tokens
    service.close()
    newest = max((tmp_path / "cache").rglob("*.safetensors"), key=lambda path: path.stat().st_mtime)
    newest.unlink()
    service = opened(tmp_path)
    chats[0] = service
    last = answered(service.send(session_id, "Once more.", OPTIONS))
    reading = check(service, last)
    assert last.result.cache.reason == "evicted"
    assert not divergence_view.is_left(reading)
    page = divergence_view.page(divergence_view.DivergenceFacts(reading), 80)
    assert page.data["cost"]["computed_again_tokens"] > 0


def test_a_path_of_which_a_part_is_in_ram_and_a_part_on_disk_is_told_in_its_order(
    tmp_path: Path, chats: list[ChatService]
) -> None:
    service = opened(tmp_path, ram_budget=600_000)
    chats.append(service)
    sessions = [service.create_session(name).session_id for name in "ab"]
    seen: list[tuple[str, ...]] = []
    for text in (LONG, "And then?", "And now?", "Go on."):
        for session_id in sessions:
            saved = answered(service.send(session_id, f"{text} {session_id}", OPTIONS))
            check(service, saved)
            assert isinstance(service.backend, OwnEngine)
            assert isinstance(service.backend.engine.runner, TurnRunner)
            service.backend.engine.runner.drain()  # what is on disk may leave the memory
            seen.append(tuple(run.tier for run in saved.result.cache.runs or ()))
    assert any(len(tiers) > 1 for tiers in seen), seen


def _check_attention_and_scores(service: ChatService, reading: TurnReading) -> None:
    state = attention_view.AttentionState()
    rows: Any = service.study(attention_view.question(reading, state))
    facts = StudiedTurn(reading, rows)
    data = attention_view.page(facts, 80, 24, state).data
    assert data["cost"]["reused_tokens"] + data["cost"]["computed_tokens"] >= data["position"] + 1
    assert sum(rows.rows[-1]) == pytest.approx(1.0, abs=1e-4)
    asked: Any = service.study(next_view.question(reading, next_view.START))
    scores = next_view.page(StudiedTurn(reading, asked), 80).data
    # Greedy: the most probable token is the one that was written.
    assert scores["candidates"][0]["id"] == scores["written_id"] == reading.answer_ids[0]
