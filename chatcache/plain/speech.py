"""How plain mode writes: lines and whole sentences on stdout.

No colour, no cursor movement, no boxes; who speaks is a word at the start of a line.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from chatcache.chat.views import TranscriptMessage
from chatcache.formatting import beginning, clean, one_line, plural
from chatcache.frontend.exports import speaker
from chatcache.frontend.shell_output import AnswerStream, Narrator, write_data

_SAID_LINES, _SAID_CHARACTERS = 20, 2_000
_SENTENCE = re.compile(r".*(?:\n|[.!?…:]\s)", re.DOTALL)


def say(text: str) -> None:
    """One or more lines of the program itself."""
    write_data(f"{clean(text)}\n", is_last=True)


def spoken(message: TranscriptMessage) -> str:
    """One message with the word for who said it; answers to the end."""
    text = recalled(message.text) if message.role == "user" else message.text.rstrip()
    return f"{one_line(speaker(message))}: {text}"


def recalled(text: str) -> str:
    """What the user said, not read out to the end where that takes minutes."""
    shown, num_left = beginning(text.rstrip(), _SAID_LINES, _SAID_CHARACTERS)
    if not num_left:
        return shown
    return f"{shown}\n({plural(num_left, 'character')} more; /export FILE writes all.)"


class Lines(Narrator):
    """Narration as lines on stdout. Of a progress that is told again and again, the first one."""

    def __init__(self) -> None:
        super().__init__()
        self._last_kind = ""

    def progress(self, text: str) -> None:
        kind = re.split(r"[\d:]", text, maxsplit=1)[0].strip()
        if kind != self._last_kind:
            self._last_kind = kind
            self._line(f"({one_line(text)})")

    def note(self, text: str) -> None:
        self._line(f"({text})")

    def warn(self, text: str) -> None:
        self._line(f"Warning: {text}")

    def hold(self) -> None:
        with self._lock:
            self._is_held = True

    @staticmethod
    def _write(text: str) -> None:
        write_data(f"{one_line(text)}\n", is_last=True)

    def forget(self) -> None:
        """A new turn: what is told of it is news."""
        self._last_kind = ""


class SpokenStream(AnswerStream):
    """An answer in whole sentences, so that a screen reader does not stumble over pieces.

    `speaker` is asked for a name when there is something to say: by then the model is known."""

    def __init__(self, speaker: Callable[[], str]) -> None:
        super().__init__()
        self._speaker = speaker
        self._waiting = ""
        self._has_begun = False

    def write(self, text: str) -> None:
        self._waiting += clean(text)
        if match := _SENTENCE.match(self._waiting):
            self._waiting = self._waiting[match.end() :]
            self._say(match[0])

    def end(self) -> None:
        rest, self._waiting = self._waiting.rstrip(), ""
        if rest or self._has_begun:
            self._say(f"{rest}\n")

    def _say(self, text: str) -> None:
        if not self._has_begun:
            self._has_begun = True
            write_data(f"{self._speaker()}: ")
        write_data(text, is_last=True)
