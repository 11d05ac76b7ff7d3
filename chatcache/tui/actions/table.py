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
from chatcache.tui.stage import Handler, Stage


class Actions:
    """What can be asked of the chat screen by a command or a key."""

    def __init__(self, stage: Stage, app: App[Any], parts: ChatParts) -> None:
        self._stage = stage
        chat, view, panel = parts.chat, parts.view, parts.panel
        self.program = ProgramActions(
            stage, app, chat, panel, parts.options, parts.desk, parts.work
        )
        self.talk = TalkActions(stage, app, chat, view, parts.turns, parts.transcript)
        self.models = ModelActions(stage, chat, view, parts.status, panel, parts.options)
        self.writing = WritingActions(stage, chat, parts.composer)
        sessions = SessionActions(stage, chat, view, parts.idle, parts.work, self.talk)
        prompt = PromptActions(stage, chat, view, panel)
        self._handlers: dict[str, Handler] = {
            **self.talk.handlers,
            **sessions.handlers,
            **prompt.handlers,
            **self.models.handlers,
            **self.program.handlers,
            **self.writing.handlers,
        }

    def handler(self, command_id: str) -> Handler:
        return self._handlers[command_id]

    def act_on_message(self, message: MessageActed) -> None:
        """A key was pressed on one message."""
        if message.action == "inspect":
            self._stage.run(self.program.inspect(message.turn))
        else:
            self.talk.act_on_message(message)
