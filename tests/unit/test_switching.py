"""Changing the model while listeners, turns and estimates go on."""

from __future__ import annotations

import threading

import pytest

from chatcache.backends.base import (
    BackendEvent,
    ChatMessage,
    ModelLoading,
    ModelReady,
    TurnFinished,
    TurnRequest,
)
from chatcache.backends.questions import DescribeModel, TokenPieces
from chatcache.backends.switching import SwitchingBackend
from chatcache.token_ids import TokenIds
from tests.fakes import FakeBackend

REQUEST = TurnRequest("t", (ChatMessage("user", "hi"),))


@pytest.fixture
def made() -> list[FakeBackend]:
    return []


@pytest.fixture
def backend(made: list[FakeBackend]) -> SwitchingBackend:
    def make(model: str) -> FakeBackend:
        made.append(FakeBackend(model=model, starts_ready=True))
        return made[-1]

    switching = SwitchingBackend(make, "one")
    switching.start()
    return switching


def test_the_old_engine_ends_before_the_new_one_starts(
    backend: SwitchingBackend, made: list[FakeBackend]
) -> None:
    heard: list[BackendEvent] = []
    undo = backend.subscribe(heard.append)
    backend.switch("two")
    old, new = made
    assert old.is_closed
    assert new.is_started
    assert backend.model == backend.wait_ready().model == "two"
    closing = heard.index(ModelLoading("closing one"))
    assert heard.index(ModelReady(new.info)) > closing
    old.emit(ModelReady(old.info))
    assert heard.count(ModelReady(old.info)) == 1
    undo()
    new.emit(ModelLoading("unheard"))
    assert ModelLoading("unheard") not in heard


def test_turns_and_estimates_go_to_the_new_model(
    backend: SwitchingBackend, made: list[FakeBackend]
) -> None:
    assert isinstance(list(backend.ask(REQUEST))[-1], TurnFinished)
    backend.switch("two")
    assert isinstance(list(backend.ask(REQUEST))[-1], TurnFinished)
    assert [len(one.requests) for one in made] == [1, 1]
    assert len(backend.estimate([TokenIds((1, 2))])) == 1


def test_a_turn_waits_while_the_model_is_exchanged(made: list[FakeBackend]) -> None:
    closes, may_close = threading.Event(), threading.Event()

    class SlowToClose(FakeBackend):
        def close(self) -> None:
            closes.set()
            may_close.wait(10)
            super().close()

    def make(model: str) -> FakeBackend:
        made.append(SlowToClose(model=model, starts_ready=True))
        return made[-1]

    backend = SwitchingBackend(make, "one")
    backend.start()
    switching = threading.Thread(target=backend.switch, args=("two",))
    switching.start()
    assert closes.wait(10)
    with pytest.raises(TimeoutError):
        backend.wait_ready(0)
    events: list[object] = []
    asking = threading.Thread(target=lambda: events.extend(backend.ask(REQUEST)))
    asking.start()
    may_close.set()
    switching.join(10)
    asking.join(10)
    assert isinstance(events[-1], TurnFinished)
    assert made[1].requests == [REQUEST]


def test_what_is_closed_is_not_switched(backend: SwitchingBackend, made: list[FakeBackend]) -> None:
    backend.close()
    backend.switch("two")
    assert len(made) == 1


def test_questions_go_to_the_new_model(backend: SwitchingBackend, made: list[FakeBackend]) -> None:
    backend.switch("two")
    old, new = made
    new.study_answers[DescribeModel] = shape = TokenPieces((), tokenizer="two")
    assert backend.study(DescribeModel()) == shape
    assert (old.studied, new.studied) == ([], [DescribeModel()])
