"""The chat as lines, for screen readers, dumb terminals and pipes: `chatcache --plain`.

Owns reading and writing. No colour, no cursor movement, no boxes; who speaks is a word at the start
of a line. What the slash commands do is in `plain_actions`.
"""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from chatcache.chat.views import AnswerSaved, SessionSummary
from chatcache.errors import ChatcacheError, NotFoundError
from chatcache.formatting import clean, one_line
from chatcache.frontend import last_chat, registry
from chatcache.frontend.sampling import Sampling
from chatcache.frontend.shell_output import AnswerStream, Narrator, is_terminal, write_data
from chatcache.frontend.shell_turn import ShellTurn, note_figures, watch_backend
from chatcache.personas import Persona
from chatcache.remotes import Remotes

if TYPE_CHECKING:
    from chatcache.backends.base import ModelInfo
    from chatcache.chat.chat_turn import ChatTurn
    from chatcache.chat.service import ChatService
    from chatcache.frontend.desk import SegmentDesk

_SENTENCE = re.compile(r".*(?:\n|[.!?…:]\s)", re.DOTALL)
_PROMPT = "You: "
WELCOME = "chatcache, plain mode. Type a message; /help lists the commands, /quit leaves."


@dataclass(frozen=True, slots=True)
class PlainOptions:
    """What the chat was started with."""

    sampling: Sampling = field(default_factory=Sampling)
    personas: Mapping[str, Persona] = field(default_factory=dict)
    desk: SegmentDesk | None = None
    last_chat_path: Path | None = None
    examine: Callable[[], Iterable[str]] | None = None
    is_offline: bool = False
    remotes: Remotes = field(default_factory=dict)


class Lines(Narrator):
    """Narration as lines on stdout. Of a progress that is told again and again, the first one."""

    def __init__(self) -> None:
        super().__init__()
        self._last_kind = ""

    def progress(self, text: str) -> None:
        kind = re.split(r"[\d:]", text, maxsplit=1)[0].strip()
        if kind != self._last_kind:
            self._last_kind = kind
            self._line(f"({one_line(text)})")

    def note(self, text: str) -> None:
        self._line(f"({text})")

    def warn(self, text: str) -> None:
        self._line(f"Warning: {text}")

    def hold(self) -> None:
        with self._lock:
            self._is_held = True

    @staticmethod
    def _write(text: str) -> None:
        write_data(f"{one_line(text)}\n", is_last=True)

    def forget(self) -> None:
        """A new turn: what is told of it is news."""
        self._last_kind = ""


class SpokenStream(AnswerStream):
    """An answer in whole sentences, so that a screen reader does not stumble over pieces.

    `speaker` is asked for a name when there is something to say: by then the model is known."""

    def __init__(self, speaker: Callable[[], str]) -> None:
        super().__init__()
        self._speaker = speaker
        self._waiting = ""
        self._has_begun = False

    def write(self, text: str) -> None:
        self._waiting += clean(text)
        if match := _SENTENCE.match(self._waiting):
            self._waiting = self._waiting[match.end() :]
            self._say(match[0])

    def end(self) -> None:
        rest, self._waiting = self._waiting.rstrip(), ""
        if rest or self._has_begun:
            self._say(f"{rest}\n")

    def _say(self, text: str) -> None:
        if not self._has_begun:
            self._has_begun = True
            write_data(f"{self._speaker()}: ")
        write_data(text, is_last=True)


