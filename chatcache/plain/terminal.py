"""A terminal that plain mode reads key by key: no limit of a line, pastes as they are, arrow keys.

Owns the modes of the terminal, which it gives back, and what is drawn of the line. What is typed at
the end is only echoed, so that a screen reader says just that; a dumb terminal gets nothing else.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import termios
import time
import unicodedata
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import Any

from chatcache.frontend.shell_output import write_data
from chatcache.plain.line import Line
from chatcache.terminal import clusters, modes
from chatcache.terminal.keyboard import Keyboard
from chatcache.terminal.keys import decode, is_text
from chatcache.terminal.sequences import Pasted, Token, Typed

_TICK_SECONDS = 0.5
_SAVE_SECONDS = 1.0
_PASTE_ON, _PASTE_OFF = "\x1b[?2004h", "\x1b[?2004l"
_TAB = "    "


class TerminalGoneError(Exception):
    """There is nobody any more to type."""


class PlainTerminal:
    """Standard input and output of a person."""

    def __init__(self) -> None:
        self._fileno = sys.stdin.fileno()
        self._is_dumb = os.environ.get("TERM", "dumb") in ("", "dumb")
        self._before = modes.usable(termios.tcgetattr(self._fileno))
        self._keyboard = Keyboard(self._fileno)
        self._tokens: deque[Token | str] = deque()
        self._drawn: _Drawing | None = None

    def begin(self) -> None:
        """Read keys from now on. Signals still come from keys: Ctrl+C stops an answer."""
        raw = termios.tcgetattr(self._fileno)
        raw[0] &= ~(termios.ICRNL | termios.INLCR | termios.IGNCR | termios.IXON)
        raw[3] &= ~(termios.ICANON | termios.ECHO | termios.IEXTEN)
        raw[6][termios.VMIN], raw[6][termios.VTIME] = 1, 0
        termios.tcsetattr(self._fileno, termios.TCSADRAIN, raw)
        self._write("" if self._is_dumb else _PASTE_ON)
        signal.signal(signal.SIGTSTP, self._stopped)

    def end(self) -> None:
        """Give the terminal back as it was."""
        signal.signal(signal.SIGTSTP, signal.SIG_DFL)
        with contextlib.suppress(OSError, termios.error):
            self._write("" if self._is_dumb else _PASTE_OFF)
            termios.tcsetattr(self._fileno, termios.TCSADRAIN, self._before)

    @contextlib.contextmanager
    def lent(self) -> Iterator[None]:
        """For another program, such as an editor."""
        self.end()
        try:
            yield
        finally:
            self.begin()

    def read(
        self, prompt: str, text: str, earlier: Sequence[str], keep: Callable[[str], None]
    ) -> Line | None:
        """The line that Enter ends; None for Ctrl+D, or when the terminal is gone. `keep` is told
        now and then what is written so far. Raises KeyboardInterrupt for Ctrl+C."""
        line = Line(text, earlier)
        drawn = self._drawn = _Drawing(prompt, self._is_dumb, self._write, line)
        kept, kept_at = text, time.monotonic()
        done: bool | None = None
        try:
            while done is None:
                done = self._advance(line)
                if line.text != kept and time.monotonic() - kept_at >= _SAVE_SECONDS:
                    kept, kept_at = line.text, time.monotonic()
                    keep(kept)
        except (TerminalGoneError, SystemExit) as ending:
            keep(line.text)
            if isinstance(ending, SystemExit):
                raise
            return None
        except KeyboardInterrupt:
            drawn.leave(line)
            raise
        finally:
            self._drawn = None
        drawn.leave(line)
        return line if done else None

    def _advance(self, line: Line) -> bool | None:
        """Take one thing that came. True: Enter; False: the end; None: neither."""
        if not self._tokens:
            tokens = self._keyboard.read(_TICK_SECONDS)
            if tokens is None:
                raise TerminalGoneError
            for token in tokens:
                self._tokens.extend(token.text if isinstance(token, Typed) else [token])
            if not self._tokens:
                return None
        done = self._take(line, self._tokens.popleft())
        if done is None and not self._tokens and self._drawn is not None:
            self._drawn.show(line)
        return done

    def _take(self, line: Line, token: Token | str) -> bool | None:
        if isinstance(token, Pasted):
            line.paste(token.text)
        elif isinstance(token, str):
            if token == "\t" or is_text(token):
                line.insert(token)
            else:
                return self._press(line, _name(token))
        else:
            for press in decode(token.text) or ():
                if press.character is not None and is_text(press.character):
                    line.insert(press.character)
                elif (done := self._press(line, press.name)) is not None:
                    return done
            if len(token.text) == 2 and (name := f"alt+{_name(token.text[1])}"):
                self._press(line, name)
        return None

    def _press(self, line: Line, name: str) -> bool | None:
        if name == "enter":
            return True
        if name == "ctrl+c":
            raise KeyboardInterrupt
        if name == "ctrl+d" and not line.text:
            return False
        line.press("delete" if name == "ctrl+d" else name)
        return None

    def _stopped(self, number: int, frame: Any) -> None:
        """Ctrl+Z: the shell gets its terminal, and we ours when it is our turn again."""
        self.end()
        os.kill(os.getpid(), signal.SIGTSTP)
        self.begin()
        if self._drawn is not None:
            self._drawn.forget()

    @staticmethod
    def _write(text: str) -> None:
        if text:
            write_data(text, is_last=True)


class _Drawing:
    """What stands on the terminal of the line, and where the cursor is."""

    def __init__(
        self, prompt: str, is_dumb: bool, write: Callable[[str], None], line: Line
    ) -> None:
        self._prompt, self._is_dumb, self._write = prompt, is_dumb, write
        self._text, self._at, self._row = "", 0, 0
        write(prompt)
        self.show(line)

    def show(self, line: Line) -> None:
        """Show the line as it is now, with as little as it takes."""
        if line.text == self._text and line.at == self._at:
            return
        is_at_end = line.at == len(line.text) and self._at == len(self._text)
        if is_at_end and line.text.startswith(self._text):
            self._write(_shown(line.text[len(self._text) :]))
            self._row = self._place(line.text)[0]
        elif self._is_dumb:
            self._show_dumb(line)
        else:
            self._redraw(line)
        self._text, self._at = line.text, line.at

    def _show_dumb(self, line: Line) -> None:
        gone = self._text[len(line.text) :]
        if self._text.startswith(line.text) and line.at == len(line.text) and "\n" not in gone:
            self._write("\b \b" * _width(gone))
        else:
            self._write(f"\n{self._prompt}{_shown(line.text)}")

    def _redraw(self, line: Line) -> None:
        end_row, end_column = self._place(line.text)
        row, column = self._place(line.text[: line.at])
        up = f"\x1b[{self._row}A" if self._row else ""
        # Behind the last cell of a row the cursor waits: a space brings it into the next one.
        over = " \r" if end_column == 0 and line.text[-1:] not in ("", "\n") else ""
        back = f"\x1b[{end_row - row}A" if end_row > row else ""
        right = f"\x1b[{column}C" if column else ""
        drawn = f"\r{up}\x1b[J{self._prompt}{_shown(line.text)}{over}{back}\r{right}"
        self._write(drawn)
        self._row = row

    def _place(self, text: str) -> tuple[int, int]:
        """The row and the column behind a text, from where the prompt begins."""
        columns = max(2, os.get_terminal_size(sys.stdout.fileno()).columns)
        row, column = 0, 0
        for number, part in enumerate(f"{self._prompt}{_shown(text)}".split("\n")):
            row, column = (row + 1, 0) if number else (0, 0)
            for character in _characters(part):
                width = _width(character)
                if column + width > columns:
                    row, column = row + 1, 0
                column += width
            if column == columns:
                row, column = row + 1, 0
        return row, column

    def forget(self) -> None:
        """Something else has been written meanwhile."""
        self._text, self._at, self._row = "", 0, 0
        self._write(self._prompt)

    def leave(self, line: Line) -> None:
        """Go behind the line, so that what follows stands below it."""
        line.at = len(line.text)
        self.show(line)
        self._write("\n")


def _name(character: str) -> str:
    """The name of a key that sends a control character."""
    names = {"\r": "enter", "\n": "ctrl+j", "\x7f": "backspace", "\x08": "backspace"}
    if character in names:
        return names[character]
    code = ord(character)
    return f"ctrl+{chr(code + 96)}" if 0 < code < 27 else character


def _shown(text: str) -> str:
    return text.replace("\t", _TAB)


def _characters(text: str) -> Iterator[str]:
    places = clusters.boundaries(text)
    for start, end in pairwise(places):
        yield text[start:end]


def _width(text: str) -> int:
    """The cells of a text, as terminals count them."""
    return sum(_character_width(character) for character in _characters(_shown(text)))


def _character_width(character: str) -> int:
    if unicodedata.combining(character[0]):
        return 0
    is_wide = unicodedata.east_asian_width(character[0]) in "WF" or "\ufe0f" in character
    return 2 if is_wide else 1
