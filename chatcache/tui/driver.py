"""The terminal: Textual's driver, with a reading of its own.

Textual's reading takes a burst of lines for keys, ends with the program at a report that it does
not expect, and looks at each character of a paste on its own.
"""

from __future__ import annotations

import contextlib
import os
import signal
import termios
from collections.abc import Mapping
from typing import Any, TextIO

from textual.drivers.linux_driver import LinuxDriver

from chatcache.terminal.keyboard import Keyboard
from chatcache.terminal.modes import make_usable
from chatcache.tui.reports import Reports

_TICK_SECONDS = 0.1
_HANGUP_SECONDS = 1.0
# Textual asks for every key as a report with its text. Input methods lose words under that, and a
# program that is killed leaves a terminal in which nobody can type. Enough are reports for what
# has no byte of its own (1), with the place of the key on another layout (4).
_TEXTUAL_PROTOCOL, _PROTOCOL, _PROTOCOL_END = "\x1b[>25u", "\x1b[>5u", "\x1b[<u"
# What Textual does not take back by itself, and a killed program has left: the mouse in pixels,
# sizes in the input, and updates that are held back.
_LEFT_BEHIND = "\x1b[?1016l\x1b[?2048l\x1b[?2026l"
# Where one character from an input method is lost even so.
_LOSING_TERMINALS = ("iTerm.app", "WezTerm", "vscode")


def has_key_reports(environ: Mapping[str, str]) -> bool:
    """Whether the terminal may be asked for key reports. A multiplexer answers for itself."""
    if environ.get("TERM_PROGRAM") in _LOSING_TERMINALS:
        return False
    is_inside = "TMUX" in environ or environ.get("TERM", "").startswith(("tmux", "screen"))
    return is_inside or environ.get("LC_TERMINAL") != "iTerm2"


class LastingFile:
    """The terminal as Textual's thread writes to it. Once it is gone, what is written goes nowhere:
    if the thread ended then, whoever has more to write would wait for ever."""

    def __init__(self, file: TextIO) -> None:
        self._file = file

    def write(self, text: str) -> None:
        with contextlib.suppress(OSError):
            self._file.write(text)

    def flush(self) -> None:
        with contextlib.suppress(OSError):
            self._file.flush()

    def fileno(self) -> int:
        return self._file.fileno()


class ChatDriver(LinuxDriver):
    """Textual's driver for a terminal, with the parser above, and an end when the terminal ends."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._lasting = LastingFile(self._file)  # type: ignore[arg-type]
        self._file = self._lasting  # type: ignore[assignment]

    def _sigcont_application(self, *arguments: Any) -> None:
        """Textual starts anew on every SIGCONT, and leaves its old threads behind unless it was
        suspended by Ctrl+Z. The kernel sends one with SIGHUP, too, when the terminal is gone."""
        if not self._must_signal_resume:
            try:
                termios.tcgetattr(self.fileno)
            except termios.error:
                return
            self.suspend_application_mode()
        super()._sigcont_application(*arguments)

    def start_application_mode(self) -> None:
        """First what a program that was killed may have left of the terminal is put right, so that
        it is in order at the end."""
        make_usable(self.fileno)
        self._lasting.write(_LEFT_BEHIND)
        super().start_application_mode()  # type: ignore[no-untyped-call]

    def write(self, data: str) -> None:
        if data in (_TEXTUAL_PROTOCOL, _PROTOCOL_END) and not has_key_reports(os.environ):
            return
        super().write(_PROTOCOL if data == _TEXTUAL_PROTOCOL else data)

    def _run_input_thread(self) -> None:
        """Without a keyboard there is nothing left to do but to keep what was written."""
        try:
            self.run_input_thread()
        except Exception as failure:
            self._app.call_later(self._app._handle_exception, failure)

    def run_input_thread(self) -> None:
        """Read until the program ends."""
        reports = Reports()
        with contextlib.closing(Keyboard(self.fileno)) as keyboard:
            while not self.exit_event.is_set():
                tokens = keyboard.read(_TICK_SECONDS)
                if tokens is None:
                    self._end_without_terminal()
                    return
                for message in reports.read(tokens):
                    self.process_message(message)

    def _end_without_terminal(self) -> None:
        """The kernel sends SIGHUP, but only where the terminal is the controlling one."""
        if not self.exit_event.wait(_HANGUP_SECONDS):
            os.kill(os.getpid(), signal.SIGHUP)
