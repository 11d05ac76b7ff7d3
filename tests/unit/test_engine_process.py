"""The real engine process on a tiny model, through the backend that people use."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from chatcache.backends.base import (
    ChatMessage,
    ModelLoading,
    PrefillProgress,
    SamplingParams,
    TextDelta,
    TurnFinished,
    TurnPlanned,
    TurnRequest,
    TurnResult,
)
from chatcache.backends.local.engine.client import LocalBackend
from chatcache.backends.local.engine.settings import EngineSettings
from chatcache.errors import ModelLoadError
from tests.models import build_model_dir

pytestmark = pytest.mark.slow
SECONDS = 120.0
GREEDY = SamplingParams(temperature=0.0, max_new_tokens=6)

Opener = Callable[[str], LocalBackend]


@pytest.fixture(scope="module")
def open_backend(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Opener]:
    place = tmp_path_factory.mktemp("engine")
    opened: list[LocalBackend] = []

    def open_(model: str) -> LocalBackend:
        settings = EngineSettings(model, place / "cache", place / "engine.log", num_threads=1)
        opened.append(LocalBackend(settings))
        return opened[-1]

    yield open_
    for backend in opened:
        backend.close()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(build_model_dir(tmp_path_factory.mktemp("model") / "tiny"))


@pytest.fixture(scope="module")
def backend(open_backend: Opener, model: str) -> LocalBackend:
    return open_backend(model)


def answer(backend: LocalBackend, request: TurnRequest) -> tuple[TurnPlanned, TurnResult, str]:
    events = list(backend.ask(request))
    planned, last = events[0], events[-1]
    assert isinstance(planned, TurnPlanned)
    assert isinstance(last, TurnFinished)
    shown = "".join(event.text for event in events if isinstance(event, TextDelta))
    assert any(isinstance(event, PrefillProgress) for event in events)
    return planned, last.result, shown


def test_two_turns_reuse_what_was_read(backend: LocalBackend) -> None:
    stages: list[object] = []
    backend.subscribe(stages.append)
    info = backend.wait_ready(SECONDS)
    assert (info.architecture, info.dtype) == ("Qwen3ForCausalLM", "float32")
    assert any(isinstance(event, ModelLoading) for event in stages)
    first = (ChatMessage("system", "Be brief."), ChatMessage("user", "What is kept?"))
    planned, result, shown = answer(backend, TurnRequest("t1", first, sampling=GREEDY))
    assert result.text == shown
    assert result.usage.prompt_tokens == len(planned.new_ids)
    journal = planned.new_ids + result.answer_ids
    second = (*first, ChatMessage("assistant", result.text), ChatMessage("user", "Why?"))
    request = TurnRequest("t2", second, journal=journal, sampling=GREEDY)
    planned, result, _ = answer(backend, request)
    assert planned.keep >= len(journal) - 1
    assert result.usage.cached_tokens >= len(journal) - 2
    uncached = TurnRequest("t3", second, journal=journal, sampling=GREEDY, use_cache=False)
    assert answer(backend, uncached)[1].text == result.text


def test_stopping_ends_a_long_answer(backend: LocalBackend) -> None:
    long = SamplingParams(temperature=0.0, max_new_tokens=3000)
    request = TurnRequest("t4", (ChatMessage("user", "Go on."),), sampling=long)
    num_shown = 0
    turn = backend.ask(request)
    for event in turn:
        num_shown += isinstance(event, TextDelta)
        if num_shown == 3:
            turn.stop()
    assert isinstance(event, TurnFinished)
    assert event.result.finish_reason in ("stopped", "stop")
    assert len(event.result.answer_ids) < 3000


def test_what_was_not_read_to_its_end_is_not_called_evicted(backend: LocalBackend) -> None:
    question = ChatMessage("user", "This is a long story about nothing. " * 60)
    events = []
    turn = backend.ask(TurnRequest("t5", (question,), sampling=GREEDY))
    for event in turn:
        events.append(event)
        if isinstance(event, PrefillProgress):
            turn.stop()
    planned, last = events[0], events[-1]
    assert isinstance(planned, TurnPlanned)
    assert isinstance(last, TurnFinished)
    if last.result.answer_ids:
        pytest.skip("the prompt was read before the stop arrived")
    again = TurnRequest(
        "t6", (question, ChatMessage("user", "Go on.")), planned.new_ids, sampling=GREEDY
    )
    second, result, _ = answer(backend, again)
    assert second.keep > 0
    assert result.cache.reason == "new_user_turn"
    assert "stopped" in result.cache.detail


def test_a_broken_model_is_refused_in_its_own_words(open_backend: Opener, tmp_path: Path) -> None:
    broken = build_model_dir(tmp_path / "broken")
    weights = broken / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-8])
    with pytest.raises(ModelLoadError, match=re.escape(f"{weights} is truncated")):
        open_backend(str(broken)).wait_ready(SECONDS)
