"""One message of the transcript: who, when, the text as it is, and the keys that act on it."""

from __future__ import annotations

from collections.abc import Sequence

from textual.app import ComposeResult
from textual.containers import Vertical
from textual.content import Content
from textual.widget import Widget
from textual.widgets import Static

from chatcache.chat.views import TranscriptMessage
from chatcache.tui import formatting as fmt
from chatcache.tui.commands import bindings
from chatcache.tui.messages import MessageActed
from chatcache.tui.styles import MUTED


class MessageBlock(Vertical, can_focus=True):
    """Base of all messages. Focus is taken by walking (Alt+Up), never by a click."""

    FOCUS_ON_CLICK = False
    BINDINGS = bindings("message")
    role_word = ""

    def __init__(self, turn: int, text: str, *, created_at: float, now: float) -> None:
        super().__init__()
        self.turn = turn
        self.text = fmt.clean(text)
        self.node_id: str | None = None
        self.sibling_index, self.num_siblings = 0, 1
        self._when = fmt.moment(created_at, now)

    def adopt(self, message: TranscriptMessage) -> None:
        """Take over what the store knows of this message."""
        self.node_id = message.node_id
        self.sibling_index, self.num_siblings = message.sibling_index, message.num_siblings

    def compose(self) -> ComposeResult:
        yield Static(self.head_content(), classes="head", markup=False)
        yield from self.compose_body()

    def compose_body(self) -> Sequence[Widget]:
        return [Static(Content(self.text.expandtabs(4)), classes="body", markup=False)]

    def head_content(self) -> Content:
        parts: list[tuple[str, str] | str] = [(self.role_word, "bold")]
        note = f"  {self._when}"
        if self.num_siblings > 1:
            note += f"  ⑂ {self.sibling_index + 1}/{self.num_siblings} ‹ ›"
        parts.append((note, MUTED))
        if self.has_class("-folded"):
            parts.append((f"  {fmt.shorten(self.text, 60)}", "$foreground-muted italic"))
        return Content.assemble(*parts)

    def refresh_head(self) -> None:
        self.query_one(".head", Static).update(self.head_content())

    def action_act(self, action: str) -> None:
        if action == "fold":
            self.fold()
        else:
            self.post_message(MessageActed(action, self.node_id, self.turn))

    def fold(self) -> None:
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
