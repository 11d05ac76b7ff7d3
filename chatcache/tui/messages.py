"""Past-tense facts that travel from threads, widgets and the parts of the chat screen to it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from textual.message import Message

from chatcache.errors import ChatcacheError

if TYPE_CHECKING:
    from chatcache.backends.base import BackendEvent, ModelInfo, SegmentRow
    from chatcache.chat.views import ChatEvent
    from chatcache.tui.look.layout import PanelMode


class BackendChanged(Message):
    """The backend told something: loading, ready, failed, a new snapshot, a cache event."""

    def __init__(self, event: BackendEvent) -> None:
        super().__init__()
        self.event = event


class ModelBecameReady(Message):
    """A model can answer, for the first time or after another one."""

    def __init__(self, info: ModelInfo) -> None:
        super().__init__()
        self.info = info


class ModelGaveUp(Message):
    """No model can answer, and none is being started."""

    def __init__(self, sentence: str, hint: str) -> None:
        super().__init__()
        self.sentence, self.hint = sentence, hint


class SegmentsChanged(Message):
    """The engine holds other segments than before."""

    def __init__(self, segments: tuple[SegmentRow, ...]) -> None:
        super().__init__()
        self.segments = segments


class RestoreShown(Message):
    """Something is being read from disk for long enough to be worth a word."""

    def __init__(self, words: str) -> None:
        super().__init__()
        self.words = words


class RestoreEnded(Message):
    """A turn has what it needs from disk, or needs it no longer."""


class ChatShown(Message):
    """Another chat is open, or the open one was read anew."""


class QueueEmptied(Message):
    """An answer is complete, and no message waits behind it."""


class PanelModeChosen(Message):
    """A mode of the panel was asked for; None: the next one. `is_kept`: also for the next start."""

    def __init__(self, mode: PanelMode | None, *, is_kept: bool = True) -> None:
        super().__init__()
        self.mode, self.is_kept = mode, is_kept


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


class CommandChosen(Message):
    """A command was asked for: by key, slash, palette, click, or a file behind an @."""

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
