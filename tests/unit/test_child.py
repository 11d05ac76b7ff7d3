"""What a process that is being started is spared."""

from __future__ import annotations

import signal
import sys
from pathlib import Path

import pytest

from chatcache.backends.local.engine.child_process import start_process


def test_an_interrupt_before_the_engine_is_prepared_does_not_end_it(tmp_path: Path) -> None:
    interrupts_itself = "import os, signal; os.kill(os.getpid(), signal.SIGINT)"
    process = start_process((sys.executable, "-c", interrupts_itself), tmp_path / "log", [])
    assert process.wait(30) == 0
    assert not {signal.SIGINT, signal.SIGHUP} & signal.pthread_sigmask(signal.SIG_BLOCK, [])


def test_where_the_working_directory_has_been_removed_the_engine_has_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    removed = tmp_path / "removed"
    removed.mkdir()
    monkeypatch.chdir(removed)
    removed.rmdir()
    command = (sys.executable, "-c", "import os; assert os.getcwd() == '/'")
    process = start_process(command, tmp_path / "log", [])
    assert process.wait(30) == 0
