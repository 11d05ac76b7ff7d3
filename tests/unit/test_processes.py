"""Whether another process still runs."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from chatcache.processes import is_running, start_time

_HAS_STATES = Path("/proc/self/stat").exists()
# Its first thread ends, and another goes on: until then it holds what it has open.
_WITHOUT_FIRST_THREAD = """
import ctypes, threading
threading.Thread(target=input).start()
print(flush=True)
ctypes.CDLL(None).pthread_exit(None)
"""


def test_a_process_runs_until_it_has_ended() -> None:
    assert is_running(os.getpid())
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        assert is_running(process.pid)
        process.kill()
    assert not is_running(process.pid)
    assert start_time(process.pid) == ""


@pytest.mark.skipif(not _HAS_STATES, reason="Linux tells the state")
def test_one_that_nobody_has_taken_note_of_has_ended() -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        assert start_time(process.pid)
        process.kill()
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        assert not is_running(process.pid)
        assert start_time(process.pid) == ""


@pytest.mark.skipif(not _HAS_STATES, reason="Linux tells the state")
def test_one_whose_first_thread_alone_has_ended_still_runs() -> None:
    command = [sys.executable, "-c", _WITHOUT_FIRST_THREAD]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe) as process:
        assert process.stdout is not None
        process.stdout.readline()
        state = Path(f"/proc/{process.pid}/stat")
        while state.read_text().rpartition(")")[2].split()[0] != "Z":
            pass
        assert is_running(process.pid)
        process.kill()
