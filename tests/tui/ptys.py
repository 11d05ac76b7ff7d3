"""A program on a real pseudo-terminal, and what became of what was typed there."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import signal
import sqlite3
import struct
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

ROOT = Path(__file__).parents[2]
LIMIT_SECONDS = 60.0
HIDDEN = ("TMUX", "COLUMNS", "LINES", "NO_COLOR", "TERM_PROGRAM", "LC_TERMINAL")


class Pty:
    """Runs a command with a terminal of its own; what it writes is read all the time."""

    def __init__(self, command: Sequence[str], **environ: str) -> None:
        self._master, slave = os.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 36, 120, 0, 0))
        kept = {name: value for name, value in os.environ.items() if name not in HIDDEN}
        self._environ = kept | {"TERM": "xterm-256color", "LC_ALL": "C.UTF-8"} | environ
        self._command = command
        self.slave = slave  # held, so that its modes can be asked for
        self.shown = b""
        self.start()
        threading.Thread(target=self._read, daemon=True).start()

    def start(self) -> None:
        """Run the command, also once more on the same terminal."""
        self.program = subprocess.Popen(
            self._command,
            stdin=self.slave,
            stdout=self.slave,
            stderr=self.slave,
            cwd=ROOT,
            env=self._environ,
            start_new_session=True,
            preexec_fn=partial(fcntl.ioctl, self.slave, termios.TIOCSCTTY, 0),
        )

    def _read(self) -> None:
        with contextlib.suppress(OSError):
            while data := os.read(self._master, 65536):
                self.shown += data

    def type(self, text: str | bytes, pause: float = 0.0) -> None:
        """Write it at once, as a terminal does."""
        data = text.encode("utf-8", "surrogateescape") if isinstance(text, str) else text
        while data:
            data = data[os.write(self._master, data) :]
        time.sleep(pause)

    def keys(self, text: str) -> None:
        """One character after the other."""
        for character in text:
            self.type(character, 0.04)

    def until(self, is_true: Callable[[], object], what: object = "") -> None:
        end = time.monotonic() + LIMIT_SECONDS
        while not is_true():
            assert time.monotonic() < end, (what, self.shown[-3000:])
            time.sleep(0.02)

    def until_shown(self, text: str) -> None:
        self.until(lambda: text.encode() in self.shown, text)

    @property
    def modes(self) -> int:
        """The local modes of the terminal, as `termios` has them."""
        modes: int = termios.tcgetattr(self.slave)[3]
        return modes

    def wait(self) -> int:
        return self.program.wait(LIMIT_SECONDS)

    def close(self) -> None:
        if self.program.poll() is None:
            self.program.send_signal(signal.SIGKILL)
            self.program.wait()
        os.close(self.slave)
        os.close(self._master)


class ChatOnPty(Pty):
    """The chat with a fake model: what it sent, and what it keeps as a draft."""

    def __init__(self, directory: Path, *options: str, **environ: str) -> None:
        self.directory = directory
        command = [sys.executable, "-m", "tests.tui.terminal_app", str(directory), *options]
        super().__init__(command, **environ)
        self.until_shown("You: " if "--plain" in options else "ready")

    @property
    def sent(self) -> list[str]:
        """The messages of the person, in their order, of all chats."""
        path = self.directory / "chats.db"
        if not path.exists():
            return []
        with contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as database:
            rows = database.execute("SELECT text FROM nodes WHERE role = 'user' ORDER BY rowid")
            return [text for (text,) in rows]

    @property
    def draft(self) -> str:
        """What is kept of what is being written."""
        try:
            drafts = json.loads((self.directory / "drafts.json").read_text())
        except (OSError, ValueError):
            return ""
        return "|".join(drafts.values())

    def until_draft(self, text: str) -> None:
        try:
            self.until(lambda: self.draft == text)
        except AssertionError:
            raise AssertionError((self.draft, text)) from None

    def until_sent(self, *texts: str) -> None:
        try:
            self.until(lambda: self.sent == list(texts))
        except AssertionError:
            raise AssertionError((self.sent, texts)) from None
