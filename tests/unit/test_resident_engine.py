"""Engines that outlive their front ends: found, started, shared, ended, taken over."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from chatcache.backends.base import (
    BackendEvent,
    CacheEvent,
    ChatMessage,
    TextDelta,
    TurnFailed,
    TurnFinished,
    TurnRequest,
    TurnWaiting,
)
from chatcache.backends.local.engine import control
from chatcache.backends.local.engine.client import LocalBackend
from chatcache.backends.local.engine.residence import (
    EnginePlace,
    ForeignPlaceError,
    Residence,
    check_private,
    engines_directory,
    places,
)
from chatcache.backends.local.engine.settings import EngineSettings
from chatcache.errors import ModelLoadError
from chatcache.processes import is_running

ENGINE = Path(__file__).parents[1] / "fake_engine.py"
COMMAND = (sys.executable, "-P", str(ENGINE))
SECONDS = 30.0

Make = Callable[..., LocalBackend]


@pytest.fixture
def directory() -> Iterator[Path]:
    """Where the engines of a test live. All of them are ended afterwards."""
    directory = Path(tempfile.mkdtemp(prefix="cce-")) / "engines"
    yield directory
    for engine in control.running_engines(directory):
        assert control.end_engine(engine, "the test is over")
    shutil.rmtree(directory.parent)


@pytest.fixture
def make(tmp_path: Path, directory: Path) -> Iterator[Make]:
    made: list[LocalBackend] = []

    def make(model: str = "echo", keep: float | None = 600.0, **changes: Any) -> LocalBackend:
        options = {"cache_dir": tmp_path, "log_path": tmp_path / "engine.log", **changes}
        settings = EngineSettings(model, **options)
        made.append(LocalBackend(settings, Residence(directory, keep), command=COMMAND))
        return made[-1]

    yield make
    for backend in made:
        backend.close()


def ask(text: str, turn_id: str = "t1") -> TurnRequest:
    return TurnRequest(turn_id, (ChatMessage("user", text),))


def answered(backend: LocalBackend, text: str) -> str:
    last = list(backend.ask(ask(text)))[-1]
    assert isinstance(last, TurnFinished), last
    return last.result.text


def pid_of(backend: LocalBackend) -> int:
    """The fake engine tells its process id in the place of a number of parameters."""
    return backend.wait_ready(SECONDS).num_parameters


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_an_engine_outlives_its_front_end_and_is_found_by_the_next(make: Make) -> None:
    first = make()
    assert answered(first, "hello") == "so hello"
    use = first.engine_use()
    assert use is not None
    assert (use.is_resident, use.is_started) == (True, True)
    pid = pid_of(first)
    first.close()
    second = make()
    assert pid_of(second) == pid
    use = second.engine_use()
    assert use is not None
    assert (use.is_resident, use.is_started) == (True, False)
    assert answered(second, "again") == "so again"


def test_many_that_come_at_once_start_one_engine(make: Make, directory: Path) -> None:
    backends = [make() for _ in range(8)]
    pids: list[int] = []
    threads = [threading.Thread(target=lambda b=b: pids.append(pid_of(b))) for b in backends]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(SECONDS)
    assert len(pids) == 8
    assert len(set(pids)) == 1
    (engine,) = control.running_engines(directory)
    assert engine.status is not None
    assert len(engine.status.front_ends) == 8


def test_another_model_or_cache_is_another_engine(make: Make, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    assert len({pid_of(make()), pid_of(make("echo 2")), pid_of(make(cache_dir=other))}) == 3


def test_another_environment_is_another_engine(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    first = pid_of(make())
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    assert pid_of(make()) != first


def test_with_no_time_to_stay_it_ends_with_its_last_front_end(
    make: Make, tmp_path: Path, directory: Path
) -> None:
    first, second = make(keep=0.0), make(keep=0.0)
    pid = pid_of(first)
    assert pid_of(second) == pid
    first.close()
    assert answered(second, "still here") == "so still here"
    told: list[BackendEvent] = []
    second.subscribe(told.append)
    second.close()
    assert (tmp_path / "drained").exists()  # before close returns
    assert CacheEvent(0.0, "warning", "the last segment did not fit") in told
    wait_until(lambda: not is_running(pid))
    assert list(directory.iterdir()) == []


def test_an_unused_engine_ends_when_its_time_is_over(make: Make, directory: Path) -> None:
    backend = make(keep=0.3)
    pid = pid_of(backend)
    backend.close()
    wait_until(lambda: not is_running(pid))
    assert list(directory.iterdir()) == []


def test_closing_while_it_loads_leaves_an_engine_that_is_to_stay(
    make: Make, directory: Path
) -> None:
    backend = make("never")
    backend.start()
    wait_until(lambda: control.running_engines(directory) != [])
    wait_until(lambda: _status(directory).front_ends != ())
    backend.close()
    wait_until(lambda: _status(directory).front_ends == ())
    assert _status(directory).state == "loading"


def test_one_that_is_not_to_stay_ends_when_nobody_waits_for_it_to_load(
    make: Make, directory: Path
) -> None:
    backend = make("never", keep=0.0)
    backend.start()
    wait_until(lambda: control.running_engines(directory) != [])
    wait_until(lambda: _status(directory).front_ends != ())
    backend.close()
    wait_until(lambda: control.running_engines(directory) == [])


def test_who_comes_alone_with_other_settings_gets_an_engine_with_these(
    make: Make, directory: Path
) -> None:
    first = make()
    pid = pid_of(first)
    first.close()
    wait_until(lambda: _status(directory).front_ends == ())
    second = make(ram_budget=1 << 20)
    assert pid_of(second) != pid
    third = make()
    told: list[BackendEvent] = []
    third.subscribe(told.append)
    assert pid_of(third) == pid_of(second)
    warnings = [event.text for event in told if isinstance(event, CacheEvent)]
    assert len(warnings) == 1
    assert "another ram_budget" in warnings[0]


def test_a_load_that_fails_is_told_to_all_who_wait(make: Make, directory: Path) -> None:
    for backend in (make("broken"), make("broken")):
        with pytest.raises(ModelLoadError, match=r"config\.json is missing"):
            backend.wait_ready(SECONDS)
    wait_until(lambda: control.running_engines(directory) == [])


def test_waiting_for_another_chat_is_told_and_counted(make: Make) -> None:
    first, second = make(), make()
    long = first.ask(ask("until stopped"))
    while not isinstance(long.get(SECONDS), TextDelta):
        pass
    turn = second.ask(ask("hello"))
    assert turn.get(SECONDS) == TurnWaiting("t1", 1, "")
    long.close()
    assert [type(event) for event in turn][-1] is TurnFinished
    use = second.engine_use()
    assert use is not None
    assert use.wait_ms > 0.0
    assert isinstance(list(long)[-1], TurnFinished)


def test_an_engine_that_was_ended_starts_again_with_the_next_turn(
    make: Make, directory: Path
) -> None:
    backend = make()
    pid = pid_of(backend)
    (engine,) = control.running_engines(directory)
    assert control.end_engine(engine, "somebody asked for it")
    wait_until(lambda: not is_running(pid))
    assert answered(backend, "hello") == "so hello"
    assert pid_of(backend) != pid


def test_ending_an_engine_stops_the_turn_and_asks_the_next_one_what_was_not_begun(
    make: Make, directory: Path
) -> None:
    first, second = make(), make()
    long = first.ask(ask("until stopped"))
    while not isinstance(long.get(SECONDS), TextDelta):
        pass
    waiting = second.ask(ask("hello"))
    assert isinstance(waiting.get(SECONDS), TurnWaiting)
    (engine,) = control.running_engines(directory)
    assert control.end_engine(engine, "somebody asked for it")
    last = list(long)[-1]
    assert isinstance(last, TurnFinished)
    assert last.result.finish_reason == "stopped"
    answer = list(waiting)[-1]
    assert isinstance(answer, TurnFinished)
    assert answer.result.text == "so hello"


def test_an_engine_that_hangs_is_listed_and_can_be_ended(
    make: Make, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(control, "ANSWER_SECONDS", 0.3)
    monkeypatch.setattr(control, "END_SECONDS", 0.3)
    backend = make()
    pid = pid_of(backend)
    os.kill(pid, signal.SIGSTOP)
    (engine,) = control.running_engines(directory)
    assert (engine.pid, engine.status) == (pid, None)
    assert control.end_engine(engine, "it hangs")
    wait_until(lambda: not is_running(pid))


def test_the_system_can_end_it_in_good_order(make: Make, tmp_path: Path) -> None:
    backend = make()
    pid = pid_of(backend)
    backend.close()
    os.kill(pid, signal.SIGTERM)
    wait_until(lambda: not is_running(pid))
    assert (tmp_path / "drained").exists()


def test_all_who_used_an_engine_that_died_share_the_next(make: Make) -> None:
    first, second = make(), make()
    pid = pid_of(first)
    assert pid_of(second) == pid
    running = first.ask(ask("die"))
    waiting = second.ask(ask("hello"))
    assert isinstance(list(running)[-1], TurnFailed)
    assert isinstance(list(waiting)[-1], (TurnFinished, TurnFailed))
    wait_until(lambda: not is_running(pid))
    assert answered(first, "again") == answered(second, "again") == "so again"
    assert pid_of(first) == pid_of(second) != pid


def test_what_was_deleted_on_disk_is_given_up_in_memory(
    make: Make, directory: Path, tmp_path: Path
) -> None:
    backend = make()
    backend.wait_ready(SECONDS)
    told: list[BackendEvent] = []
    backend.subscribe(told.append)
    control.forget_deleted(directory, tmp_path / "elsewhere", is_all=True)
    control.forget_deleted(directory, tmp_path, is_all=False)
    wait_until(lambda: any(isinstance(event, CacheEvent) for event in told))
    assert [event.text for event in told if isinstance(event, CacheEvent)] == ["what was deleted"]


# files that were left behind, or put there


def test_what_a_killed_engine_left_is_taken_over(make: Make, directory: Path) -> None:
    backend = make()
    pid = pid_of(backend)
    backend.close()
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: not is_running(pid))
    assert len(list(directory.iterdir())) == 2
    assert answered(make(), "hello") == "so hello"


def test_what_killed_engines_left_is_removed_by_whoever_looks(make: Make, directory: Path) -> None:
    backend = make()
    pid = pid_of(backend)
    backend.close()
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: not is_running(pid))
    assert control.running_engines(directory) == []
    assert list(directory.iterdir()) == []


def test_where_the_socket_was_removed_the_next_front_end_has_an_engine_of_its_own_at_once(
    make: Make, directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The one that cannot be found still holds the lock, so nobody else can take its place."""
    from chatcache.backends.local.engine import opening

    monkeypatch.setattr(opening, "_PATIENCE_SECONDS", 0.3)
    first = make()
    pid = pid_of(first)
    for path in directory.glob("*.sock"):
        path.unlink()
    second = make()
    told: list[BackendEvent] = []
    second.subscribe(told.append)
    assert pid_of(second) != pid
    assert any("is its own" in event.text for event in told if isinstance(event, CacheEvent))
    os.kill(pid, signal.SIGTERM)  # nobody could end it by its socket
    wait_until(lambda: not is_running(pid))


