"""The engine process is started, stopped, restarted and closed; what happens to it is told."""

from __future__ import annotations

import os
import queue
import signal
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from chatcache.backends.base import (
    BackendEvent,
    BackendFailed,
    CacheEvent,
    ChatMessage,
    ModelLoading,
    ModelReady,
    TextDelta,
    TurnEvent,
    TurnFailed,
    TurnFinished,
    TurnPlanned,
    TurnRequest,
)
from chatcache.backends.local.engine.child_process import open_log
from chatcache.backends.local.engine.client import LocalBackend
from chatcache.backends.local.engine.settings import EngineSettings
from chatcache.backends.questions import AskAttention, DescribeModel, Tokenize, TokenPieces
from chatcache.errors import EngineDiedError, ModelLoadError, UnavailableError
from chatcache.token_ids import NO_IDS, TokenIds

ENGINE = Path(__file__).parents[1] / "fake_engine.py"
SECONDS = 30.0  # no test waits this long unless it fails

BackendFactory = Callable[..., LocalBackend]


@pytest.fixture
def settings(tmp_path: Path) -> EngineSettings:
    return EngineSettings(
        model="echo", cache_dir=tmp_path, log_path=tmp_path / "logs" / "engine.log"
    )


@pytest.fixture
def make_backend(tmp_path: Path) -> Iterator[BackendFactory]:
    made: list[LocalBackend] = []

    def make(model: str = "echo", **changes: Any) -> LocalBackend:
        log_path = tmp_path / "logs" / "engine.log"
        settings = EngineSettings(model=model, cache_dir=tmp_path, log_path=log_path)
        made.append(LocalBackend(settings, command=(sys.executable, "-P", str(ENGINE)), **changes))
        return made[-1]

    yield make
    for backend in made:
        backend.close()


def ask(text: str, turn_id: str = "t1") -> TurnRequest:
    return TurnRequest(turn_id, (ChatMessage("user", text),))


class Recorder:
    """Listens and lets a test wait for an event."""

    def __init__(self, backend: LocalBackend) -> None:
        self.events: list[BackendEvent] = []
        self._new: queue.SimpleQueue[BackendEvent] = queue.SimpleQueue()
        self.unsubscribe = backend.subscribe(self._note)

    def _note(self, event: BackendEvent) -> None:
        self.events.append(event)
        self._new.put(event)

    def wait_for(self, kind: type, **fields: object) -> Any:
        while True:
            event = self._new.get(timeout=SECONDS)
            if isinstance(event, kind) and all(
                getattr(event, name) == value for name, value in fields.items()
            ):
                return event


def kinds(events: list[TurnEvent]) -> list[type]:
    return [type(event) for event in events]


def test_loads_answers_and_closes(make_backend: BackendFactory, tmp_path: Path) -> None:
    backend = make_backend()
    backend.start()
    assert backend.wait_ready(SECONDS).architecture == "Echo"
    events = list(backend.ask(ask("hello")))
    assert kinds(events) == [TurnPlanned, TextDelta, TextDelta, TurnFinished]
    assert events[-1].result.text == "so hello"  # type: ignore[union-attr]
    backend.close()
    assert (tmp_path / "drained").read_text() == "yes"


def test_generate_starts_the_engine_and_waits_for_it(make_backend: BackendFactory) -> None:
    assert kinds(list(make_backend().ask(ask("hello"))))[-1] is TurnFinished


def test_a_late_listener_learns_the_present_state(make_backend: BackendFactory) -> None:
    backend = make_backend()
    first = Recorder(backend)
    backend.start()
    assert first.wait_for(ModelLoading).total == 2
    first.wait_for(ModelReady)
    late = Recorder(backend)
    assert [type(event) for event in late.events] == [ModelReady]


def test_an_unsubscribed_listener_hears_nothing(make_backend: BackendFactory) -> None:
    backend = make_backend()
    recorder = Recorder(backend)
    recorder.unsubscribe()
    backend.wait_ready(SECONDS)
    assert recorder.events == []


