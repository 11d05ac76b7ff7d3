"""The messages that Up brings back, and the words that they push aside meanwhile."""

from __future__ import annotations

_LIMIT = 500


class EarlierTexts:
    """Walks from what is being written to the first message, and back."""

    def __init__(self) -> None:
        self.texts: list[str] = []
        self._index = 0
        self._aside = ""

    @property
    def is_walking(self) -> bool:
        return self._index < len(self.texts)

    def add(self, text: str) -> None:
        if not self.texts or self.texts[-1] != text:
            self.texts.append(text)
            del self.texts[:-_LIMIT]
        self.restart()

    def replace(self, texts: list[str]) -> None:
        self.texts = texts[-_LIMIT:]
        self.restart()

    def restart(self) -> None:
        """Begin at what is being written."""
        self._index, self._aside = len(self.texts), ""

    def earlier(self, written: str) -> str | None:
        """The message before; None at the first. `written` comes back at the end."""
        if self._index == 0:
            return None
        if not self.is_walking:
            self._aside = written
        self._index -= 1
        return self.texts[self._index]

    def later(self) -> str | None:
        """The message after; at the end what was written; None behind it."""
        if not self.is_walking:
            return None
        self._index += 1
        return self.texts[self._index] if self.is_walking else self._aside
