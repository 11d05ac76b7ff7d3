"""Reads one turn of the chat service in a thread and tells the screen what became of it.

Owns the way from a handle that blocks to messages. Text is collected in a buffer that the screen
empties at its own pace, so that a fast model cannot flood the event loop.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from textual.message import Message

from chatcache.backends.base import PrefillProgress, TextDelta
from chatcache.chat.chat_turn import ChatTurn
from chatcache.tui.failures import as_user_error
from chatcache.tui.messages import AnswerGrew, TurnAdvanced, TurnEnded, TurnRaised

# Progress is told no more often than this, so that a fast prefill leaves time for keys.
PROGRESS_SECONDS = 0.03


class MessageTarget(Protocol):
    """What a thread may do to a widget: post to it, and nothing else."""

    def post_message(self, message: Message) -> bool: ...


class TextBuffer:
    """Deltas on their way to the screen."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._deltas: list[TextDelta] = []
        self.num_tokens = 0
        self.num_reasoning_tokens = 0

    def add(self, delta: TextDelta) -> bool:
        """Keep a delta; True when the buffer was empty before, so that the screen must be told."""
        with self._lock:
            was_empty = not self._deltas
            self._deltas.append(delta)
            self.num_tokens = delta.num_tokens
            if delta.is_reasoning:
                self.num_reasoning_tokens = delta.num_tokens
            return was_empty

    def take(self) -> tuple[str, str]:
        """What has been collected, as reasoning and answer text."""
        with self._lock:
            deltas, self._deltas = self._deltas, []
        reasoning = "".join(delta.text for delta in deltas if delta.is_reasoning)
        return reasoning, "".join(delta.text for delta in deltas if not delta.is_reasoning)


@contextmanager
def told_end(target: MessageTarget, number: int) -> Iterator[None]:
    """Whatever happens in it, the screen is told that the turn has ended, and why if it failed."""
    try:
        yield
    except Exception as error:
        target.post_message(TurnRaised(number, as_user_error(error)))
    finally:
        target.post_message(TurnEnded(number))


def read_turn(target: MessageTarget, number: int, turn: ChatTurn, buffer: TextBuffer) -> None:
    """Read a turn to its end. Called in a thread."""
    told_at = 0.0
    while (event := turn.get()) is not None:
        if isinstance(event, TextDelta):
            if buffer.add(event):
                target.post_message(AnswerGrew(number))
            continue
        if isinstance(event, PrefillProgress) and event.done < event.total:
            if time.monotonic() - told_at < PROGRESS_SECONDS:
                continue
            told_at = time.monotonic()
        target.post_message(TurnAdvanced(number, event))
