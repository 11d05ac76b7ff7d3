"""The commands of the registry, each with what it does: a table of command id and handler.

Owns putting the groups together. What the commands of a group do is in the group.
"""

from __future__ import annotations

from typing import Any

from textual.app import App

from chatcache.tui.actions.models import ModelActions
from chatcache.tui.actions.program import ProgramActions
from chatcache.tui.actions.prompt import PromptActions
from chatcache.tui.actions.sessions import SessionActions
from chatcache.tui.actions.talk import TalkActions
from chatcache.tui.actions.writing import WritingActions
from chatcache.tui.messages import MessageActed
from chatcache.tui.parts.wiring import ChatParts
from chatcache.tui.stage import Handler


class Actions:
    """What can be asked of the chat screen by a command or a key."""

    def __init__(self, app: App[Any], parts: ChatParts) -> None:
        self._stage = parts.stage
        self.program = ProgramActions(app, parts)
        self.talk = TalkActions(app, parts)
        self.models = ModelActions(parts)
        self.writing = WritingActions(parts)
        self.handlers: dict[str, Handler] = {
            **self.talk.handlers,
            **SessionActions(parts, self.talk).handlers,
            **PromptActions(parts).handlers,
            **self.models.handlers,
            **self.program.handlers,
            **self.writing.handlers,
        }

    def act_on_message(self, message: MessageActed) -> None:
        """A key was pressed on one message."""
        if message.action == "inspect":
            self._stage.run(self.program.inspect(message.turn))
        else:
            self.talk.act_on_message(message)