def test_a_failing_listener_harms_nobody(make_backend: BackendFactory) -> None:
    backend = make_backend()

    def fail(event: BackendEvent) -> None:
        raise RuntimeError("a bug in a panel")

    backend.subscribe(fail)
    assert backend.wait_ready(SECONDS).model == "echo"


def test_stop_ends_the_turn_in_progress(make_backend: BackendFactory) -> None:
    backend = make_backend()
    events = []
    turn = backend.ask(ask("until stopped"))
    for event in turn:
        events.append(event)
        if isinstance(event, TextDelta) and len(events) == 3:
            turn.stop()
    assert events[-1].result.finish_reason == "stopped"  # type: ignore[union-attr]


def test_stop_counts_while_the_model_is_loading(make_backend: BackendFactory) -> None:
    backend = make_backend()
    turn = backend.ask(ask("until stopped"))
    got: list[TurnEvent] = []
    thread = threading.Thread(target=lambda: got.extend(turn))
    recorder = Recorder(backend)
    thread.start()
    recorder.wait_for(ModelLoading)
    turn.stop()
    thread.join(SECONDS)
    assert kinds(got)[-1] is TurnFinished


def test_a_late_stop_does_not_end_the_next_turn(make_backend: BackendFactory) -> None:
    backend = make_backend()
    first = backend.ask(ask("hello", "t1"))
    list(first)
    first.stop()
    assert list(backend.ask(ask("again", "t2")))[-1].result.text == "so again"  # type: ignore[union-attr]


def test_a_turn_that_is_not_read_to_its_end_is_stopped(make_backend: BackendFactory) -> None:
    backend = make_backend()
    turn = backend.ask(ask("until stopped", "t1"))
    for _ in turn:
        break
    assert kinds(list(backend.ask(ask("next", "t2"))))[-1] is TurnFinished


@pytest.mark.parametrize("text", ["raise", "nothing"])
def test_a_turn_always_ends(make_backend: BackendFactory, text: str) -> None:
    backend = make_backend()
    last = list(backend.ask(ask(text)))[-1]
    assert isinstance(last, TurnFailed)
    assert isinstance(last.error, UnavailableError)
    assert kinds(list(backend.ask(ask("hello", "t2"))))[-1] is TurnFinished


def test_costs_are_estimated_also_during_a_turn(make_backend: BackendFactory) -> None:
    backend = make_backend()
    backend.wait_ready(SECONDS)
    turn = backend.ask(ask("until stopped"))
    turn.get()
    journals = [TokenIds((1, 2, 3)), NO_IDS]
    assert [cost.recompute_tokens for cost in backend.estimate(journals)] == [3, 0]
    turn.stop()
    assert kinds(list(turn))[-1] is TurnFinished


def test_questions_are_answered_and_one_that_takes_too_long_is_given_up(
    make_backend: BackendFactory,
) -> None:
    backend = make_backend()
    with pytest.raises(UnavailableError, match="not loaded yet"):
        backend.study(DescribeModel())
    backend.wait_ready(SECONDS)
    assert backend.study(DescribeModel()) == TokenPieces((), tokenizer="DescribeModel")
    with pytest.raises(UnavailableError, match=r"no answer after 0\.01 s"):
        backend.study(Tokenize("x", model="slow"), timeout=0.01)
    with pytest.raises(UnavailableError, match="ZeroDivisionError"):  # the one before was given up
        backend.study(AskAttention(NO_IDS, 0, 0), timeout=SECONDS)


def test_who_waits_for_an_answer_is_told_of_the_death_of_the_engine(
    make_backend: BackendFactory,
) -> None:
    backend = make_backend()
    info = backend.wait_ready(SECONDS)
    dies = threading.Timer(0.1, os.kill, args=(info.num_parameters, signal.SIGKILL))
    dies.start()
    with pytest.raises(EngineDiedError):
        backend.study(Tokenize("x", model="slow"))
    dies.join()


