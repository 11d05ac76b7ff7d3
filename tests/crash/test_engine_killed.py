"""The whole process group is killed at random moments, engine and writer thread included.

Nothing that was shown as sent is lost, conversations and segments are sound afterwards, and the
next turn answers from what the last one left. CHATCACHE_KILLS sets the number of rounds.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.models import build_model_dir

ROOT = Path(__file__).parents[2]
NUM_KILLS = int(os.environ.get("CHATCACHE_KILLS", "6"))
MAX_TALK_SECONDS = 1.5


def run_json(*arguments: str) -> dict[str, Any]:
    command = [sys.executable, "-m", "chatcache", *arguments, "--json"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def talk_and_kill(model: Path, name: str, num_sent: int, seconds: float) -> list[str]:
    """Let it talk for a while behind `num_sent` messages; returns what it had shown as sent."""
    command = [sys.executable, "-m", "tests.crash.talker", str(model), name]
    talker = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    assert talker.stdout is not None
    shown = [talker.stdout.readline().strip() for _ in range(num_sent)]
    time.sleep(seconds)
    os.killpg(talker.pid, signal.SIGKILL)
    shown += [line.strip() for line in talker.stdout if line.endswith("\n")]
    talker.wait()
    talker.stdout.close()
    return shown


@pytest.mark.skipif(not hasattr(os, "killpg"), reason="process groups are needed")
def test_a_killed_process_group_loses_nothing_that_was_sent(
    tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CHATCACHE_KEEP_ALIVE", "none")  # the engine is in the group
    model = build_model_dir(tmp_path / "model", seed=3, max_position_embeddings=65_536)
    draw = random.Random(20)
    shown: list[str] = []
    for number in range(NUM_KILLS):
        # The first message is shown before the model is loaded, the third one after two answers:
        # half of the kills fall into loading, half into talking, however slow the machine is.
        num_sent, most = ((1, 2 * MAX_TALK_SECONDS), (3, MAX_TALK_SECONDS))[number % 2]
        shown += talk_and_kill(model, str(number), num_sent, draw.random() * most)
        session = run_json("sessions", "list")["sessions"][0]["session_id"]
        kept = [one["text"] for one in run_json("sessions", "show", session)["messages"]]
        assert [text for text in shown if text and text not in kept] == []
        assert run_json("cache", "verify")["damaged"] == []
    ask = ("ask", "And now?", "--model", str(model), "--temperature", "0", "--max-new-tokens", "4")
    num_spilled = run_json("cache", "stats")["tiers"]["disk"]["segments"]
    cached = [
        run_json(*ask, "--session", "talk")["usage"]["prompt_tokens_details"]["cached_tokens"]
        for _ in range(2)
    ]
    # The writer is behind the answers, and was killed each time: on a slow disk nothing may have
    # got there. What is there serves the next turn, and the turn after that has all of it.
    assert cached[0] > 0 or num_spilled == 0
    assert cached[1] > cached[0]
    assert not list(home.rglob(".tmp-*"))