def test_a_directory_that_others_can_enter_is_made_private_or_not_used(tmp_path: Path) -> None:
    lax = tmp_path / "lax"
    lax.mkdir(mode=0o755)
    lax.chmod(0o755)
    with pytest.raises(ForeignPlaceError):
        check_private(lax)
    with pytest.raises(ForeignPlaceError):
        places(lax)
    taken = EnginePlace(lax, "0123456789abcdef").take()
    assert taken is not None
    taken.close()
    check_private(lax)


def test_a_link_to_a_directory_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir(mode=0o700)
    (tmp_path / "link").symlink_to(tmp_path / "real")
    with pytest.raises(ForeignPlaceError):
        check_private(tmp_path / "link")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be another user")
def test_another_user_can_neither_see_nor_connect_nor_pretend(
    make: Make, directory: Path, tmp_path: Path
) -> None:
    backend = make()
    backend.wait_ready(SECONDS)
    (place,) = (engine.place for engine in control.running_engines(directory))
    directory.parent.chmod(0o755)  # so that it is the directory itself that keeps them out
    as_nobody = (
        "import os, socket, sys\n"
        "os.setgid(65534); os.setuid(65534)\n"
        "for act in (lambda: os.listdir(sys.argv[1]),"
        " lambda: socket.socket(socket.AF_UNIX).connect(sys.argv[2])):\n"
        "    try:\n        act()\n    except PermissionError:\n        continue\n"
        "    sys.exit('it could')\n"
    )
    command = [sys.executable, "-c", as_nobody, str(directory), str(place.socket_path)]
    assert subprocess.run(command, capture_output=True, text=True, timeout=SECONDS).stderr == ""
    # A directory, and then a listening process, that are somebody else's.
    foreign = directory.parent / "foreign"
    foreign.mkdir(mode=0o700)
    os.chown(foreign, 65534, 65534)
    with pytest.raises(ForeignPlaceError):
        EnginePlace(foreign, place.key).take()
    with pytest.raises(ForeignPlaceError):
        EnginePlace(foreign, place.key).connect()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be another user")
