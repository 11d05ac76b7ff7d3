"""One sitting in a real terminal: launch, chat, fork, quit, come back. Skipped without tmux."""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LIMIT_SECONDS = 60.0

pytestmark = pytest.mark.skipif(shutil.which("tmux") is None, reason="needs tmux")


class Terminal:
    """A tmux server of its own, with one window."""

    def __init__(self, directory: Path) -> None:
        self._socket = str(directory / "tmux.socket")
        self._directory = directory

    def tmux(self, *words: str) -> str:
        command = ["tmux", "-S", self._socket, "-f", "/dev/null", *words]
        # An explicit environment: readline sets COLUMNS and LINES behind Python's back.
        done = subprocess.run(
            command, capture_output=True, text=True, check=True, env=dict(os.environ)
        )
        return done.stdout

    def launch(self) -> None:
        app = shlex.join([sys.executable, "-m", "tests.tui.terminal_app", str(self._directory)])
        command = f"cd {shlex.quote(str(ROOT))}; {app}; echo LEFT $?; exec cat"
        opening = ("new-session", "-d", "-x", "120", "-y", "36", command)
        try:
            self.tmux(*opening)
        except subprocess.CalledProcessError:
            # "server exited unexpectedly": on a busy machine the first client may lose its server.
            self.tmux(*opening)

    def screen(self) -> str:
        return self.tmux("capture-pane", "-p")

    def until(self, is_there: Callable[[str], bool]) -> str:
        """The screen, once it shows what is waited for."""
        end = time.monotonic() + LIMIT_SECONDS
        while not is_there(screen := self.screen()):
            assert time.monotonic() < end, screen
            threading.Event().wait(0.05)
        return screen

    def process(self) -> int:
        """The number of the process that runs in the window."""
        shell = self.tmux("display-message", "-p", "#{pane_pid}").strip()
        return int(Path(f"/proc/{shell}/task/{shell}/children").read_text().split()[0])

    def close(self) -> None:
        subprocess.run(
            ["tmux", "-S", self._socket, "kill-server"], capture_output=True, check=False
        )


@pytest.fixture
def terminal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Terminal]:
    for variable in ("TMUX", "COLUMNS", "LINES", "NO_COLOR"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("LANG", "C.UTF-8")
    monkeypatch.setenv("LC_ALL", "C.UTF-8")
    terminal = Terminal(tmp_path)
    yield terminal
    terminal.close()


def answered(number: int) -> Callable[[str], bool]:
    """Whether so many answers are complete: each has its figures, and nothing is being done."""
    return lambda screen: screen.count("tok @") == number and "\n ready" in screen


def test_a_sitting_in_a_terminal(terminal: Terminal) -> None:
    def say(text: str) -> None:
        terminal.tmux("send-keys", "-l", text)
        terminal.tmux("send-keys", "Enter")

    terminal.launch()
    terminal.until(lambda screen: "\n ready" in screen)
    terminal.tmux("send-keys", "-l", "first line")
    terminal.tmux("send-keys", "C-j")
    say("second line")
    screen = terminal.until(answered(1))
    assert "cold start" in screen
    assert "You said: first line" in screen
    say("again")
    assert "⟲ new user turn" in terminal.until(answered(2))
    terminal.tmux("send-keys", "F4")
    terminal.until(lambda screen: "the whole conversation" in screen)
    terminal.tmux("send-keys", "Down", "Down", "Enter")
    terminal.until(lambda screen: "⑂ from first line" in screen and "You said: again" not in screen)
    terminal.tmux("send-keys", "C-u")
    say("/switch first line second line")
    terminal.until(lambda screen: "⑂ from" not in screen and "You said: again" in screen)
    terminal.tmux("resize-window", "-x", "60", "-y", "20")
    terminal.until(lambda screen: "CACHE  ⟲ hit" in screen)
    say("and more")
    terminal.until(lambda screen: "You said: and more" in screen and "\n ready" in screen)
    terminal.tmux("send-keys", "C-q")
    terminal.until(lambda screen: "LEFT 0" in screen)
    terminal.close()
    terminal.launch()
    screen = terminal.until(lambda screen: "You said: and more" in screen)
    assert "⑂ from" not in screen


in_linux = pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="looks into /proc")


@in_linux
def test_a_program_that_was_stopped_goes_on_and_can_be_left(terminal: Terminal) -> None:
    terminal.launch()
    terminal.until(lambda screen: "\n ready" in screen)
    process = terminal.process()
    os.kill(process, signal.SIGSTOP)
    os.kill(process, signal.SIGCONT)
    terminal.tmux("send-keys", "-l", "still there")
    terminal.until(lambda screen: "still there" in screen)
    terminal.tmux("send-keys", "C-u", "C-q")
    terminal.until(lambda screen: "LEFT 0" in screen)


@in_linux
def test_a_window_that_is_closed_ends_the_program(terminal: Terminal) -> None:
    terminal.launch()
    terminal.until(lambda screen: "\n ready" in screen)
    process = Path(f"/proc/{terminal.process()}")
    terminal.close()
    end = time.monotonic() + LIMIT_SECONDS
    while process.exists():
        assert time.monotonic() < end
        threading.Event().wait(0.05)
