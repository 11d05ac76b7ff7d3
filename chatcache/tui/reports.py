"""What the terminal sends as messages of Textual: keys, pastes, the mouse, and what it says of
itself. What means nothing becomes nothing; it is never typed."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Iterator

from textual import constants
from textual._ansi_sequences import ANSI_SEQUENCES_KEYS
from textual._xterm_parser import IS_ITERM, XTermParser
from textual.events import AppBlur, AppFocus, CursorPosition, Key, Paste, Resize
from textual.keys import _character_to_key
from textual.message import Message
from textual.messages import InBandWindowResize, TerminalSupportsSynchronizedOutput

from chatcache.terminal.keys import KeyPress, decode, is_text
from chatcache.terminal.sequences import ESC, Pasted, Sequence, Token, Typed

_MOUSE = re.compile(r"\x1b\[<\d{1,5};-?\d{1,5};-?\d{1,5}[Mm]")
_MODE = re.compile(r"\x1b\[\?(\d{1,5});(\d)\$y")
_CURSOR = re.compile(r"\x1b\[(\d{1,5});(\d{1,5})R")
_SIZE = re.compile(r"\x1b\[48;" + ";".join([r"(\d{1,5})(?::\d*)*"] * 4) + "t")
_MAX_ROWS, _MAX_COLUMNS = 1_000, 2_000  # a size beyond is no terminal's
# One run of more characters is taken as a whole: as keys it would be slow.
_MANY_CHARACTERS = 256


class WrittenKey(Key):
    """A key that writes, also what Python takes for unprintable: a joiner, the wide space."""

    @property
    def is_printable(self) -> bool:
        return self.character is not None and is_text(self.character)


WrittenKey.handler_name = Key.handler_name  # widgets need not know it


class Reports:
    """Turns tokens into messages. Owns the state of the mouse, as Textual keeps it."""

    def __init__(self) -> None:
        self._textual = XTermParser()

    def read(self, tokens: Iterable[Token]) -> Iterator[Message]:
        """What cannot be read must not end the reading: it is logged, and gone."""
        for token in tokens:
            try:
                yield from list(self.messages(token))
            except Exception:
                logging.getLogger(__name__).exception("not read: %r", token)

    def messages(self, token: Token) -> Iterator[Message]:
        if isinstance(token, Pasted):
            yield Paste(token.text.replace("\x00", ""))
        elif isinstance(token, Typed):
            if len(token.text) > _MANY_CHARACTERS and token.text.isprintable():
                yield Paste(token.text)
            else:
                yield from (_key(character) for character in token.text)
        else:
            yield from self._sequence(token)

    def _sequence(self, token: Sequence) -> Iterator[Message]:
        sequence = token.text
        if sequence == ESC:
            yield Key("escape", ESC)
        elif _CURSOR.fullmatch(sequence) and not sequence.startswith("\x1b[1;"):
            row, column = (int(number) for number in sequence[2:-1].split(";"))
            yield CursorPosition(column - 1, row - 1)
        elif (presses := decode(sequence)) is not None:
            yield from (_pressed(press) for press in presses)
        elif isinstance(keys := ANSI_SEQUENCES_KEYS.get(sequence), tuple):
            yield from (Key(key.value, None) for key in keys)
        elif len(sequence) == 2:
            yield _with_alt(sequence[1])
        else:
            yield from self._said(sequence)

    def _said(self, sequence: str) -> Iterator[Message]:
        """The mouse, the focus, the size, and which modes there are."""
        if sequence in ("\x1b[I", "\x1b[O"):
            yield AppFocus() if sequence[-1] == "I" else AppBlur()
        elif _MOUSE.fullmatch(sequence):
            if (event := self._textual.parse_mouse_code(sequence)) is not None:
                yield event
        elif mode := _MODE.fullmatch(sequence):
            setting = int(mode[2])
            if mode[1] == "2026" and setting > 0:
                yield TerminalSupportsSynchronizedOutput()
            elif mode[1] == "2048" and constants.SMOOTH_SCROLL and not IS_ITERM:
                yield InBandWindowResize.from_setting_parameter(setting)
        elif size := _SIZE.fullmatch(sequence):
            yield from self._resized(*(int(number) for number in size.groups()))

    def _resized(self, rows: int, columns: int, height: int, width: int) -> Iterator[Message]:
        if not (0 < rows <= _MAX_ROWS and 0 < columns <= _MAX_COLUMNS):
            return
        event = Resize.from_dimensions((columns, rows), (width, height))
        if width >= columns and height >= rows:  # else the mouse would be divided by nothing
            self._textual.terminal_size = event.size
            self._textual.terminal_pixel_size = event.pixel_size
            self._textual.mouse_pixels = True
        yield event


def _key(character: str) -> Key:
    """One character, as it is typed."""
    keys = ANSI_SEQUENCES_KEYS.get(character)
    if isinstance(keys, tuple):
        return Key(keys[0].value, character)
    return WrittenKey(_character_to_key(character), character)


def _with_alt(character: str) -> Key:
    key = _key(character)
    name = key.key
    if len(name) == 1 and name.isupper():
        name = f"shift+{name.lower()}"
    return WrittenKey(f"alt+{name}", character)


def _pressed(press: KeyPress) -> Key:
    modifiers, plus, last = press.name.rpartition("+")
    if not last:  # the plus itself
        modifiers, plus, last = press.name[:-2], press.name[-2:-1], "+"
    name = f"{modifiers}{plus}{_character_to_key(last) if len(last) == 1 else last}"
    return WrittenKey(name, press.character) if press.character else Key(name, None)
