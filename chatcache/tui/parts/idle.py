"""When the engine is asked to get ready: after an answer, while the user types, on a highlight.

Owns the pauses that are waited for and what was asked last, so that nothing is asked twice. The
asking itself happens in threads and is never waited for: a message that is sent meanwhile overtakes
it in the engine.
"""

from __future__ import annotations

from textual.timer import Timer

from chatcache.backends.base import IdleKind
from chatcache.chat.finished import stable_part
from chatcache.frontend.open_chat import OpenChat
from chatcache.frontend.registry import Prompt
from chatcache.tui.parts.turns import Turns
from chatcache.tui.stage import Stage
from chatcache.tui.widgets.composer import Composer

TYPING_PAUSE_SECONDS = 0.3
HIGHLIGHT_PAUSE_SECONDS = 0.25
# So many new characters are worth the asking while somebody types without a pause.
ENOUGH_CHARACTERS = 64


class IdleHooks:
    """The idle work of one chat screen. All methods belong to the screen's own thread."""

    def __init__(self, stage: Stage, chat: OpenChat, turns: Turns, composer: Composer) -> None:
        self._stage, self._chat, self._idle = stage, chat, chat.service.idle
        self._turns, self._composer = turns, composer
        self._typing: Timer | None = None
        self._highlighting: Timer | None = None
        self._asked_draft = ""
        self._highlighted: str | None = None

    # What happens on the screen

    def edited(self) -> None:
        """The draft changed: look at it after a pause, or at once when much is new."""
        self._stop(self._typing)
        self._typing = None
        text = self._composer.text
        if not text:
            self._asked_draft = ""
        elif not self._idle.is_on("draft"):
            return  # not even a timer
        elif len(text) - len(self._asked_draft) >= ENOUGH_CHARACTERS:
            self._ask_draft()
        else:
            self._typing = self._stage.set_timer(TYPING_PAUSE_SECONDS, self._ask_draft)

    def opened(self) -> None:
        """Another chat is open, or the model is ready for the one that is."""
        self._asked_draft = ""
        self._ask("restore", self._chat.session_id)
        self.edited()

    def answered(self) -> None:
        """An answer is complete and nothing waits behind it."""
        self._asked_draft = ""
        self._ask("next_turn", self._chat.session_id)
        self.edited()

    def highlighted(self, session_id: str) -> None:
        """A chat is highlighted in the list: after a pause it is brought back."""
        if session_id == self._highlighted or not self._idle.is_on("restore"):
            return
        self._leave_highlighted()
        self._highlighted = session_id
        self._highlighting = self._stage.set_timer(HIGHLIGHT_PAUSE_SECONDS, self._ask_highlighted)

    def list_left(self, *, is_opening: bool) -> None:
        """The list was closed. Unless another chat is opened, the open one is wanted again."""
        if self._leave_highlighted() and not is_opening:
            self.opened()

    def _leave_highlighted(self) -> bool:
        """Give up what was highlighted; False when nothing had been asked for it."""
        self._stop(self._highlighting)
        has_asked = self._highlighted is not None and self._highlighting is None
        self._highlighting = self._highlighted = None
        if has_asked:
            self._stage.run(self._stage.ask(self._idle.cancel))
        return has_asked

    # Asking

    def _ask_highlighted(self) -> None:
        self._highlighting = None
        self._ask("restore", self._highlighted or "")

    def _ask_draft(self) -> None:
        """Of a message: a command or the new text of an earlier turn is not prepared."""
        self._typing = None
        meant = self._composer.meant()
        if not isinstance(meant, Prompt) or self._composer.editing_turn is not None:
            return
        stable = stable_part(meant.text)
        if stable and stable != self._asked_draft:
            self._asked_draft = stable
            self._ask("draft", self._chat.session_id, meant.text)

    def _ask(self, kind: IdleKind, session_id: str, draft: str = "") -> None:
        is_wanted = kind == "draft" or bool(session_id)
        if self._turns.running is None and is_wanted and self._idle.is_on(kind):
            work = self._stage.ask(
                self._idle.prepare,
                kind,
                session_id,
                draft,
                think=self._chat.sampling.think,
                system=self._chat.system_prompt,
            )
            self._stage.run(work)

    @staticmethod
    def _stop(timer: Timer | None) -> None:
        if timer is not None:
            timer.stop()