def test_the_user_of_the_other_end_is_asked_of_the_kernel(directory: Path) -> None:
    directory.mkdir(mode=0o700)
    place = EnginePlace(directory, "0123456789abcdef")
    as_nobody = (
        "import os, socket, sys\n"
        "listener = socket.socket(fileno=int(sys.argv[1]))\n"
        "os.setgid(65534); os.setuid(65534)\n"
        "listener.listen(1); print('listening', flush=True)\n"
        "listener.accept(); sys.stdin.read()\n"
    )
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(place.socket_path))
    descriptor = listener.fileno()
    with subprocess.Popen(
        [sys.executable, "-c", as_nobody, str(descriptor)],
        pass_fds=[descriptor],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as pretender:
        assert pretender.stdout is not None
        assert pretender.stdout.readline() == b"listening\n"
        with pytest.raises(ForeignPlaceError, match="another user"):
            place.connect()
        pretender.kill()
    listener.close()


@pytest.mark.parametrize(
    ("runtime", "is_used"), [("/nowhere", False), ("", False), ("own", True), ("long", False)]
)
def test_where_engines_live(tmp_path: Path, runtime: str, is_used: bool) -> None:
    own = Path(tempfile.mkdtemp(prefix="cce-"))
    long = own / ("x" * 100)
    long.mkdir()
    named = {"own": str(own), "long": str(long)}.get(runtime, runtime)
    directory = engines_directory(Path("/state"), {"XDG_RUNTIME_DIR": named})
    assert (directory == own / "chatcache") is is_used
    assert len(bytes(directory)) < 90
    if not is_used:
        assert directory == Path("/state/engines")
    assert len(bytes(engines_directory(long, {}))) < 90
    shutil.rmtree(own)


def _status(directory: Path) -> Any:
    (engine,) = control.running_engines(directory)
    return engine.status
