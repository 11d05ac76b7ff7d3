"""What a command changed in the open chat, for a front end to present."""

from __future__ import annotations

from dataclasses import dataclass

from chatcache.chat.views import ForkResult, SessionSummary
from chatcache.formatting import duration, one_line


@dataclass(frozen=True, slots=True)
class Forked:
    """A fork of the chat `origin`, open now. `text` is what the person can say anew."""

    session: SessionSummary
    origin: str
    result: ForkResult
    text: str | None = None

    @property
    def words(self) -> str:
        return (
            f"Forked in {duration(self.result.elapsed_ms)}. It shares"
            f" {self.result.shared_tokens:,} tokens, nothing was copied;"
            f" “{one_line(self.origin)}” is as it was."
        )


@dataclass(frozen=True, slots=True)
class VariantChosen:
    """Answer `number` of `total` is the one that the chat goes on from."""

    number: int
    total: int

    @property
    def words(self) -> str:
        return f"Answer {self.number} of {self.total}."


@dataclass(frozen=True, slots=True)
class SystemChange:
    """What became of another system prompt. `is_reread`: the messages of the chat are new ones;
    `warning`: what speaks against the text."""

    words: str
    is_reread: bool = False
    warning: str | None = None
