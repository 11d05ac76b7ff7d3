"""What a process that is being started is spared."""

from __future__ import annotations

import signal
import sys
from pathlib import Path

from chatcache.backends.local.child import start_process


def test_an_interrupt_before_the_engine_is_prepared_does_not_end_it(tmp_path: Path) -> None:
    interrupts_itself = "import os, signal; os.kill(os.getpid(), signal.SIGINT)"
    process, channel = start_process((sys.executable, "-c", interrupts_itself), tmp_path / "log")
    assert process.wait(30) == 0
    channel.close()
    assert not {signal.SIGINT, signal.SIGHUP} & signal.pthread_sigmask(signal.SIG_BLOCK, [])
