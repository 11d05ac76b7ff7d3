"""The processes that the bench starts: this chatcache in a home of its own, and in a terminal of
its own (a pty), with the time at which its words appear on it."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import re
import signal
import struct
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import chatcache

_NOT_OURS = ("NO_COLOR", "COLUMNS", "LINES", "TMUX", "CHATCACHE_MODEL")
COLUMNS, LINES = 120, 36
_READ_BYTES = 1 << 16
_PATIENCE_SECONDS = 10.0
# Control sequences, strings to the terminal (titles, queries), and single escapes.
_ESCAPES = re.compile(
    rb"\x1b\[[0-?]*[ -/]*[@-~]|\x1b[\]P_^].*?(?:\x07|\x1b\\)|\x1b[ -/]*[0-~]", re.S
)


def child_environment() -> dict[str, str]:
    """Ours, and the place of a chatcache that is not installed, but run from a checkout."""
    environment = {
        name: value
        for name, value in os.environ.items()
        if name not in _NOT_OURS and not name.startswith("TEXTUAL")
    }
    root = str(Path(chatcache.__file__).resolve().parents[1])
    others = environment.get("PYTHONPATH")
    environment["PYTHONPATH"] = os.pathsep.join([root, *([others] if others else [])])
    return environment


def home_environment(home: Path) -> dict[str, str]:
    """The same, with settings, conversations and segments below `home`: nobody's chats."""
    return child_environment() | {
        "CHATCACHE_DATA_DIR": str(home / "data"),
        "CHATCACHE_CACHE_DIR": str(home / "cache"),
        "CHATCACHE_CONFIG": str(home / "config.toml"),
        "CHATCACHE_KEEP_ALIVE": "none",
        "XDG_RUNTIME_DIR": str(home),
        "HF_HUB_OFFLINE": "1",
        "TERM": "xterm-256color",
        "COLORTERM": "truecolor",
    }


def chat_command(*words: str) -> list[str]:
    """This chatcache, with these words."""
    return [sys.executable, "-P", "-m", "chatcache", *words]


class Terminal:
    """Runs a command; `write` types, `until` waits for words. Close it in the end."""

    def __init__(self, command: Sequence[str], environment: Mapping[str, str]):
        self._master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", LINES, COLUMNS, 0, 0))
        self._changed = threading.Condition()
        self._output = bytearray()
        self._mark = 0
        self._is_over = False
        self.began = time.perf_counter()
        self._process = subprocess.Popen(
            list(command),
            stdin=slave,
            stdout=slave,
            stderr=slave,
            env=dict(environment),
            start_new_session=True,
        )
        os.close(slave)
        self._reader = threading.Thread(target=self._read, name="terminal", daemon=True)
        self._reader.start()

    def write(self, text: str) -> float:
        """Type; returns when. `until` looks at what is shown from now on."""
        with self._changed:
            self._mark = len(self._output)
        began = time.perf_counter()
        data = text.encode()
        while data:
            data = data[os.write(self._master, data) :]
        return began

    def paste(self, text: str) -> float:
        return self.write(f"\x1b[200~{text}\x1b[201~")

    def until(self, is_there: Callable[[str], bool], timeout: float) -> float | None:
        """When what was shown since the last `write` satisfied `is_there`; None: it never did."""
        end = time.perf_counter() + timeout
        with self._changed:
            while True:
                if is_there(_words(self._output[self._mark :])):
                    return time.perf_counter()
                left = end - time.perf_counter()
                if left <= 0 or self._is_over:
                    return None
                self._changed.wait(left)

    def has_shown(self, is_there: Callable[[str], bool]) -> bool:
        """Whether all that was shown since the start satisfies `is_there`."""
        with self._changed:
            return is_there(_words(self._output))

    def close(self, quit_keys: str = "\x11") -> None:
        """Ask the program to leave (Ctrl+Q), and make it."""
        with contextlib.suppress(OSError):
            os.write(self._master, quit_keys.encode())
        try:
            self._process.wait(_PATIENCE_SECONDS)
        except subprocess.TimeoutExpired:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
        self._reader.join(_PATIENCE_SECONDS)
        os.close(self._master)

    def _read(self) -> None:
        while True:
            try:
                data = os.read(self._master, _READ_BYTES)
            except OSError:  # on Linux, the way in which a pty ends
                data = b""
            with self._changed:
                self._output += data
                self._is_over = not data
                self._changed.notify_all()
            if not data:
                return


def _words(output: bytearray) -> str:
    """Without what only moves the cursor or sets colours."""
    return _ESCAPES.sub(b"", bytes(output)).decode(errors="replace")


class Typist:
    """Types one key after the other and tells how long each took to be on the screen."""

    _KEYS = "qxzjvkwyqzxvjkyw"
    _LINE = 24
    _SEEN_TAIL = 4

    def __init__(self, terminal: Terminal, pause: float = 0.05, timeout: float = 10.0):
        self._terminal = terminal
        self._pause = pause
        self._timeout = timeout
        self._typed = ""
        self._count = 0

    def key(self) -> float:
        """Type one; the seconds until it was seen (the time limit, if it was not)."""
        if len(self._typed) >= self._LINE:
            self.clear()
        # The order changes all the time, so that the last four are not found in what was shown
        # before.
        self._typed += self._KEYS[(self._count * 7 + self._count // 16) % 16]
        self._count += 1
        tail = self._typed[-self._SEEN_TAIL :]
        began = self._terminal.write(self._typed[-1])
        seen = self._terminal.until(lambda words: tail in words, self._timeout)
        time.sleep(self._pause)
        return self._timeout if seen is None else seen - began

    def clear(self) -> None:
        """Empty the line, as Ctrl+U does."""
        self._terminal.write("\x15")
        time.sleep(self._pause)
        self._typed = ""
