"""Past-tense facts that travel from threads and widgets to the chat screen."""

from __future__ import annotations

from typing import TYPE_CHECKING

from textual.message import Message

from chatcache.errors import ChatcacheError

if TYPE_CHECKING:
    from chatcache.backends.base import BackendEvent
    from chatcache.chat.views import ChatEvent


class BackendChanged(Message):
    """The backend told something: loading, ready, failed, a new snapshot, a cache event."""

    def __init__(self, event: BackendEvent) -> None:
        super().__init__()
        self.event = event


class TurnMessage(Message):
    """Base of what a running turn tells. `number` tells a turn from the ones before it."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number


class TurnAdvanced(TurnMessage):
    """An event of the turn other than text."""

    def __init__(self, number: int, event: ChatEvent) -> None:
        super().__init__(number)
        self.event = event


class AnswerGrew(TurnMessage):
    """There is new text in the turn's buffer. Posted once until the buffer is taken."""


class TurnRaised(TurnMessage):
    """The turn ended with an error; what had been produced is saved."""

    def __init__(self, number: int, error: ChatcacheError) -> None:
        super().__init__(number)
        self.error = error


class TurnEnded(TurnMessage):
    """The last message of a turn, whatever became of it."""


class PromptSubmitted(Message):
    """The user sent the text of the composer, pasted placeholders expanded."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.text = text


class FilesWanted(Message):
    """An @ was typed for the first time: the files below the working directory are wanted."""


class FilePicked(Message):
    """A file was chosen in the list behind an @."""

    def __init__(self, path: str) -> None:
        super().__init__()
        self.path = path


class CommandChosen(Message):
    """A command was asked for: by key, slash, palette or click."""

    def __init__(self, command_id: str, argument: str = "") -> None:
        super().__init__()
        self.command_id = command_id
        self.argument = argument


class MessageActed(Message):
    """An action key was pressed on a message of the transcript."""

    def __init__(self, action: str, node_id: str | None, turn: int) -> None:
        super().__init__()
        self.action = action
        self.node_id = node_id
        self.turn = turn
