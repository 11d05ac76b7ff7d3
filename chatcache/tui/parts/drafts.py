"""What is written and not sent: kept for each chat, and on disk within two seconds.

Owns when it is written down. Works before any chat is open: what was typed by then goes to the
first one that is shown.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from textual.timer import Timer

from chatcache.frontend.remembered import UNPLACED, Drafts
from chatcache.tui.stage import Stage
from chatcache.tui.widgets.composer import Composer

SAVE_SECONDS = 1.0


class DraftKeeper:
    """All methods belong to the screen's own thread."""

    def __init__(self, stage: Stage, path: Path | None) -> None:
        self._stage = stage
        self._drafts = Drafts(path)
        self._is_kept = path is not None
        self._composer: Composer | None = None
        self._timer: Timer | None = None
        self._waiting: list[str] = []  # sent, while there is no chat yet
        self._at_command: str | None = None
        self.queued: Callable[[], list[str]] = list
        self.session_id: str | None = None

    def watch(self, composer: Composer) -> None:
        self._composer = composer

    # What happens on the screen

    def edited(self) -> None:
        """Something is written that may have to be kept; told once in a while is enough."""
        if self._is_kept and self._timer is None:
            self._timer = self._stage.set_timer(SAVE_SECONDS, self._save)

    def wait_with(self, text: str) -> None:
        """A message that was sent waits for its chat."""
        self._waiting.append(text)
        self.edited()

    def waited_with(self, text: str) -> None:
        self._waiting.remove(text)
        self.edited()

    def command_began(self, written: str) -> None:
        """What is typed behind `written` is not for the chat that the command may leave."""
        self._at_command = written

    # Chats

    def leave(self) -> str:
        """Another chat will be shown: keep what was written for this one. Returns what is not for
        it: what was typed since the command that leaves it, or before any chat was open."""
        composer = self._composer
        if composer is None:
            return ""
        written, before, self._at_command = composer.full_text, self._at_command, None
        if self.session_id is None:
            return written
        ahead = ""
        if before is not None and composer.editing_turn is None and written.startswith(before):
            ahead = written[len(before) :]
        draft = composer.draft
        self._drafts.keep(self.session_id, draft[: len(draft) - len(ahead)])
        return ahead

    def enter(self, session_id: str) -> str:
        """The draft of the chat that is shown now."""
        self.session_id = session_id
        found = (self._drafts.take(session_id), self._drafts.take(UNPLACED))
        self.edited()
        return "\n\n".join(text for text in found if text)

    def got_row(self, session_id: str) -> None:
        """The new chat has a row, and an id, from now on."""
        if self.session_id is not None:
            self._drafts.keep(self.session_id, "")
        self.session_id = session_id

    # Keeping

    def keep_now(self) -> None:
        """The program ends: write down everything."""
        self._note()
        self._drafts.save()

    def _save(self) -> None:
        self._timer = None
        self._note()
        self._stage.run(self._stage.ask(self._drafts.save))

    def _note(self) -> None:
        if self._composer is None:
            return
        texts = [*self._waiting, *self.queued(), self._composer.draft]
        session_id = UNPLACED if self.session_id is None else self.session_id
        self._drafts.keep(session_id, "\n\n".join(text for text in texts if text))
