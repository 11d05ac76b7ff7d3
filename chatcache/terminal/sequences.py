"""Cuts what a terminal sends into what was typed, what was pasted, and escape sequences.

Owns where one thing ends and the next begins, also where a read cuts one in two. What a sequence
means is the business of `keys` and of the front ends. Nothing that comes in raises anything.

A sequence that was begun and not ended is dropped after a while, and what came behind a pause in it
is read as if it stood alone: it may have been typed.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from chatcache.terminal.keys import is_known

ESC = "\x1b"
PASTE_START, PASTE_END = "\x1b[200~", "\x1b[201~"
# So much later an ESC that came alone was the key. The rest of a longer piece is waited for longer.
ESCAPE_SECONDS = 0.1
REST_SECONDS = 1.0
# A paste whose end does not come is given out, so that a lost mark cannot swallow the keyboard.
PASTE_SECONDS = 2.0
_MAX_SEQUENCE = 8192
# Words of a terminal that have their own end: replies, not ESC before a letter that was typed.
_STRING = r"(?:\][0-9]|P[0-9;]*[!$+>|=?]|_G)[ -~]*"
_COMPLETE = re.compile(
    r"\x1b(?:\[M[ -\xff\ufffd]{3}"  # a mouse report of the oldest kind
    r"|\[\[[A-E]"  # function keys of the Linux console
    r"|\[(?!M)[0-?]*[ -/]*[@-Z\\-~]"
    r"|O[0-9;]*[A-Za-z]"
    rf"|{_STRING}(?:\x07|\x1b\\))"
)
_BEGUN = re.compile(
    r"\x1b(?:\[(?:M[ -\xff\ufffd]{0,2}|\[|[0-?]*[ -/]*)"
    rf"|O[0-9;]*|\]|P[0-9;]*|_|{_STRING}\x1b?)?\Z"
)
# Nobody types the end of these: words of a terminal, and reports of the mouse.
_UNTYPED = re.compile(r"\x1b(?:[\]P_]|\[<[\d;]*[Mm]\Z)")
# What of a sequence goes with it when a character that cannot be in one follows.
_BROKEN = re.compile(rf"\x1b(?:\[(?:[M\[]|[0-?]*[ -/]*)|{_STRING})")
_EIGHT_BIT = str.maketrans({"\x9b": "\x1b[", "\x8f": "\x1bO"})
_PLAIN = re.compile(r"[^\x1b]+")
_CONTROL = re.compile(r"([\x00-\x08\x0b\x0c\x0e-\x1a\x1c-\x1f\x7f])")
# More than this behind a line end in one read is more than fingers type ahead.
_TYPED_AHEAD = 8
# So soon after a burst of lines, a line in one piece belongs to it.
_SAME_BURST_SECONDS = 0.1


@dataclass(frozen=True, slots=True)
class Typed:
    """Characters, each as good as a key; a control character stands alone."""

    text: str


@dataclass(frozen=True, slots=True)
class Pasted:
    """Text that came as a whole, in brackets or in one burst of lines."""

    text: str


@dataclass(frozen=True, slots=True)
class Sequence:
    """ESC alone, ESC and a character, or a complete escape sequence."""

    text: str


Token = Typed | Pasted | Sequence


class Sequences:
    """Feed it text with the time it came, and tick it while nothing comes. Times are in seconds of
    any one clock."""

    def __init__(self) -> None:
        self._head = ""
        self._late = ""  # what of the head came behind a pause
        self._paste: list[str] | None = None
        self._is_paste_cut = False
        self._at = 0.0
        self._escaped_at = self._burst_at = -REST_SECONDS

    @property
    def is_waiting(self) -> bool:
        """Whether a tick may bring something."""
        return bool(self._head) or self._paste is not None

    def feed(self, text: str, now: float) -> list[Token]:
        """Everything that is complete with this. `text` is never empty."""
        # ESC and a letter that begins a string came alone: rather that letter with Alt.
        is_late = now - self._at >= ESCAPE_SECONDS or self._head[1:] in ("O", "]", "P", "_")
        self._at = now
        if self._paste is not None:
            return self._feed_paste(text)
        text = text.translate(_EIGHT_BIT)
        if not self._head:
            rest = self._after_pause(text, now)
            return self._scan(text) if rest is None else rest
        if is_late:
            return self._resume(text)
        head, self._head = self._head, ""
        return self._scan(head + text)

    def tick(self, now: float) -> list[Token]:
        """What is certain because nothing more came."""
        waited = now - self._at
        if self._paste is not None and waited >= PASTE_SECONDS:
            text, self._paste, self._is_paste_cut = "".join(self._paste), None, True
            return [Pasted(text)] if text else []
        if self._head == ESC and waited >= ESCAPE_SECONDS:
            self._head, self._escaped_at = "", now
            return [Sequence(ESC)]
        if self._head and waited >= REST_SECONDS:
            return self._give_up()
        return []

    def _give_up(self) -> list[Token]:
        """The rest did not come. ESC and one character was that character with Alt."""
        head, late, self._head, self._late = self._head, self._late, "", ""
        if late:
            return self._scan(late)
        return [Sequence(head)] if len(head) == 2 else []

    def _after_pause(self, text: str, now: float) -> list[Token] | None:
        """The rest of a sequence whose ESC was taken for the key, when it cannot be typed text."""
        if now - self._escaped_at >= REST_SECONDS or text[0] not in "[O":
            return None
        self._escaped_at = -REST_SECONDS
        return self._scan(ESC + text) if self._continues(ESC, text) else None

    def _resume(self, text: str) -> list[Token]:
        """More, behind a pause: the rest of the head if the two make something known."""
        head = self._head
        if self._continues(head, text):
            self._head = self._late = ""
            return self._scan(head + text)
        if _BEGUN.fullmatch(head + text) and len(head) + len(text) < _MAX_SEQUENCE:
            self._head, self._late = head + text, self._late + text
            return []
        late, self._head, self._late = self._late, "", ""
        alone: list[Token] = [Sequence(head)] if len(head) <= 2 else []
        return [*alone, *self._scan(late + text)]

    @staticmethod
    def _continues(head: str, text: str) -> bool:
        match = _COMPLETE.match(head + text)
        if match is None or match.end() <= len(head):
            return False
        rest = (head + text)[match.end() :]
        if match[0] == PASTE_START or _UNTYPED.match(match[0]):
            return True
        return is_known(match[0]) and rest[:1] in ("", ESC)

    # Cutting

    def _scan(self, text: str) -> list[Token]:
        tokens: list[Token] = []
        at = 0
        while at < len(text):
            if plain := _PLAIN.match(text, at):
                at = plain.end()
                tokens += self._plain(plain[0], text, at)
            elif whole := _COMPLETE.match(text, at):
                at = whole.end()
                if whole[0] == PASTE_START:
                    self._paste = []
                    return tokens + self._feed_paste(text[at:])
                if whole[0] != PASTE_END and whole[0][1] not in "]P_":
                    tokens.append(Sequence(whole[0]))
            elif _BEGUN.fullmatch(text, at) and len(text) - at < _MAX_SEQUENCE:
                self._head, self._late = text[at:], ""
                break
            else:
                at = self._broken(text, at, tokens)
        return tokens

    def _plain(self, run: str, text: str, end: int) -> list[Token]:
        """Text between two sequences. Before the mark of a paste's end it is the rest of one."""
        if self._is_paste_cut and text.startswith(PASTE_END, end):
            self._is_paste_cut = False
            return [Pasted(run)]
        tokens: list[Token] = []
        for piece in _CONTROL.split(run):
            if piece:
                tokens.append(Pasted(piece) if self._is_pasted(piece) else Typed(piece))
        return tokens

    def _is_pasted(self, text: str) -> bool:
        has_come_soon = self._at - self._burst_at < _SAME_BURST_SECONDS
        if is_burst(text) or (has_come_soon and len(text) > 1 and "\r" in text):
            self._burst_at = self._at
            return True
        return False

    @staticmethod
    def _broken(text: str, at: int, tokens: list[Token]) -> int:
        """Something that cannot be a sequence: ESC before a character is Alt, before an ESC
        is the key; of a sequence with a foreign character in it, what is before that is dropped."""
        after = text[at + 1]
        if after == ESC:
            tokens.append(Sequence(ESC))
            return at + 1
        if broken := _BROKEN.match(text, at):
            return broken.end()
        tokens.append(Sequence(text[at : at + 2]))
        return at + 2

    def _feed_paste(self, text: str) -> list[Token]:
        """Inside a paste everything is text but the mark at its end, which may come in two."""
        pieces = self._paste
        if pieces is None:
            return []
        kept = pieces.pop() if pieces else ""
        text, mark, rest = (kept + text).partition(PASTE_END)
        if not mark:
            cut = max(0, len(text) - len(PASTE_END) + 1)
            pieces += [text[:cut], text[cut:]]
            return []
        self._paste, self._is_paste_cut = None, False
        return [Pasted("".join([*pieces, text])), *self._scan(rest)]


def is_burst(text: str) -> bool:
    """Whether text that came at once, with line ends in it, was pasted: several lines, or one line
    end and then more than somebody types ahead. A terminal ends pasted lines as Enter does; what
    Ctrl+J sends is a new line anyway."""
    inner = text.rstrip("\r\n")
    inside = inner.split("\r")
    is_tabbed = len(inner.partition("\t")[2]) > _TYPED_AHEAD
    return is_tabbed or (
        len(inside) > 1 and (text.count("\r") > 1 or len(inside[1]) > _TYPED_AHEAD)
    )
