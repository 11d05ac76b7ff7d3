"""Reading the terminal: as Textual does it, but for pasted text, which is taken in whole pieces.

Textual's parser looks at each character of a paste on its own. For a paste of 2 MB that is more
than a second in which no key is echoed.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import termios
from codecs import getincrementaldecoder
from collections.abc import Iterable
from typing import Any, TextIO

from textual._parser import ParseError
from textual._xterm_parser import BRACKETED_PASTE_END, BRACKETED_PASTE_START, XTermParser
from textual.drivers.linux_driver import LinuxDriver
from textual.events import Paste
from textual.message import Message

_READ_BYTES = 64 * 1024
_TICK_SECONDS = 0.1
_HANGUP_SECONDS = 1.0
# So much of the mark at the end may have come already, at the end of a piece.
_KEPT_BACK = len(BRACKETED_PASTE_END) - 1


class PasteParser(XTermParser):
    """A paste whose first mark comes in one piece is searched for its end; the rest is Textual's.

    A mark that is cut in two is left to Textual: its first half may be the Esc key.
    """

    def __init__(self, debug: bool = False) -> None:
        super().__init__(debug)
        self._pieces: list[str] | None = None
        self._tail = ""

    def feed(self, data: str) -> Iterable[Message]:
        if not data:
            yield from super().feed(data)
            return
        while data:
            if self._pieces is None:
                before, mark, data = data.partition(BRACKETED_PASTE_START)
                if before:
                    yield from super().feed(before)
                if mark:
                    self._pieces, self._tail = [], ""
            else:
                text, mark, rest = (self._tail + data).partition(BRACKETED_PASTE_END)
                if not mark:
                    cut = max(0, len(text) - _KEPT_BACK)
                    self._pieces.append(text[:cut])
                    self._tail = text[cut:]
                    return
                pasted = "".join([*self._pieces, text])
                self._pieces, data = None, rest
                yield Paste(pasted.replace("\x00", ""))


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
        self._file = LastingFile(self._file)  # type: ignore[assignment,arg-type]

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

    def run_input_thread(self) -> None:
        """Read until the program ends. Bytes that are no UTF-8 are replaced, not fatal."""
        parser = PasteParser(self._debug)
        decode = getincrementaldecoder("utf-8")("replace").decode
        with selectors.SelectSelector() as selector:
            selector.register(self.fileno, selectors.EVENT_READ)
            try:
                while not self.exit_event.is_set():
                    if selector.select(_TICK_SECONDS):
                        if not (data := self._read()):
                            self._end_without_terminal()
                            return
                        if text := decode(data):  # not half a character
                            self._take(parser, text)
                    for message in parser.tick():
                        self.process_message(message)
            finally:
                self._end(parser)

    def _take(self, parser: PasteParser, text: str) -> None:
        for message in parser.feed(text):
            self.process_message(message)

    def _read(self) -> bytes:
        """What was typed; nothing when the terminal is gone."""
        try:
            return os.read(self.fileno, _READ_BYTES)
        except OSError:
            return b""

    def _end_without_terminal(self) -> None:
        """The kernel sends SIGHUP, but only where the terminal is the controlling one."""
        if not self.exit_event.wait(_HANGUP_SECONDS):
            os.kill(os.getpid(), signal.SIGHUP)

    @staticmethod
    def _end(parser: PasteParser) -> None:
        try:
            for _ in parser.feed(""):
                pass
        except (EOFError, ParseError):
            return
