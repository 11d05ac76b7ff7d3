"""Whose answer is still being written: that of a process that runs, and of no other."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from chatcache.chat import partials
from chatcache.processes import start_time


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="Linux tells the state")
def test_a_process_that_has_ended_writes_nothing_though_nobody_has_taken_note_of_it() -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as writer:
        owner = f"{writer.pid}:{start_time(writer.pid)}:token"
        assert partials._is_alive(owner, time.time())
        writer.kill()
        os.waitid(os.P_PID, writer.pid, os.WEXITED | os.WNOWAIT)
        assert not partials._is_alive(owner, time.time())
