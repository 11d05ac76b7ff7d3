"""What commands write: data on stdout, narration on stderr.

Owns the streams: nothing else in the shell prints. Text of people and models loses its control
characters when a terminal is there to obey them.
"""

from __future__ import annotations

import json
import sys
import threading
from typing import Any

from chatcache.errors import UnavailableError
from chatcache.formatting import clean, one_line

CLEAR_LINE = "\r\x1b[K"


def is_terminal(stream: Any) -> bool:
    """Whether a standard stream (None when it is closed) leads to a person."""
    return stream is not None and not stream.closed and bool(stream.isatty())


def write_data(text: str, *, is_last: bool = False) -> None:
    """Write to stdout; the last of it also through the buffer.

    Raises BrokenPipeError when nobody reads it, UnavailableError when it cannot be written.
    """
    if sys.stdout is None:
        raise UnavailableError("stdout is closed.", "Let it lead somewhere.")
    try:
        sys.stdout.write(text)
        if is_last:
            sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        raise UnavailableError(
            f"stdout cannot be written: {error.strerror or error}.", "Check where it leads to."
        ) from error


def print_line(text: str) -> None:
    """One line (or table) of data; names in it are made safe by `one_line` beforehand."""
    write_data(f"{clean(text)}\n")


def print_json(value: Any) -> None:
    """The one JSON object of a command: one line for programs, indented for people."""
    encoding = getattr(sys.stdout, "encoding", None) or ""
    is_unicode = encoding.lower().replace("-", "") == "utf8"
    indent = 2 if is_terminal(sys.stdout) else None
    write_data(json.dumps(value, ensure_ascii=not is_unicode, indent=indent) + "\n", is_last=True)


def print_result(data: Any, text: str, *, as_json: bool) -> int:
    """What a command found or did, for programs or for people. Returns the exit code."""
    if as_json:
        print_json(data)
    else:
        print_line(text)
    return 0


class AnswerStream:
    """Streams an answer to stdout as it grows. Raises BrokenPipeError when nobody reads it."""

    def __init__(self) -> None:
        self._is_terminal = is_terminal(sys.stdout)
        self._ends_line = True

    def write(self, text: str) -> None:
        shown = clean(text) if self._is_terminal else text
        if shown:
            write_data(shown, is_last=True)
            self._ends_line = shown.endswith("\n")

    def end(self) -> None:
        """End the last line, so that what follows starts on its own."""
        if not self._ends_line:
            self.write("\n")


class Narrator:
    """Tells on stderr what goes on. Progress and notes are for terminals; warnings are for all.

    Callable from any thread. While `hold` is in force, lines wait: an answer is being written to
    the same screen.
    """

    def __init__(self, is_quiet: bool = False) -> None:
        self._is_quiet = is_quiet
        self._is_terminal = is_terminal(sys.stderr) and not is_quiet
        self._lock = threading.Lock()
        self._has_progress = False
        self._is_held = False
        self._waiting: list[str] = []

    def progress(self, text: str) -> None:
        """Show in place what is being done; the next line replaces it."""
        with self._lock:
            if self._is_terminal and not self._is_held:
                sys.stderr.write(f"{CLEAR_LINE}{one_line(text)}")
                sys.stderr.flush()
                self._has_progress = True

    def note(self, text: str) -> None:
        if self._is_terminal:
            self._line(text)

    def warn(self, text: str) -> None:
        if not self._is_quiet:
            self._line(f"chatcache: {text}")

    def hold(self) -> None:
        """Take the progress line away and keep all lines until `release`."""
        with self._lock:
            self._clear()
            self._is_held = True

    def release(self) -> None:
        with self._lock:
            self._clear()
            self._is_held = False
            for line in self._waiting:
                self._write(line)
            self._waiting.clear()

    def _line(self, text: str) -> None:
        with self._lock:
            if self._is_held:
                self._waiting.append(text)
            else:
                self._clear()
                self._write(text)

    def _clear(self) -> None:
        if self._has_progress:
            sys.stderr.write(CLEAR_LINE)
            self._has_progress = False
            sys.stderr.flush()

    @staticmethod
    def _write(text: str) -> None:
        if sys.stderr is not None:
            sys.stderr.write(f"{one_line(text)}\n")
            sys.stderr.flush()
