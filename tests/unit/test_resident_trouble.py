"""Engines that stay, when something is in their way: no room, no descriptors, wrong files, signals,
somebody else's process, loading that never ends."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from chatcache.backends.base import EngineStatus, ModelLoading, TextDelta, TurnFinished
from chatcache.backends.local.engine import control, process, room, wire
from chatcache.backends.local.engine.lifetime import Lifetime
from chatcache.backends.local.engine.reception import Reception
from chatcache.backends.local.engine.residence import EnginePlace, HeldPlace, engines_directory
from chatcache.backends.local.engine.server import EngineServer
from chatcache.backends.local.engine.settings import EngineSettings
from chatcache.chat.service import ChatService
from chatcache.chat.store import SessionStore
from chatcache.frontend.shell_output import AnswerStream, Narrator
from chatcache.frontend.shell_turn import ShellTurn
from chatcache.processes import is_running
from tests.fake_engine import OUTDATED
from tests.unit.test_engine_server import FrontEnd, server, settings
from tests.unit.test_resident_engine import (
    SECONDS,
    Make,
    answered,
    ask,
    directory,
    make,
    pid_of,
    wait_until,
)

__all__ = ["directory", "make", "server", "settings"]  # fixtures
KEY = "0123456789abcdef"


@pytest.fixture
def place() -> Iterator[EnginePlace]:
    """One that nobody lives in."""
    home = Path(tempfile.mkdtemp(prefix="cce-"))
    yield EnginePlace(home / "engines", KEY)
    shutil.rmtree(home)


class Scarce(socket.socket):
    """A listening socket of a process that has no descriptors left, once."""

    is_scarce = True

    def accept(self) -> Any:
        if self.is_scarce:
            self.is_scarce = False
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        return super().accept()


def test_a_connection_that_cannot_be_accepted_is_not_the_last(tmp_path: Path) -> None:
    with Scarce(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as client:
        listener.bind(str(tmp_path / "s"))
        listener.listen()
        reception = Reception(Lifetime(stamp=lambda: ()), EngineServer.end, is_resident=True)  # type: ignore[arg-type]
        reception.listen(listener)
        client.settimeout(SECONDS)
        client.connect(str(tmp_path / "s"))
        front_end = FrontEnd.__new__(FrontEnd)
        front_end.channel = process_channel(client)
        front_end.send(wire.AskStatus())
        front_end.wait_for(EngineStatus)
        listener.shutdown(socket.SHUT_RDWR)


def process_channel(connection: socket.socket) -> Any:
    from chatcache.backends.local.engine.channel import Channel

    return Channel(connection, wire.CODEC)


def test_a_front_end_that_cannot_be_greeted_is_sent_away(
    server: EngineServer, settings: EngineSettings
) -> None:
    """The files of a package are being exchanged, and a directory is gone while it is read."""

    def vanished() -> bool:
        raise FileNotFoundError

    lifetime = server.reception._lifetime
    lifetime.is_model_outdated = vanished
    front_end = FrontEnd(server)
    front_end.hello(settings)
    assert front_end.channel.socket.recv(1) == b""
    lifetime.is_model_outdated = lambda: False
    front_end.channel.close()


def test_a_signal_is_acted_on_by_a_thread_that_holds_no_lock() -> None:
    ended: list[threading.Thread] = []

    class Server:
        def end(self, reason: str) -> None:
            ended.append(threading.current_thread())

    before = signal.getsignal(signal.SIGTERM)
    try:
        process._end_when_told(Server())  # type: ignore[arg-type]
        os.kill(os.getpid(), signal.SIGTERM)
        wait_until(lambda: ended != [])
    finally:
        signal.signal(signal.SIGTERM, before)
    assert ended[0] is not threading.main_thread()


def test_who_finds_a_changed_model_waits_for_the_turn_of_somebody_else(
    make: Make, directory: Path, tmp_path: Path
) -> None:
    first, second = make(), make()
    pid = pid_of(first)
    long = first.ask(ask("until stopped"))
    while not isinstance(long.get(SECONDS), TextDelta):
        pass
    (tmp_path / OUTDATED).touch()
    turn = second.ask(ask("hello"))
    wait_until(lambda: not list(directory.glob("*.sock")))  # nobody asks it any more
    for _ in range(200):  # what it says now, after all that it had said before
        with contextlib.suppress(TimeoutError):
            while long.get(0.0) is not None:
                pass
    assert isinstance(long.get(SECONDS), TextDelta)
    (tmp_path / OUTDATED).unlink()
    long.stop()
    assert isinstance(list(long)[-1], TurnFinished)
    assert isinstance(list(turn)[-1], TurnFinished)
    assert pid_of(second) != pid


def test_loading_that_never_ends_is_ended_when_its_time_is_over(
    make: Make, directory: Path
) -> None:
    backend = make("never", keep=0.3)
    backend.start()
    wait_until(lambda: [e for e in control.running_engines(directory) if e.status] != [])
    backend.close()
    wait_until(lambda: control.running_engines(directory) == [])
    assert list(directory.iterdir()) == []


def test_an_engine_that_is_ended_while_it_loads_stays_away_until_somebody_asks(
    make: Make, directory: Path
) -> None:
    backend = make("never")
    told: list[object] = []
    backend.subscribe(told.append)
    backend.start()
    wait_until(lambda: any(isinstance(event, ModelLoading) for event in told))
    (engine,) = control.running_engines(directory)
    assert control.end_engine(engine, "somebody asked for it")
    away = ModelLoading("somebody asked for it; it starts with the next message")
    wait_until(lambda: away in told)
    assert control.running_engines(directory) == []
    # Whoever waits for the model gets the next engine.
    with pytest.raises(TimeoutError, match="still being loaded"):
        backend.wait_ready(0.5)
    wait_until(lambda: control.running_engines(directory) != [])


def test_no_room_to_say_who_holds_the_place_is_no_reason_to_give_it_up(place: EnginePlace) -> None:
    taken = place.take()
    assert taken is not None
    lock = os.open(place.lock_path, os.O_RDONLY)  # writing fails, as it does on a full disk
    held = HeldPlace(place, lock, taken.listener)
    held.describe({"pid": 1})
    assert place.is_taken()
    assert place.holder() is None
    held.vacate()
    os.close(lock)
    os.close(taken.lock)


def test_two_that_look_at_once_do_not_take_each_other_for_an_engine(place: EnginePlace) -> None:
    taken = place.take()
    assert taken is not None
    taken.close()
    with place.lock_path.open() as other:
        fcntl.flock(other, fcntl.LOCK_SH)
        assert not place.is_taken()


def test_a_process_that_only_has_the_number_is_not_killed(
    place: EnginePlace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Written by an engine in a container, for instance, where numbers mean other processes."""
    monkeypatch.setattr(control, "ANSWER_SECONDS", 0.1)
    monkeypatch.setattr(control, "END_SECONDS", 0.1)
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as innocent:
        taken = place.take()
        assert taken is not None
        HeldPlace(place, taken.lock, taken.listener).describe({"pid": innocent.pid})
        (engine,) = control.running_engines(place.directory)
        assert engine.pid == innocent.pid
        assert not control.end_engine(engine, "it hangs")
        assert is_running(innocent.pid)
        innocent.communicate(b"\n")
        assert innocent.returncode == 0
        taken.close()


