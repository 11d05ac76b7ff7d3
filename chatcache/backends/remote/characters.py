"""Characters that JSON has cut in two: half an emoji, which nothing can store or show. Pure."""

from __future__ import annotations

import re

_SURROGATES = re.compile("[\ud800-\udfff]")


def whole(text: str) -> str:
    """The text with halves that belong together joined, and others replaced."""
    if not _SURROGATES.search(text):
        return text
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


class Characters:
    """Joins them over the pieces of a stream: a half at the end waits for its other half."""

    def __init__(self) -> None:
        self._half = ""

    def push(self, text: str) -> str:
        """What is certain of the text so far."""
        text, self._half = self._half + text, ""
        if text and "\ud800" <= text[-1] <= "\udbff":
            text, self._half = text[:-1], text[-1]
        return whole(text)