def test_what_is_in_memory_is_spilled_when_asked_also_during_a_turn(
    make_backend: BackendFactory,
) -> None:
    backend = make_backend()
    assert backend.spill() is False
    recorder = Recorder(backend)
    backend.wait_ready(SECONDS)
    turn = backend.ask(ask("until stopped"))
    turn.get()
    assert backend.spill() is True
    recorder.wait_for(CacheEvent)
    turn.stop()
    assert kinds(list(turn))[-1] is TurnFinished


def test_no_estimate_before_the_model_is_ready(make_backend: BackendFactory) -> None:
    with pytest.raises(UnavailableError):
        make_backend().estimate([NO_IDS])


def test_a_death_in_mid_turn_keeps_the_text_and_restarts(make_backend: BackendFactory) -> None:
    backend = make_backend()
    recorder = Recorder(backend)
    first_pid = backend.wait_ready(SECONDS).num_parameters
    *_, text, last = backend.ask(ask("die"))
    assert isinstance(text, TextDelta)
    assert text.text == "so "
    assert isinstance(last, TurnFailed)
    assert isinstance(last.error, EngineDiedError)
    assert recorder.wait_for(BackendFailed).will_restart
    assert backend.wait_ready(SECONDS).num_parameters != first_pid
    assert kinds(list(backend.ask(ask("hello", "t2"))))[-1] is TurnFinished


def test_a_kill_between_turns_is_noticed(make_backend: BackendFactory) -> None:
    backend = make_backend()
    recorder = Recorder(backend)
    os.kill(backend.wait_ready(SECONDS).num_parameters, signal.SIGKILL)
    failed = recorder.wait_for(BackendFailed)
    assert "signal 9" in failed.error.message
    recorder.wait_for(ModelReady)


def test_an_engine_that_keeps_dying_is_given_up(
    make_backend: BackendFactory, tmp_path: Path
) -> None:
    backend = make_backend("dies")
    recorder = Recorder(backend)
    backend.start()
    recorder.wait_for(BackendFailed, will_restart=False)
    with pytest.raises(EngineDiedError):
        backend.wait_ready(SECONDS)
    assert len((tmp_path / "starts").read_text()) == 4
    assert isinstance(list(backend.ask(ask("hello")))[-1], TurnFailed)
    assert len((tmp_path / "starts").read_text()) == 5


def test_a_load_failure_is_told_once_with_its_own_error(make_backend: BackendFactory) -> None:
    backend = make_backend("broken")
    recorder = Recorder(backend)
    backend.start()
    with pytest.raises(ModelLoadError) as caught:
        backend.wait_ready(SECONDS)
    assert (caught.value.message, caught.value.hint) == ("config.json is missing.", "Look for it.")
    assert not recorder.wait_for(BackendFailed).will_restart
    last = list(backend.ask(ask("hello")))[-1]
    assert isinstance(last, TurnFailed)
    assert isinstance(last.error, ModelLoadError)


def test_a_later_turn_tries_to_load_again(make_backend: BackendFactory) -> None:
    backend = make_backend("broken once")
    with pytest.raises(ModelLoadError):
        backend.wait_ready(SECONDS)
    assert kinds(list(backend.ask(ask("hello"))))[-1] is TurnFinished


def test_closing_while_loading_does_not_wait(make_backend: BackendFactory) -> None:
    backend = make_backend("never")
    recorder = Recorder(backend)
    backend.start()
    recorder.wait_for(ModelLoading)
    backend.close()
    with pytest.raises(UnavailableError):
        backend.wait_ready(SECONDS)


def test_wait_ready_gives_up_in_time(make_backend: BackendFactory) -> None:
    backend = make_backend("never")
    with pytest.raises(TimeoutError, match="still being loaded"):
        backend.wait_ready(0.01)


def test_asking_whether_it_is_ready_starts_nothing(make_backend: BackendFactory) -> None:
    backend = make_backend()
    recorder = Recorder(backend)
    with pytest.raises(TimeoutError):
        backend.wait_ready(0)
    assert recorder.events == []