class PlainChat:
    """One chat at a time, from the first line of stdin to the last."""

    def __init__(self, service: ChatService, options: PlainOptions) -> None:
        from chatcache.plain.actions import PlainActions

        self.service, self.options = service, options
        self.sampling = options.sampling
        self.session: SessionSummary | None = None
        self.system_prompt: str | None = None
        self.new_name: str | None = None
        self.attached: list[str] = []
        self.is_over = False
        self.lines = Lines()
        self._actions = PlainActions(self)
        self._num_interrupts = 0

    def run(self, session_ref: str | None) -> None:
        """Until /quit, the end of stdin, or Ctrl+C twice."""
        self.say(WELCOME)
        watch_backend(self.service, self.lines)
        session = self.service.find_session(session_ref) if session_ref else None
        self.open(session or last_chat.find(self.service, self.options.last_chat_path))
        while not self.is_over:
            text = self._read()
            if text is not None and text.strip():
                self.take(text)
        if self.session is not None:
            last_chat.remember(self.options.last_chat_path, self.session.session_id, time.time())

    # Reading and writing

    def say(self, text: str) -> None:
        """One or more lines of the program itself."""
        write_data(f"{clean(text)}\n", is_last=True)

    def ask(self, question: str) -> str:
        """A word from the person; nothing when stdin has ended."""
        write_data(f"{question} ", is_last=True)
        return sys.stdin.readline().strip()

    def _read(self) -> str | None:
        """The next message; a line that ends with a backslash goes on in the next one."""
        text = ""
        try:
            while True:
                if is_terminal(sys.stdin):
                    write_data(_PROMPT if not text else "... ", is_last=True)
                line = sys.stdin.readline()
                if not line:
                    self.is_over = True
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
        self.is_over = self._num_interrupts > 1
        self.say("" if self.is_over else "\nPress Ctrl+C again to quit.")

    # What was typed

    def take(self, text: str) -> None:
        """A message or a command; what goes wrong is said in one line."""
        try:
            meant = registry.parse(text)
            if isinstance(meant, registry.Unknown):
                self.say(f"Error: There is no command /{meant.word}. {meant.hint}")
            elif isinstance(meant, registry.Call):
                self._actions.run(meant.command, meant.argument)
            else:
                self.send(meant.text)
        except ChatcacheError as error:
            self.say(f"Error: {error.message} {error.hint}".rstrip())

    def send(self, text: str) -> None:
        """Have a message answered, with the files that were attached to it."""
        parts, self.attached = [*self.attached, text], []
        session = self.ensure_session()
        text = "\n\n".join(parts)
        self.answer(self.service.send(session.session_id, text, self.sampling.options))

    def answer(self, turn: ChatTurn) -> None:
        """Run one turn; Ctrl+C stops it and keeps what was said."""
        self.lines.forget()
        stream = SpokenStream(self._speaker)
        done = ShellTurn(self.lines, stream).run(turn)
        self._ended(done.saved)

    def _speaker(self) -> str:
        info = self.model_info()
        return one_line(info.model) if info else "Answer"

    def model_info(self) -> ModelInfo | None:
        """What answers; None while it is being loaded, or where nothing is."""
        if self.service.backend is None:
            return None
        try:
            return self.service.backend.wait_ready(0)
        except (TimeoutError, ChatcacheError):
            return None  # it is still being loaded: a turn waits for it

    def _ended(self, saved: AnswerSaved) -> None:
        note_figures(self.lines, saved)
        if saved.result.finish_reason != "stop":
            self.say("(stopped; /continue goes on)")
        self.reload()

    # The open chat

    def ensure_session(self) -> SessionSummary:
        if self.session is None:
            self.session = self.service.create_session(self.new_name, self.system_prompt)
        return self.session

    def require_session(self) -> SessionSummary:
        if self.session is None:
            raise NotFoundError("This chat is empty.", "Say something first.")
        return self.session

    def reload(self) -> None:
        """Take over the name and the length that the open chat has now."""
        if self.session is not None:
            self.session = self.service.find_session(self.session.session_id)

    def open(self, session: SessionSummary | None) -> None:
        """Open a chat and read out its last turn."""
        self.session, self.new_name, self.attached = session, None, []
        if session is None:
            self.say("New chat.")
            return
        self.say(f"Chat: {one_line(session.name)}, turn {session.num_turns}.")
        for message in self.service.transcript(session.session_id, last_turns=1):
            self.say(spoken(message.role, message.text, message.model))


def spoken(role: str, text: str, model: str | None) -> str:
    """One message with the word for who said it."""
    who = {"system": "System prompt", "user": "You"}.get(role, model or "Answer")
    return f"{one_line(who)}: {text.rstrip()}"