def test_a_relative_runtime_directory_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert engines_directory(Path("/state"), {"XDG_RUNTIME_DIR": "."}) == Path("/state/engines")


def test_an_engine_that_accepts_nobody_is_listed(
    place: EnginePlace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(control, "ANSWER_SECONDS", 0.1)
    taken = place.take()
    assert taken is not None
    waiting = []
    with contextlib.suppress(BlockingIOError):
        while len(waiting) < 1000:
            waiting.append(place.connect())
    assert len(waiting) < 1000
    (engine,) = control.running_engines(place.directory)
    assert engine.status is None
    for connection in waiting:
        connection.close()
    taken.close()


def test_a_command_whose_engine_is_ended_in_its_answer_has_failed(
    make: Make, directory: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A script that uses half an answer must be able to know."""

    def end() -> None:
        wait_until(lambda: any(e.status and e.status.is_answering for e in _engines(directory)))
        (engine,) = _engines(directory)
        control.end_engine(engine, "somebody asked for it")

    with ChatService(SessionStore(tmp_path / "chats.sqlite"), make()) as service:
        shell_turn = ShellTurn(Narrator(is_quiet=True), AnswerStream())
        ending = threading.Thread(target=end)
        ending.start()
        session = service.create_session("s")
        saved = shell_turn.run(service.send(session.session_id, "until stopped"))
        ending.join(SECONDS)
    assert saved.result.text == "so on"
    assert shell_turn.exit_code == 4
    assert capsys.readouterr().out.startswith("so on")


def test_unused_engines_give_way_to_one_that_has_no_room(
    make: Make, directory: Path, tmp_path: Path
) -> None:
    used, first, forever = make("used"), make("first"), make("forever", keep=None)
    pids = [pid_of(backend) for backend in (used, first, forever)]
    first.close()
    forever.close()
    wait_until(lambda: sum(not e.status.front_ends for e in _engines(directory) if e.status) == 2)
    model = tmp_path / "model"
    model.mkdir()
    (model / "model.safetensors").write_bytes(b"x" * 1000)
    wanted = EngineSettings(str(model), tmp_path, tmp_path / "engine.log")
    place = EnginePlace(directory, KEY)
    asked: list[int] = []
    assert room.make_room(place, wanted, lambda needed: asked.append(needed) is not None) == 0
    assert asked == [1000]
    assert room.make_room(place, wanted, lambda needed: is_running(pids[1])) == 1
    assert [is_running(pid) for pid in pids] == [True, False, True]
    assert room.make_room(place, wanted, lambda needed: True) == 1
    assert [is_running(pid) for pid in pids] == [True, False, False]


def _engines(directory: Path) -> list[control.RunningEngine]:
    return control.running_engines(directory)


def test_an_engine_that_ends_after_its_chat_was_closed_leaves_no_zombie(make: Make) -> None:
    backend = make()
    pid = pid_of(backend)
    assert answered(backend, "hello") == "so hello"
    backend.close()
    os.kill(pid, signal.SIGTERM)
    wait_until(lambda: not Path(f"/proc/{pid}").exists())
