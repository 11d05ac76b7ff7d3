"""Who says what to an engine, on a socket, with a runner without a model."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from chatcache import __version__
from chatcache.backends.base import (
    CacheEvent,
    ChatMessage,
    EngineStatus,
    ModelReady,
    TextDelta,
    TurnFinished,
    TurnPlanned,
    TurnRequest,
    TurnWaiting,
)
from chatcache.backends.local.engine import wire
from chatcache.backends.local.engine.channel import Channel, ChannelClosedError
from chatcache.backends.local.engine.lifetime import Lifetime
from chatcache.backends.local.engine.server import EngineServer
from chatcache.backends.local.engine.settings import EngineSettings
from chatcache.backends.questions import (
    AskAttention,
    DescribeModel,
    Question,
    Tokenize,
    TokenPieces,
)
from chatcache.errors import UnavailableError
from chatcache.token_ids import NO_IDS
from tests.fake_engine import ENOUGH, OUTDATED, EchoRunner

SECONDS = 30.0


class FrontEnd:
    """One end of a connection to a server in this process."""

    def __init__(self, server: EngineServer) -> None:
        ours, theirs = socket.socketpair()
        ours.settimeout(SECONDS)
        self.channel = Channel(ours, wire.CODEC)
        server.reception.connect(theirs)

    def send(self, message: object) -> None:
        self.channel.send(message)

    def hello(self, settings: EngineSettings, **changes: Any) -> None:
        told = {"protocol": wire.PROTOCOL, "version": __version__, "front_end": "test"} | changes
        self.send(wire.Hello(settings=settings, **told))

    def ask(self, text: str, turn_id: str = "t") -> None:
        self.send(wire.RunTurn(TurnRequest(turn_id, (ChatMessage("user", text),))))

    def wait_for(self, kind: type, **fields: object) -> Any:
        while True:
            message = self.channel.receive()
            if isinstance(message, kind) and all(
                getattr(message, name) == value for name, value in fields.items()
            ):
                return message


@pytest.fixture
def settings(tmp_path: Path) -> EngineSettings:
    return EngineSettings("echo", tmp_path, tmp_path / "engine.log")


@pytest.fixture
def server(settings: EngineSettings) -> Iterator[EngineServer]:
    """Serves until the test has ended, whoever leaves it."""
    server = EngineServer(Lifetime(stamp=lambda: ()))
    serving = threading.Thread(target=server.serve, args=(EchoRunner,), daemon=True)
    serving.start()
    first = FrontEnd(server)
    first.hello(settings, front_end="first")
    first.wait_for(ModelReady)
    yield server
    first.send(wire.Leave())
    serving.join(SECONDS)
    assert not serving.is_alive()
    first.channel.close()


@pytest.fixture
def front_ends(server: EngineServer, settings: EngineSettings) -> Iterator[list[FrontEnd]]:
    """Three more front ends, all welcome."""
    found = [FrontEnd(server) for _ in range(3)]
    for number, front_end in enumerate(found):
        front_end.hello(settings, front_end=f"number {number}")
        front_end.wait_for(ModelReady)
    yield found
    for front_end in found:
        front_end.channel.close()


def test_an_engine_with_nothing_to_do_gets_ready_for_the_next_turn(
    front_ends: list[FrontEnd],
) -> None:
    first = front_ends[0]
    first.ask("get ready")
    assert first.wait_for(TurnFinished).result.text == "so get ready"
    for text in ("3 ahead", "2 ahead", "1 ahead"):
        first.wait_for(CacheEvent, text=text)
    first.ask("hello")
    assert first.wait_for(TurnFinished).result.text == "so hello"


def test_a_stop_that_comes_too_late_leaves_the_engine_listening(
    front_ends: list[FrontEnd],
) -> None:
    first = front_ends[0]
    first.send(wire.StopTurn("one that has ended"))
    first.ask("hello")
    assert first.wait_for(TurnFinished).result.text == "so hello"


def test_who_waits_is_told_for_whom_and_is_answered_in_turn(front_ends: list[FrontEnd]) -> None:
    first, second, third = front_ends
    first.ask("until stopped", "long")
    first.wait_for(TextDelta)
    second.ask("second", "s")
    assert second.wait_for(TurnWaiting) == TurnWaiting("s", 1, "number 0")
    third.ask("third", "t")
    assert third.wait_for(TurnWaiting) == TurnWaiting("t", 2, "number 0")
    first.send(wire.StopTurn("long"))
    assert second.wait_for(TurnWaiting) == TurnWaiting("s", 0)
    second.wait_for(TurnPlanned)
    assert second.wait_for(TurnFinished).result.text == "so second"
    assert third.wait_for(TurnFinished).result.text == "so third"


def test_one_that_asks_much_does_not_keep_others_waiting(front_ends: list[FrontEnd]) -> None:
    first, second, _ = front_ends
    first.ask("until stopped", "0")
    first.wait_for(TextDelta)
    for number in range(1, 6):
        first.ask(f"{number}", f"{number}")
    second.ask("mine", "mine")
    # Of the turns that wait, those of the one that is answered now come last.
    assert second.wait_for(TurnWaiting).num_ahead == 1
    first.send(wire.StopTurn("0"))
    second.wait_for(TurnFinished)
    for number in range(1, 6):
        assert first.wait_for(TurnFinished, turn_id=f"{number}").result.text == f"so {number}"


def test_waiting_can_be_stopped_while_the_other_goes_on(front_ends: list[FrontEnd]) -> None:
    first, second, _ = front_ends
    first.ask("until stopped", "long")
    first.wait_for(TextDelta)
    second.ask("second", "s")
    second.wait_for(TurnWaiting)
    second.send(wire.StopTurn("s"))
    assert second.wait_for(TurnFinished).result.finish_reason == "stopped"
    first.wait_for(TextDelta)  # it has not been disturbed
    first.send(wire.StopTurn("long"))
    first.wait_for(TurnFinished)


def test_a_stop_ends_no_turn_of_another_front_end(front_ends: list[FrontEnd]) -> None:
    first, second, _ = front_ends
    first.ask("until stopped", "same id")
    first.wait_for(TextDelta)
    second.send(wire.StopTurn("same id"))
    second.send(wire.AskStatus())
    assert second.wait_for(EngineStatus, is_answering=True).front_ends[-1] == "number 2"
    first.wait_for(TextDelta)
    first.send(wire.StopTurn("same id"))
    first.wait_for(TurnFinished)


def test_the_turn_of_a_front_end_that_dies_is_stopped(front_ends: list[FrontEnd]) -> None:
    first, second, _ = front_ends
    first.ask("until stopped", "long")
    first.wait_for(TextDelta)
    second.ask("second", "s")
    first.channel.close()
    assert second.wait_for(TurnFinished).result.text == "so second"


def test_one_that_takes_nothing_keeps_nobody_waiting(front_ends: list[FrontEnd]) -> None:
    """A chat that was suspended with Ctrl+Z in the middle of an answer."""
    suspended, other, _ = front_ends
    suspended.channel.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    suspended.ask("a long story " * 200_000, "long")
    other.ask("hello", "s")
    assert other.wait_for(TurnFinished).result.text == "so hello"
    assert len(suspended.wait_for(TurnFinished).result.text) > 2_000_000  # nothing is lost


def test_what_one_prepares_gives_way_to_the_turn_of_another(front_ends: list[FrontEnd]) -> None:
    from chatcache.backends.base import CacheEvent, Prepare, Prepared

    first, second, _ = front_ends
    turn = TurnRequest("p", (ChatMessage("user", "until cancelled"),))
    first.send(wire.PrepareTurn(Prepare("idle", "draft", turn)))
    first.wait_for(CacheEvent, text="begun")
    second.ask("hello")
    assert second.wait_for(TurnFinished).result.text == "so hello"
    assert first.wait_for(Prepared).was_cancelled


def test_who_speaks_another_protocol_is_sent_away(
    server: EngineServer, settings: EngineSettings
) -> None:
    front_end = FrontEnd(server)
    front_end.hello(settings, protocol=wire.PROTOCOL + 1)
    assert front_end.wait_for(wire.Refused).reason == "protocol"
    with pytest.raises(ChannelClosedError):
        front_end.channel.receive()


def test_who_wants_other_budgets_is_told_that_they_do_not_count(
    server: EngineServer, tmp_path: Path
) -> None:
    front_end = FrontEnd(server)
    front_end.hello(EngineSettings("echo", tmp_path, tmp_path / "engine.log", ram_budget=1))
    assert "another ram_budget" in front_end.wait_for(wire.Accepted).note
    front_end.channel.close()


@pytest.mark.parametrize(
    "content", [b"", b"\0\0\0\3abc", b"\xff" * 100, b"\0\0\0\x0a" + b"\x92\xa5Hello\x80??"]
)
def test_nonsense_ends_its_connection_alone(
    server: EngineServer, settings: EngineSettings, content: bytes
) -> None:
    ours, theirs = socket.socketpair()
    server.reception.connect(theirs)
    with ours:
        ours.settimeout(SECONDS)
        ours.sendall(content)
        ours.shutdown(socket.SHUT_WR)
        assert ours.recv(1) == b""
    front_end = FrontEnd(server)
    front_end.hello(settings)
    front_end.wait_for(ModelReady)
    front_end.channel.close()


def test_whoever_has_not_said_hello_gets_no_turn(server: EngineServer) -> None:
    stranger = FrontEnd(server)
    stranger.ask("hello")
    stranger.send(wire.AskStatus())
    assert isinstance(stranger.channel.receive(), EngineStatus)
    stranger.channel.close()


def test_an_engine_whose_model_was_changed_takes_nobody_in(
    settings: EngineSettings, tmp_path: Path
) -> None:
    server = EngineServer(Lifetime(stamp=lambda: ()))
    serving = threading.Thread(target=server.serve, args=(EchoRunner,), daemon=True)
    serving.start()
    first, second = FrontEnd(server), FrontEnd(server)
    first.hello(settings)
    first.wait_for(ModelReady)
    (tmp_path / OUTDATED).touch()
    second.hello(settings)
    assert second.wait_for(wire.Refused).reason == "changed"
    assert "changed" in first.wait_for(wire.Goodbye).reason
    serving.join(SECONDS)
    assert not serving.is_alive()
    first.channel.close()
    second.channel.close()


def ask_study(front_end: FrontEnd, question: Question, call_id: int = 1) -> None:
    front_end.send(wire.AskStudy(call_id, wire.QUESTIONS.encode(question)))


def told(front_end: FrontEnd, call_id: int = 1) -> object:
    """The answer to a study, or its error."""
    message = front_end.wait_for(wire.Studied, call_id=call_id)
    return message.error or wire.QUESTIONS.decode(message.answer)


def test_a_quick_question_is_answered_during_a_turn(front_ends: list[FrontEnd]) -> None:
    first, second, _ = front_ends
    first.ask("until stopped", "long")
    first.wait_for(TextDelta)
    ask_study(second, DescribeModel())
    assert told(second) == TokenPieces((), tokenizer="DescribeModel")
    first.wait_for(TextDelta)
    first.send(wire.StopTurn("long"))
    first.wait_for(TurnFinished)


def test_one_that_computes_gives_way_to_a_turn_and_is_answered_after_it(
    front_ends: list[FrontEnd], tmp_path: Path
) -> None:
    first, second, third = front_ends
    ask_study(first, Tokenize("x", model="slow"))
    ask_study(second, DescribeModel())  # in the middle of it
    assert told(second) == TokenPieces((), tokenizer="DescribeModel")
    third.ask("hello")
    assert third.wait_for(TurnFinished).result.text == "so hello"
    (tmp_path / ENOUGH).touch()
    assert told(first) == TokenPieces((), tokenizer="Tokenize")


def test_one_that_nobody_waits_for_is_given_up(front_ends: list[FrontEnd]) -> None:
    first, second, _ = front_ends
    ask_study(first, Tokenize("x", model="slow"), call_id=1)
    ask_study(first, Tokenize("x", model="slow"), call_id=2)
    for call_id in (1, 2):
        first.send(wire.StopStudy(call_id))
    ask_study(first, AskAttention(NO_IDS, 0, 0), call_id=3)
    assert "ZeroDivisionError" in str(told(first, 3))
    ask_study(first, Tokenize("x", model="slow"))
    first.channel.close()  # it dies
    ask_study(second, AskAttention(NO_IDS, 0, 0))
    assert isinstance(told(second), UnavailableError)


def test_a_question_that_means_nothing_is_refused_and_the_connection_goes_on(
    front_ends: list[FrontEnd],
) -> None:
    first = front_ends[0]
    for content in (
        b"nonsense",
        wire.QUESTIONS.encode(DescribeModel()).replace(b"Model", b"Novel"),
    ):
        first.send(wire.AskStudy(1, content))
        error = told(first)
        assert isinstance(error, UnavailableError)
        assert "does not know this question" in error.message
    first.ask("hello")
    assert first.wait_for(TurnFinished).result.text == "so hello"


def test_idle_work_goes_on_after_a_study(front_ends: list[FrontEnd], tmp_path: Path) -> None:
    from chatcache.backends.base import CacheEvent, Prepare, Prepared

    first, second, _ = front_ends
    (tmp_path / ENOUGH).touch()
    turn = TurnRequest("p", (ChatMessage("user", "until cancelled"),))
    first.send(wire.PrepareTurn(Prepare("idle", "draft", turn)))
    first.wait_for(CacheEvent, text="begun")
    ask_study(second, Tokenize("x", model="slow"))
    assert told(second) == TokenPieces((), tokenizer="Tokenize")
    assert isinstance(first.channel.receive(), CacheEvent)  # once more, and no end was told
    first.send(wire.CancelPrepare())
    assert first.wait_for(Prepared).was_cancelled