def test_an_engine_that_cannot_be_started_is_told(settings: EngineSettings) -> None:
    backend = LocalBackend(settings, command=("/no/such/program",))
    recorder = Recorder(backend)
    backend.start()
    assert "could not be started" in recorder.wait_for(BackendFailed).error.message
    with pytest.raises(EngineDiedError):
        backend.wait_ready(SECONDS)
    backend.close()


def test_a_listener_may_close_the_backend(make_backend: BackendFactory) -> None:
    backend = make_backend()
    closed = threading.Event()

    def close(event: BackendEvent) -> None:
        if isinstance(event, ModelReady):
            backend.close()
            closed.set()

    backend.subscribe(close)
    backend.start()
    assert closed.wait(SECONDS)


def test_closing_stops_the_turn_and_drains(make_backend: BackendFactory, tmp_path: Path) -> None:
    backend = make_backend()
    told: list[BackendEvent] = []
    turn = backend.ask(ask("until stopped"))
    turn.get()
    backend.subscribe(told.append)
    closing = threading.Thread(target=backend.close)
    closing.start()
    assert kinds(list(turn))[-1] is TurnFinished
    closing.join(SECONDS)
    assert (tmp_path / "drained").exists()
    assert CacheEvent(0.0, "warning", "the last segment did not fit") in told


def test_after_closing_a_turn_fails_and_close_may_be_repeated(make_backend: BackendFactory) -> None:
    backend = make_backend()
    backend.wait_ready(SECONDS)
    backend.close()
    backend.close()
    assert isinstance(list(backend.ask(ask("hello")))[-1], TurnFailed)


def test_a_backend_that_was_never_started_closes(make_backend: BackendFactory) -> None:
    make_backend().close()


def test_native_output_goes_to_a_private_log(
    make_backend: BackendFactory, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    backend = make_backend()
    backend.wait_ready(SECONDS)
    backend.close()
    log = tmp_path / "logs" / "engine.log"
    assert "native noise" in log.read_text()
    assert stat.S_IMODE(log.stat().st_mode) == 0o600
    assert capfd.readouterr() == ("", "")


def test_a_large_log_starts_anew(tmp_path: Path) -> None:
    log = tmp_path / "engine.log"
    log.write_bytes(b"x" * (6 << 20))
    os.close(open_log(log))
    assert log.stat().st_size == 0
    assert (tmp_path / "engine.log.1").stat().st_size == 6 << 20


def test_a_log_that_cannot_be_written_is_no_log(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert open_log(tmp_path / "file" / "engine.log") == subprocess.DEVNULL


def test_the_engine_ends_when_its_front_end_is_killed(
    settings: EngineSettings, tmp_path: Path
) -> None:
    """The front end is a process of its own here; its engine must drain and go."""
    script = (
        "import sys, pathlib\n"
        "from chatcache.backends.local.engine.client import LocalBackend\n"
        "from chatcache.backends.local.engine.settings import EngineSettings\n"
        "place = pathlib.Path(sys.argv[1])\n"
        "settings = EngineSettings('echo', place, place / 'engine.log')\n"
        "backend = LocalBackend(settings, command=(sys.executable, '-P', sys.argv[2]))\n"
        "print(backend.wait_ready().num_parameters, flush=True)\n"
        "sys.stdin.read()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path), str(ENGINE)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=Path(__file__).parents[2],
    ) as front_end:
        assert front_end.stdout is not None
        engine_pid = int(front_end.stdout.readline())
        engine_fd = os.pidfd_open(engine_pid)
        front_end.kill()
        _wait_for_end(engine_fd)
    assert (tmp_path / "drained").exists()


def test_an_interrupt_of_the_terminal_does_not_end_the_engine(make_backend: BackendFactory) -> None:
    backend = make_backend()
    os.kill(backend.wait_ready(SECONDS).num_parameters, signal.SIGINT)
    assert kinds(list(backend.ask(ask("hello"))))[-1] is TurnFinished


def _wait_for_end(process_fd: int) -> None:
    import select

    ended, _, _ = select.select([process_fd], [], [], SECONDS)
    os.close(process_fd)
    assert ended
