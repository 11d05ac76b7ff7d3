"""Past-tense facts that travel from threads, widgets and the parts of the chat screen to it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from textual.message import Message

if TYPE_CHECKING:
    from chatcache.backends.base import BackendEvent, ModelInfo, SegmentRow
    from chatcache.tui.look.layout import PanelMode


@dataclass
class BackendChanged(Message):
    """The backend told something: loading, ready, failed, a new snapshot, a cache event."""

    event: BackendEvent


@dataclass
class ModelBecameReady(Message):
    """A model can answer, for the first time or after another one."""

    info: ModelInfo


@dataclass
class ModelGaveUp(Message):
    """No model can answer, and none is being started."""

    sentence: str
    hint: str


@dataclass
class SegmentsChanged(Message):
    """The engine holds other segments than before."""

    segments: tuple[SegmentRow, ...]


@dataclass
class RestoreShown(Message):
    """Something is being read from disk for long enough to be worth a word."""

    words: str


class RestoreEnded(Message):
    """A turn has what it needs from disk, or needs it no longer."""


class ChatShown(Message):
    """Another chat is open, or the open one was read anew."""


class QueueEmptied(Message):
    """An answer is complete, and no message waits behind it."""


@dataclass
class PanelModeChosen(Message):
    """A mode of the panel was asked for; None: the next one. `is_kept`: also for the next start."""

    mode: PanelMode | None
    is_kept: bool = True


@dataclass
class PromptSubmitted(Message):
    """The composer gave its text away, pasted placeholders expanded. `turn`: of the message whose
    new text it is, None for a new message."""

    text: str
    turn: int | None = None


@dataclass
class PromptRefused(Message):
    """What is in the composer looks like a command and is none; it stays there."""

    message: str
    hint: str


class FilesWanted(Message):
    """An @ was typed for the first time: the files below the working directory are wanted."""


@dataclass
class CommandChosen(Message):
    """A command was asked for: by key, slash, palette, click, or a file behind an @.

    `is_typed`: the composer gave it away, and is empty."""

    command_id: str
    argument: str = ""
    is_typed: bool = False


@dataclass
class MessageActed(Message):
    """An action key was pressed on a message of the transcript."""

    action: str
    node_id: str | None
    turn: int


class LensOutdated(Message):
    """Something has changed that the lens may show: a turn has ended, or a model is there."""
