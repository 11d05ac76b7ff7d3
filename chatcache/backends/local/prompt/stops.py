"""What ends an answer where a template writes no end mark: the words that begin the next turn.

Owns finding them in the template, and in the text of an answer while it comes. A model that was
never taught an end mark writes both sides of a conversation if it is let.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from chatcache.backends.base import ChatMessage
from chatcache.backends.local.prompt.template import ChatTemplate
from chatcache.errors import UnavailableError

_WORD = "wjqzx"
_TAG = re.compile(r"<[^<>\s]+>|\[/?[A-Z_]{3,}\]")
_MIN_SIGNS = 4  # of a mark that may stand in the middle of a line


def stop_texts(template: ChatTemplate) -> tuple[str, ...]:
    """The words with which the template begins the turns of both sides; none where it ends an
    answer with a control token. One that begins with a newline counts where a line begins."""
    if template.turn_end_ids():
        return ()
    try:
        tail = template.render_after_answer([ChatMessage("user", _WORD)])
    except UnavailableError:
        return ()
    if tail is None or _WORD not in tail.text:
        return ()
    before, _, behind = tail.text.partition(_WORD)
    found = (_mark(part) for part in (before, behind))
    return tuple(dict.fromkeys(mark for mark in found if mark))


def _mark(header: str) -> str:
    """The words of a header that nobody writes by chance; "" if it has none."""
    header = header.strip(" \t")
    words = header.strip()
    if not any(sign.isalnum() for sign in words):
        return ""
    if _TAG.fullmatch(words):  # nobody writes it, wherever it stands
        return words
    is_line = header.startswith("\n")
    if any(not sign.isalnum() and not sign.isspace() for sign in words):
        return f"\n{words}" if is_line else words if len(words) >= _MIN_SIGNS else ""
    return f"\n{words}\n" if is_line and header.endswith("\n") else ""


class StopWatch:
    """Takes the text of an answer as it comes, and gives what is certain to belong to it.

    White space in front of a mark is not part of the answer. `is_continued`: the answer goes on in
    the middle of a line. `end`: where the answer ended, in characters of the text that came; None
    as long as no mark was found.
    """

    def __init__(self, marks: Sequence[str], *, is_continued: bool = False) -> None:
        self._marks = tuple(marks)
        self._pattern = re.compile("|".join(re.escape(mark) for mark in marks))
        self._held = "" if is_continued else "\n"  # an answer begins a line
        self._num_before = 0 if is_continued else -1
        self.end: int | None = None

    def push(self, text: str) -> str:
        """The text that is certain after `text`; nothing more once a mark was found."""
        if self.end is not None:
            return ""
        self._held += text
        found = self._pattern.search(self._held)
        if found is None:
            return self._release(min(self._certain_ends()))
        certain = self._release(len(self._held[: found.start()].rstrip()))
        self.end = max(0, self._num_before)
        return certain

    def finish(self) -> str:
        """What was held back, now that nothing follows."""
        return "" if self.end is not None else self._release(len(self._held))

    def _certain_ends(self) -> Iterator[int]:
        """How far the held text cannot be part of a mark, or of the space in front of one."""
        yield len(self._held.rstrip())
        for mark in self._marks:
            longest = min(len(mark) - 1, len(self._held))
            lengths = range(longest, 0, -1)
            overlap = next((n for n in lengths if self._held.endswith(mark[:n])), 0)
            yield len(self._held[: len(self._held) - overlap].rstrip())

    def _release(self, length: int) -> str:
        text, self._held = self._held[:length], self._held[length:]
        if self._num_before < 0 and text:  # the newline that stands for the beginning
            text = text[1:]
            length -= 1
            self._num_before = 0
        self._num_before = self._num_before + length if length else self._num_before
        return text
