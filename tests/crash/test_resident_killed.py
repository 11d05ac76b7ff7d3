"""An engine that stays, its front end, or both are killed at random moments.

Nothing that was shown as sent is lost, the next command works, and in the end no process and no
socket is left. CHATCACHE_KILLS sets the number of rounds.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from chatcache.backends.local.engine.control import running_engines
from chatcache.backends.local.engine.residence import places
from chatcache.processes import is_running
from tests.crash.test_engine_killed import ROOT, run_json
from tests.models import build_model_dir

NUM_KILLS = int(os.environ.get("CHATCACHE_KILLS", "10"))
MAX_TALK_SECONDS = 1.5


@pytest.fixture
def runtime(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Engines of this test alone."""
    with tempfile.TemporaryDirectory(prefix="cce-") as directory:
        monkeypatch.setenv("XDG_RUNTIME_DIR", directory)
        monkeypatch.setenv("CHATCACHE_KEEP_ALIVE", "10m")
        yield Path(directory) / "chatcache"
        for engine in running_engines(Path(directory) / "chatcache"):
            if engine.pid is not None:
                os.kill(engine.pid, signal.SIGKILL)


def engine_pids(runtime: Path) -> list[int]:
    """Those of engines that have got so far as to say so."""
    found = (place.holder() for place in places(runtime))
    return [pid for pid in found if pid is not None]


def talk_and_kill(model: Path, runtime: Path, name: str, victims: str, seconds: float) -> list[str]:
    """Let it talk for a while, then kill; returns what it had shown as sent."""
    command = [sys.executable, "-m", "tests.crash.talker", str(model), name]
    talker = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    assert talker.stdout is not None
    shown = [talker.stdout.readline().strip()]
    time.sleep(seconds)
    if victims in ("engine", "both"):
        for pid in engine_pids(runtime):
            os.kill(pid, signal.SIGKILL)
    if victims == "engine":
        time.sleep(seconds / 4)  # it may have begun another one
    talker.kill()
    shown += [line.strip() for line in talker.stdout if line.endswith("\n")]
    talker.wait()
    talker.stdout.close()
    return [text for text in shown if text]


def test_whoever_is_killed_nothing_is_lost_and_the_next_command_works(
    tmp_path: Path, home: Path, runtime: Path
) -> None:
    model = build_model_dir(tmp_path / "model", seed=3, max_position_embeddings=65_536)
    ask = ("ask", "Still there?", "--model", str(model), "--temperature", "0")
    draw = random.Random(20)
    shown: list[str] = []
    for number in range(NUM_KILLS):
        victims = ("front end", "engine", "both")[number % 3]
        seconds = draw.random() * MAX_TALK_SECONDS
        shown += talk_and_kill(model, runtime, str(number), victims, seconds)
        answer = run_json(*ask, "--session", "other", "--max-new-tokens", "4")
        assert answer["usage"]["completion_tokens"] > 0
        (engine,) = run_json("engine", "list")["engines"]
        assert engine["state"] == "ready"
    sessions = [found["session_id"] for found in run_json("sessions", "list")["sessions"]]
    shows = [run_json("sessions", "show", session)["messages"] for session in sessions]
    kept = {message["text"] for messages in shows for message in messages}
    assert set(shown) - kept == set()
    assert run_json("cache", "verify")["damaged"] == []
    pids = engine_pids(runtime)
    assert run_json("engine", "stop", "--all")["stopped"] == 1
    assert list(runtime.iterdir()) == []
    assert not any(is_running(pid) for pid in pids)
    assert not list(home.rglob(".tmp-*"))
