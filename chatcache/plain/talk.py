"""The open chat of plain mode: messages and answers as lines.

Owns the files that go with the next message. What a command means for the chat is the open chat's
business; here it is read out.
"""

from __future__ import annotations

from collections.abc import Callable

from chatcache.backends.base import CacheSnapshot, ModelInfo
from chatcache.chat.chat_turn import ChatTurn
from chatcache.errors import ChatcacheError
from chatcache.formatting import model_label, one_line
from chatcache.frontend.lint.finding import panel_line
from chatcache.frontend.lint.look import look_at_open
from chatcache.frontend.model_choice import ModelChoice
from chatcache.frontend.open_chat import OpenChat
from chatcache.frontend.options import Backstage, ChatOptions
from chatcache.frontend.shell_turn import ShellTurn, note_figures
from chatcache.plain.speech import Lines, SpokenStream, say, spoken


class Talk:
    """One chat at a time, and what the backend last said of its tiers."""

    def __init__(self, backstage: Backstage, options: ChatOptions) -> None:
        self.service, self.desk, self.options = backstage.service, backstage.desk, options
        service = self.service
        self.chat = OpenChat(
            service,
            sampling=backstage.sampling,
            personas=options.personas,
            prices=options.prices,
        )
        self.models = ModelChoice(
            service, options.remotes, options.forms, is_offline=options.is_offline
        )
        self.lines = Lines()
        self.snapshot: CacheSnapshot | None = None
        self.attached: list[str] = []
        self._sent_files: list[str] = []
        self._sent_text = ""
        self._told_finding = ("", "")
        if service.backend is not None:
            service.backend.subscribe(self._note)

    def _note(self, event: object) -> None:
        if isinstance(event, CacheSnapshot):
            self.snapshot = event

    def model_info(self) -> ModelInfo | None:
        """What answers; None while it is being loaded, or where nothing is."""
        if self.service.backend is None:
            return None
        try:
            return self.service.backend.wait_ready(0)
        except (TimeoutError, ChatcacheError):
            return None  # it is still being loaded: a turn waits for it

    def send(self, text: str) -> None:
        """Have a message answered, with the files that were attached to it."""
        num_turns = self.chat.session.num_turns if self.chat.session else 0
        words = "\n\n".join([*self.attached, text])
        try:
            self.answer(lambda: self.chat.send(words))
        finally:
            if self.chat.session is not None and self.chat.session.num_turns > num_turns:
                # The message is on disk, whatever became of its answer.
                self._sent_files, self._sent_text, self.attached = self.attached, text, []

    def answer(self, begin: Callable[[], ChatTurn]) -> None:
        """Run one turn; Ctrl+C stops it and keeps what was said."""
        self.lines.forget()
        stream = SpokenStream(self._speaker)
        try:
            saved = ShellTurn(self.lines, stream).run(begin())
        finally:
            if not self.chat.refresh():
                say("This chat has been deleted meanwhile.")
                self.show_another()
        note_figures(self.lines, saved)
        if saved.result.finish_reason != "stop":
            say("(stopped; /continue goes on)")
        self._tell_finding()

    def _tell_finding(self) -> None:
        """What makes the beginning of the chat change, once for each such thing."""
        words = panel_line(look_at_open(self.service, self.chat.session))
        if words and (self.chat.session_id, words) != self._told_finding:
            self._told_finding = (self.chat.session_id, words)
            self.lines.note(f"This chat: {words}. /lint tells more.")

    def _speaker(self) -> str:
        info = self.model_info()
        return model_label(info.model, info.quantization) if info else "Answer"

    def undone(self, text: str) -> None:
        """A message was taken back: its files go with the next one."""
        files = self._sent_files
        if files and text.strip() == "\n\n".join([*files, self._sent_text]).strip():
            self.attached, self._sent_files = [*files, *self.attached], []
            say(f"Your message was: {self._sent_text}")
            say("Its files go with the next message.")
        else:
            say(f"Your message was: {text}")

    def show(self) -> None:
        """Read out the last turn of the open chat."""
        session = self.chat.session
        if session is None:
            say("New chat.")
            return
        say(f"Chat: {one_line(session.name)}, turn {session.num_turns}.")
        for message in self.chat.messages(last_turns=1):
            say(spoken(message))
        self._tell_finding()

    def show_another(self) -> None:
        """Read out a chat that the files for the next message were not meant for."""
        self.attached = []
        self.show()
