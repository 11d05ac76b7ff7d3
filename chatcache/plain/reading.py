"""What the person says in plain mode: lines of a pipe, or of a terminal, where they can be edited.

Owns the drafts: a line that was begun when the program ended stands there again at the next start.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from chatcache.frontend.remembered import Drafts
from chatcache.frontend.shell_output import is_terminal, write_data
from chatcache.plain.terminal import PlainTerminal


@dataclass(frozen=True, slots=True)
class Entered:
    """What was entered. What was pasted or recalled is not `is_typed`, and so no command."""

    text: str
    is_typed: bool = True


class Reader:
    """Reads stdin. Within `opened` a terminal is read key by key."""

    def __init__(self, drafts_path: Path | None) -> None:
        self._terminal: PlainTerminal | None = None
        self._drafts = Drafts(drafts_path)
        self._earlier: list[str] = []

    @contextlib.contextmanager
    def opened(self) -> Iterator[None]:
        if not (is_terminal(sys.stdin) and is_terminal(sys.stdout)):
            yield
            return
        self._terminal = PlainTerminal()
        self._terminal.begin()
        try:
            yield
        finally:
            self._terminal.end()
            self._terminal = None

    @contextlib.contextmanager
    def lent(self) -> Iterator[None]:
        """The terminal for another program."""
        with self._terminal.lent() if self._terminal is not None else contextlib.nullcontext():
            yield

    def read(self, prompt: str, session_id: str, begun: str = "") -> Entered | None:
        """The next line of a chat; None at the end. `begun` is kept with it as the draft. Raises
        KeyboardInterrupt."""
        if self._terminal is None:
            if is_terminal(sys.stdin):
                write_data(prompt, is_last=True)
            line = sys.stdin.readline()
            return Entered(line.rstrip("\r\n")) if line else None
        keep = partial(self._keep, session_id, begun)
        draft = self._drafts.take(session_id) if not begun else ""
        try:
            entered = self._terminal.read(prompt, draft, self._earlier, keep)
        except KeyboardInterrupt:
            keep("")
            raise
        if entered is None:
            return None
        if entered.text.strip():
            self._earlier.append(entered.text)
        return Entered(entered.text, entered.is_typed)

    def done(self, session_id: str) -> None:
        """What was entered is where it belongs: it is no draft any more."""
        self._keep(session_id, "", "")

    def ask(self, question: str) -> str:
        """A word from the person; nothing when stdin has ended."""
        if self._terminal is None:
            write_data(f"{question} ", is_last=True)
            return sys.stdin.readline().strip()
        entered = self._terminal.read(f"{question} ", "", (), lambda text: None)
        return entered.text.strip() if entered is not None else ""

    def _keep(self, session_id: str, begun: str, text: str) -> None:
        self._drafts.keep(session_id, begun + text)
        self._drafts.save()
