"""What the key reports of a terminal mean: legacy sequences, and those of the kitty protocol.

Owns the form of a report: a code with its alternatives, modifiers with the kind of event, and the
text that the key gave. What cannot be read means nothing, and nothing is raised. Names of keys are
Textual's, so that `[keys]` of the settings names them everywhere.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from chatcache.terminal.layouts import latin_of

_REPORT = re.compile(r"\x1b\[([\d:]*)(?:;([\d:]*))?(?:;([\d:]*))?([u~A-HP-SZ])")
_SHORT = re.compile(r"\x1bO(?:1?;?(\d*))([A-HM-Zj-y])")
# What a terminal says of itself, and what no person types behind a pause.
_SAID = re.compile(
    r"\x1b\[(?:\?[\d;]+\$?[a-zA-Z]|[>=]\d[\d;]*[a-zA-Z]|<\d{1,7};-?\d{1,7};-?\d{1,7}[Mm]"
    r"|\d{1,7};\d{1,7}R|48;\d+[:\d]*;\d[;:\d]*t|20[01]~|[IO])"
    r"|\x1b[\]PX^_].*(?:\x07|\x1b\\)",
    re.DOTALL,
)
_NUMBER_DIGITS = 7  # more is no code of anything
_RELEASED = 3
_MODIFIERS = ((1, "shift"), (2, "alt"), (4, "ctrl"), (8, "super"), (16, "hyper"), (32, "meta"))
_ALT, _CTRL, _CAPS_LOCK = 2, 4, 64
_HELD = 0x3F  # without the locks
_SHIFT = 1
_BY_LETTER = {
    **dict(
        zip(
            "ABCDFHPQRS",
            ["up", "down", "right", "left", "end", "home", "f1", "f2", "f3", "f4"],
            strict=True,
        )
    ),
    "E": "kp_begin",
}
_BY_NUMBER = {
    **{1: "home", 2: "insert", 3: "delete", 4: "end", 5: "pageup", 6: "pagedown"},
    **{7: "home", 8: "end"},
    **{number: f"f{index}" for index, number in enumerate((11, 12, 13, 14, 15), 1)},
    **{number: f"f{index}" for index, number in enumerate((17, 18, 19, 20, 21), 6)},
    **{number: f"f{index}" for index, number in enumerate((23, 24, 25, 26, 28, 29), 11)},
    **{number: f"f{index}" for index, number in enumerate((31, 32, 33, 34), 17)},
}
_BY_CODE = {
    **{8: "backspace", 9: "tab", 13: "enter", 27: "escape", 127: "backspace"},
    57414: "enter",
    **{57376 + number: f"f{13 + number}" for number in range(23)},
    **dict(
        zip(
            range(57417, 57428),
            [
                "left",
                "right",
                "up",
                "down",
                "pageup",
                "pagedown",
                "home",
                "end",
                "insert",
                "delete",
                "kp_begin",
            ],
            strict=True,
        )
    ),
}
_KEYPAD = dict(zip(range(57399, 57417), "0123456789./*-+\r=,", strict=True))
_FUNCTIONAL = range(57344, 63744)  # keys without a character: media, modifiers, locks
_NAMED_CHARACTERS = {"backspace": "\x7f", "enter": "\r", "tab": "\t"}


@dataclass(frozen=True, slots=True)
class KeyPress:
    """`name` has its modifiers before it, as in `ctrl+c`; `character` is what it writes, if any."""

    name: str
    character: str | None = None


def is_known(sequence: str) -> bool:
    """Whether a complete sequence means something, even if that is nothing to be done."""
    return decode(sequence) is not None or _SAID.fullmatch(sequence) is not None


def decode(sequence: str) -> list[KeyPress] | None:
    """The keys that a sequence reports: [] for a key that went up or writes nothing; None for what
    is no report of a key."""
    if short := _SHORT.fullmatch(sequence):
        return _short(short[1], short[2])
    report = _REPORT.fullmatch(sequence)
    if report is None:
        return None
    codes, modifiers = _numbers(report[1]), _numbers(report[2])
    text = _numbers(report[3])
    if codes is None or modifiers is None or text is None:
        return None
    final = report[4]
    if final == "~" and codes[:1] == [27] and text:  # xterm's modifyOtherKeys
        codes, text, final = text[:1], [], "u"
    if modifiers[1:2] == [_RELEASED]:
        return []
    held = max(0, (modifiers[0] if modifiers else 1) - 1)
    if final == "u":
        return _unicode(codes, held, text)
    if not modifiers and final in "ABCD" and 1 < (codes or [1])[0] <= _HELD:
        held = codes[0] - 1
    return _functional(codes, held, final)


def is_text(character: str) -> bool:
    """Whether a character can stand in a message: everything but controls, half characters and what
    reorders a line. Characters that Python's tables do not know yet are somebody's newest emoji."""
    code = ord(character)
    return not (
        code < 0x20
        or 0x7F <= code < 0xA0
        or 0xD800 <= code < 0xE000
        or 0x202A <= code <= 0x202E
        or 0x2066 <= code <= 0x2069
        or code & 0xFFFE == 0xFFFE
    )


def _numbers(field: str | None) -> list[int] | None:
    """A field with its sub-fields; -1 stands for an empty one. None when a number is too long."""
    if not field:
        return []
    parts = field.split(":")
    if any(len(part) > _NUMBER_DIGITS for part in parts):
        return None
    return [int(part) if part else -1 for part in parts]


def _character(code: int) -> str | None:
    """The character of a code, where there is one that can be written."""
    if not 0 < code < 0x110000:
        return None
    return chr(code) if is_text(chr(code)) else None


def _short(modifier: str, letter: str) -> list[KeyPress] | None:
    """ESC O: cursor and function keys, and the keypad in its application mode."""
    if len(modifier) > _NUMBER_DIGITS:
        return None
    if letter == "M":
        return [KeyPress("enter", "\r")]
    if letter in "jklmnopqrstuvwxy":
        return [_written("*+,-./0123456789"["jklmnopqrstuvwxy".index(letter)])]
    return _functional([], max(0, int(modifier or "1") - 1), letter)


def _functional(codes: list[int], held: int, final: str) -> list[KeyPress] | None:
    """Cursor and function keys. Some terminals send the modifiers of a cursor key alone."""
    if final == "Z":
        return [KeyPress("shift+tab")]
    name = _BY_NUMBER.get(codes[0] if codes else -1) if final == "~" else _BY_LETTER.get(final)
    if final == "~" and codes[:1] == [57427]:
        name = "kp_begin"
    return [KeyPress(_with(held, name))] if name else None


def _unicode(codes: list[int], held: int, text: list[int]) -> list[KeyPress] | None:
    """The form of the kitty protocol. What has text writes it, whatever key or method it is of."""
    code = max(0, codes[0]) if codes else 0
    is_shortcut = code > 0 and bool(held & _CTRL) and not held & _ALT
    written = [found for number in text if (found := _character(number)) is not None]
    if written and not is_shortcut:
        return [_written(character) for character in written]
    if code == 0 or (code in _FUNCTIONAL and code not in _BY_CODE and code not in _KEYPAD):
        return []
    if name := _BY_CODE.get(code):
        return [KeyPress(_with(held, name), None if held & _HELD else _NAMED_CHARACTERS.get(name))]
    character = _KEYPAD.get(code) or _character(code)
    if character is None:
        return None
    if held & _HELD & ~_SHIFT:  # a shortcut: by the key's place where its character is not Latin
        base = _character(codes[2]) if len(codes) > 2 else None
        if not character.isascii():
            character = base if base and base.isascii() else latin_of(character)
        return [KeyPress(_with(held, character))]
    return [_written(_shifted(character, codes, held))]


def _shifted(character: str, codes: list[int], held: int) -> str:
    is_upper = bool(held & _SHIFT) != bool(held & _CAPS_LOCK)
    if held & _SHIFT and len(codes) > 1 and (shifted := _character(codes[1])):
        return shifted
    upper = character.upper()
    return upper if is_upper and len(upper) == 1 else character


def _written(character: str) -> KeyPress:
    return KeyPress(character, character)


def _with(held: int, name: str) -> str:
    return "+".join([*sorted(word for bit, word in _MODIFIERS if held & bit), name])
