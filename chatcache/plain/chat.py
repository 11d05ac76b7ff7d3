"""The chat as plain lines: for screen readers, dumb terminals and pipes. `chatcache --plain`.

Owns the reading: what was typed is a message or a command, and what goes wrong is one line.
"""

from __future__ import annotations

import sys

from chatcache.errors import ChatcacheError
from chatcache.frontend import registry
from chatcache.frontend.options import Backstage, ChatOptions
from chatcache.frontend.shell_output import is_terminal, write_data
from chatcache.frontend.shell_turn import watch_backend
from chatcache.plain.actions import PlainActions
from chatcache.plain.speech import say
from chatcache.plain.talk import Talk

_PROMPT = "You: "
WELCOME = "chatcache, plain mode. Type a message; /help lists the commands, /quit leaves."


class PlainChat:
    """One chat at a time, from the first line of stdin to the last."""

    def __init__(self, backstage: Backstage, options: ChatOptions) -> None:
        self._talk = Talk(backstage, options)
        self._actions = PlainActions(self._talk)
        self._has_ended = False
        self._num_interrupts = 0

    def run(self) -> None:
        """Until /quit, the end of stdin, or Ctrl+C twice."""
        talk, options = self._talk, self._talk.options
        say(WELCOME)
        watch_backend(talk.service, talk.lines, lambda: talk.chat.sampling)
        talk.chat.open_first(options.session_ref, options.last_chat_path)
        talk.show()
        while not (self._has_ended or self._actions.is_leaving):
            text = self._read()
            if text is not None and text.strip():
                self._take(text)
        talk.chat.note_left(options.last_chat_path, options.clock())

    def _read(self) -> str | None:
        """The next message; a line that ends with a backslash goes on in the next one."""
        text = ""
        try:
            while True:
                if is_terminal(sys.stdin):
                    write_data(_PROMPT if not text else "... ", is_last=True)
                line = sys.stdin.readline()
                if not line:
                    self._has_ended = True
                    return text or None
                self._num_interrupts = 0
                text += line.rstrip("\n")
                if not text.endswith("\\"):
                    return text
                text = text[:-1] + "\n"
        except KeyboardInterrupt:
            self._interrupted()
            return None

    def _interrupted(self) -> None:
        self._num_interrupts += 1
        self._has_ended = self._num_interrupts > 1
        say("" if self._has_ended else "\nPress Ctrl+C again to quit.")

    def _take(self, text: str) -> None:
        """A message or a command; what goes wrong is said in one line."""
        try:
            meant = registry.parse(text)
            if isinstance(meant, registry.Unknown):
                say(f"Error: There is no command /{meant.word}. {meant.hint}")
            elif isinstance(meant, registry.Call):
                self._actions.run(meant.command, meant.argument)
            else:
                self._talk.send(meant.text)
        except ChatcacheError as error:
            say(f"Error: {error.message} {error.hint}".rstrip())
