"""The chat as plain lines: for screen readers, dumb terminals and pipes. `chatcache --plain`.

Owns the reading: what was typed is a message or a command, and what goes wrong is one line.
"""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from typing import Any

from chatcache.errors import ChatcacheError
from chatcache.frontend import registry
from chatcache.frontend.options import Backstage, ChatOptions
from chatcache.frontend.remembered import NEW_CHAT
from chatcache.frontend.shell_turn import watch_backend
from chatcache.plain.actions import PlainActions
from chatcache.plain.reading import Entered, Reader
from chatcache.plain.speech import say
from chatcache.plain.talk import Talk

_PROMPT = "You: "
_EXIT_INTERRUPTED = 130
WELCOME = "chatcache, plain mode. Type a message; /help lists the commands, /quit leaves."


class PlainChat:
    """One chat at a time, from the first line of stdin to the last."""

    def __init__(self, backstage: Backstage, options: ChatOptions) -> None:
        self._talk = Talk(backstage, options)
        self._reader = Reader(options.drafts_path)
        self._actions = PlainActions(self._talk, self._reader)
        self._has_ended = False
        self._num_interrupts = 0

    def run(self) -> None:
        """Until /quit, the end of stdin, or Ctrl+C twice."""
        talk, options = self._talk, self._talk.options
        say(WELCOME)
        watch_backend(talk.service, talk.lines, lambda: talk.chat.sampling)
        talk.chat.open_first(options.session_ref, options.last_chat_path)
        talk.show()
        with self._reader.opened(), _ended_by_signals():
            while not (self._has_ended or self._actions.is_leaving):
                session_id = talk.chat.session_id or NEW_CHAT
                entry = self._read(session_id)
                if entry is not None and entry.text.strip():
                    self._take(entry)
                    self._reader.done(session_id)
        talk.chat.note_left(options.last_chat_path, options.clock())

    def _read(self, session_id: str) -> Entered | None:
        """The next message; a line that ends with a backslash goes on in the next one."""
        text, is_typed = "", True
        try:
            while True:
                line = self._reader.read(_PROMPT if not text else "... ", session_id, text)
                if line is None:
                    self._has_ended = True
                    return Entered(text, is_typed) if text else None
                self._num_interrupts = 0
                is_typed = is_typed and line.is_typed
                text += line.text
                if not text.endswith("\\"):
                    return Entered(text, is_typed)
                text = text[:-1] + "\n"
        except KeyboardInterrupt:
            self._interrupted()
            return None

    def _interrupted(self) -> None:
        self._num_interrupts += 1
        self._has_ended = self._num_interrupts > 1
        say("" if self._has_ended else "\nPress Ctrl+C again to quit.")

    def _take(self, entry: Entered) -> None:
        """A message or a command; what goes wrong is said in one line."""
        try:
            meant = registry.parse(entry.text, is_typed=entry.is_typed, is_plain=True)
            if isinstance(meant, registry.Unknown):
                say(f"Error: {meant.message} {meant.hint}")
            elif isinstance(meant, registry.Call):
                self._actions.run(meant.command, meant.argument)
            else:
                self._talk.send(meant.text)
        except ChatcacheError as error:
            say(f"Error: {error.message} {error.hint}".rstrip())


@contextlib.contextmanager
def _ended_by_signals() -> Iterator[None]:
    """A terminal that is closed, or a machine that shuts down, must not cost a draft."""

    def leave(number: int, frame: Any) -> None:
        raise SystemExit(_EXIT_INTERRUPTED)

    numbers = (signal.SIGTERM, signal.SIGHUP)
    before = [signal.signal(number, leave) for number in numbers]
    try:
        yield
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)
