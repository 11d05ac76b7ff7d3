"""Every error that a user can meet, in one tree.

    ChatcacheError                      exit code
    ├── UsageError                      2   bad option, bad value, unknown config key
    ├── NotFoundError                   3   session, turn, model, file
    ├── UnavailableError                4   the model or the server cannot serve
    │   ├── ModelLoadError                  a directory or a weight file is missing or broken
    │   ├── NoRoomError                     the model needs more memory than there is
    │   ├── NotFiniteError                  the model computed numbers that are none
    │   ├── ContextFullError                the prompt is longer than the model's context
    │   ├── EngineDiedError                 the engine process ended in the middle of something
    │   └── StorageError                    words cannot be written: read-only, full, not ours
    │       └── DamagedStorageError     5   their file is not what was written
    └── DamageError                     5   `verify` or `doctor` found damage

An error is one sentence that says what is wrong (`message`) and one that says what to do (`hint`).
Anything else that reaches the top is a bug: exit code 1, one line, and the path of the log.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class ChatcacheError(Exception):
    """Base of all errors that are shown to the user as `message` and `hint`."""

    exit_code = 1

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __reduce__(self) -> tuple[type[ChatcacheError], tuple[str | int, ...]]:
        return type(self), (self.message, self.hint)


class UsageError(ChatcacheError):
    """The command, an option or a setting is wrong."""

    exit_code = 2


class NotFoundError(ChatcacheError):
    """A session, turn, model or file that was named does not exist."""

    exit_code = 3


class UnavailableError(ChatcacheError):
    """The model or the server cannot serve the request."""

    exit_code = 4


class ModelLoadError(UnavailableError):
    """The model cannot be loaded; the message names the file."""


class NoRoomError(UnavailableError):
    """The model needs more memory than there is; nothing of it was loaded."""


class NotFiniteError(UnavailableError):
    """The model computed infinities or NaN; what it would answer means nothing."""


class ContextFullError(UnavailableError):
    """The prompt does not fit into the context; the message has both numbers.

    `num_tokens` and `limit` are the two; 0 where they are not known."""

    def __init__(self, message: str, hint: str = "", num_tokens: int = 0, limit: int = 0) -> None:
        super().__init__(message, hint)
        self.num_tokens = num_tokens
        self.limit = limit

    def __reduce__(self) -> tuple[type[ChatcacheError], tuple[str | int, ...]]:
        return type(self), (self.message, self.hint, self.num_tokens, self.limit)


class EngineDiedError(UnavailableError):
    """The engine process ended; nothing that was said is lost."""


class StorageError(UnavailableError):
    """Conversations cannot be written; nothing was accepted."""


class DamagedStorageError(StorageError):
    """The file of the conversations is not what was written; nothing was changed."""

    exit_code = 5


class DamageError(ChatcacheError):
    """Stored data is damaged; all of it is listed by the command that found it."""

    exit_code = 5


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """A hint sentence that names the nearest known words, or the empty string."""
    by_folded = {name.casefold(): name for name in known}
    close = difflib.get_close_matches(word.casefold(), by_folded, cutoff=0.5)
    names = [by_folded[folded] for folded in close]
    return f"Did you mean {' or '.join(repr(name) for name in names)}?" if names else ""
