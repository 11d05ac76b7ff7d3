"""The line that is being written in plain mode: its text, the cursor, and which keys change them.

A line may hold several, where they were pasted or made with Ctrl+J. Knows no terminal.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from chatcache.formatting import clean
from chatcache.terminal import clusters

_WORD_BEFORE = re.compile(r"\S*\s*\Z")
_WORD_BEHIND = re.compile(r"\s*\S*")


class Line:
    """`earlier` are the messages that Up recalls, the last one first asked for."""

    def __init__(self, text: str = "", earlier: Sequence[str] = ()) -> None:
        self.text, self.at = text, len(text)
        self._foreign_start = ""
        self._shown = [*earlier, text]
        self._index = len(earlier)
        self._keys = {
            "left": lambda: self._go(clusters.before(self.text, self.at)),
            "right": lambda: self._go(clusters.after(self.text, self.at)),
            "home": lambda: self._go(self.text.rfind("\n", 0, self.at) + 1),
            "end": lambda: self._go(self._line_end),
            "ctrl+left": lambda: self._go(self._word_before),
            "ctrl+right": lambda: self._go(self._word_behind),
            "backspace": lambda: self._cut(clusters.before(self.text, self.at), self.at),
            "delete": lambda: self._cut(self.at, clusters.after(self.text, self.at)),
            "ctrl+w": lambda: self._cut(self._word_before, self.at),
            "ctrl+u": lambda: self._cut(self.text.rfind("\n", 0, self.at) + 1, self.at),
            "ctrl+k": lambda: self._cut(self.at, self._line_end),
            "up": lambda: self._recall(-1),
            "down": lambda: self._recall(1),
            "ctrl+j": lambda: self.insert("\n"),
        }
        for same, key in _SAME_KEYS.items():
            self._keys[same] = self._keys[key]

    @property
    def is_typed(self) -> bool:
        """False where the first word was pasted or recalled: it is no command then."""
        start = self._foreign_start
        return not (start and self.text.lstrip().startswith(start))

    def press(self, name: str) -> None:
        """A key by its name; one that has no meaning here does nothing."""
        if change := self._keys.get(name):
            change()

    def insert(self, text: str) -> None:
        self.text = self.text[: self.at] + text + self.text[self.at :]
        self.at += len(text)

    def paste(self, text: str) -> None:
        text = clean(text)
        if not self.text[: self.at].strip():
            self._foreign_start = _first_word(text)
        self.insert(text)

    @property
    def _line_end(self) -> int:
        end = self.text.find("\n", self.at)
        return len(self.text) if end < 0 else end

    @property
    def _word_before(self) -> int:
        found = _WORD_BEFORE.search(self.text[: self.at])
        return found.start() if found else 0

    @property
    def _word_behind(self) -> int:
        found = _WORD_BEHIND.match(self.text, self.at)
        return found.end() if found else self.at

    def _go(self, at: int) -> None:
        self.at = at

    def _cut(self, start: int, end: int) -> None:
        self.text, self.at = self.text[:start] + self.text[end:], start

    def _recall(self, step: int) -> None:
        index = self._index + step
        if not 0 <= index < len(self._shown):
            return
        self._shown[self._index] = self.text
        self._index, self.text = index, self._shown[index]
        self.at = len(self.text)
        is_own = index == len(self._shown) - 1
        self._foreign_start = "" if is_own else _first_word(self.text)


_SAME_KEYS = {
    "ctrl+b": "left",
    "ctrl+f": "right",
    "ctrl+a": "home",
    "ctrl+e": "end",
    "alt+b": "ctrl+left",
    "alt+f": "ctrl+right",
    "alt+left": "ctrl+left",
    "alt+right": "ctrl+right",
    "ctrl+h": "backspace",
    "alt+backspace": "ctrl+w",
    "ctrl+backspace": "ctrl+w",
    "ctrl+p": "up",
    "ctrl+n": "down",
    "shift+enter": "ctrl+j",
    "alt+enter": "ctrl+j",
}


def _first_word(text: str) -> str:
    return next(iter(text.split(maxsplit=1)), "")
