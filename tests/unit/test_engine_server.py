"""The engine's side of the channel, on a runner without a model."""

from __future__ import annotations

import socket
import threading
from multiprocessing.connection import Connection
from pathlib import Path

from chatcache.backends.base import ChatMessage, TurnFinished, TurnRequest
from chatcache.backends.local.engine.server import EngineServer
from chatcache.backends.local.engine.settings import EngineSettings
from chatcache.backends.local.engine.wire import Channel, CloseEngine, RunTurn, StopTurn
from tests.fake_engine import EchoRunner

SECONDS = 30.0


class EndsMeanwhile(dict[str, threading.Event]):
    """The stops of a server whose turn ends just when somebody looks for it."""

    def __contains__(self, turn_id: object) -> bool:
        return True


def test_a_stop_at_the_very_end_of_a_turn_leaves_the_engine_listening(tmp_path: Path) -> None:
    ours, theirs = socket.socketpair()
    front_end, server = Connection(ours.detach()), EngineServer(Channel(theirs.detach()))
    server._stops = EndsMeanwhile()
    # An engine whose front end is gone ends its process after a while: here, that of the tests.
    server._leave_orphaned = server._close  # type: ignore[method-assign]
    settings = EngineSettings("echo", tmp_path, tmp_path / "engine.log")
    serving = threading.Thread(
        target=server.serve, args=(lambda emit: EchoRunner(settings, emit),), daemon=True
    )
    serving.start()
    front_end.send(StopTurn("one that has ended"))
    front_end.send(RunTurn(TurnRequest("t", (ChatMessage("user", "hello"),))))
    events = []
    while not events or not isinstance(events[-1], TurnFinished):
        assert front_end.poll(SECONDS)
        events.append(front_end.recv())
    front_end.send(CloseEngine())
    serving.join(SECONDS)
    assert not serving.is_alive()
    front_end.close()
