"""One message of the transcript: who, when, the text as it is, and the keys that act on it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from textual.app import ComposeResult
from textual.containers import Vertical
from textual.content import Content
from textual.events import Key
from textual.widget import Widget
from textual.widgets import Static, TextArea

from chatcache.formatting import beginning, clean, moment, plural
from chatcache.tui.commands import bindings
from chatcache.tui.look.formatting import MUTED, shorten
from chatcache.tui.messages import MessageActed
from chatcache.tui.widgets.words import Words

if TYPE_CHECKING:
    from chatcache.chat.views import TranscriptMessage

SHOWN_LINES, SHOWN_CHARACTERS = 40, 4_000
UNFOLDED_LINES, UNFOLDED_CHARACTERS = 1_000, 100_000


class MessageBlock(Vertical, can_focus=True):
    """Base of all messages. Focus is taken by walking (Alt+Up), never by a click."""

    FOCUS_ON_CLICK = False
    BINDINGS = bindings("message")
    role_word = ""

    def __init__(self, turn: int, text: str, *, created_at: float, now: float) -> None:
        super().__init__()
        self.turn = turn
        self.text = clean(text)
        self.node_id: str | None = None
        self.sibling_index, self.num_siblings = 0, 1
        self._when = moment(created_at, now)
        self._is_unfolded = False

    def adopt(self, message: TranscriptMessage) -> None:
        """Take over what the store knows of this message."""
        self.node_id = message.node_id
        self.sibling_index, self.num_siblings = message.sibling_index, message.num_siblings

    def compose(self) -> ComposeResult:
        yield Words(self.head_content(), classes="head")
        yield from self.compose_body()

    def compose_body(self) -> Sequence[Widget]:
        return [Static(self._body_content(), classes="body", markup=False)]

    def _body_content(self) -> Content:
        """The text; of a very long one the beginning, because laying it out would take seconds."""
        is_open = self._is_unfolded
        shown, num_left = beginning(
            self.text,
            UNFOLDED_LINES if is_open else SHOWN_LINES,
            UNFOLDED_CHARACTERS if is_open else SHOWN_CHARACTERS,
        )
        content = Content(shown.expandtabs(4))
        if not num_left:
            return content
        key = "y copies all" if is_open else "Alt+Up, Space shows more"
        note = f"… {plural(num_left, 'character')} more · {key}"
        return content + Content.styled(f"\n{note}", MUTED)

    def head_content(self) -> Content:
        parts: list[tuple[str, str] | str] = [(self.role_word, "bold")]
        note = f"  {self._when}"
        if self.num_siblings > 1:
            note += f"  ⑂ {self.sibling_index + 1}/{self.num_siblings} ‹ ›"
        parts.append((note, MUTED))
        if self.has_class("-folded"):
            parts.append((f"  {shorten(self.text[:400], 60)}", f"{MUTED} italic"))
        return Content.assemble(*parts)

    def refresh_head(self) -> None:
        self.query_one(".head", Words).say(self.head_content())

    def on_key(self, event: Key) -> None:
        """What is no action on this message is written: whoever types means a new one."""
        if event.is_printable and event.character and event.key not in self.screen.active_bindings:
            event.stop()
            composer = self.screen.query_one("#composer", TextArea)
            self.screen.set_focus(composer)
            composer.insert(event.character)

    def action_act(self, action: str) -> None:
        if action == "fold":
            self.fold()
        else:
            self.post_message(MessageActed(action, self.node_id, self.turn))

    def fold(self) -> None:
        """Fold the message to one line, or back; a very long one shows more, or less again."""
        if not self.has_class("-folded") and beginning(self.text, SHOWN_LINES, SHOWN_CHARACTERS)[1]:
            self._is_unfolded = not self._is_unfolded
            self.query_one(".body", Static).update(self._body_content())
            return
        self.toggle_class("-folded")
        self.refresh_head()


class UserMessage(MessageBlock):
    """What the user said, character by character."""

    role_word = "you"


class SystemMessage(MessageBlock):
    """The system prompt, folded until asked for."""

    role_word = "system prompt"

    def __init__(self, text: str, *, created_at: float, now: float) -> None:
        super().__init__(0, text, created_at=created_at, now=now)
        self.add_class("-folded")
