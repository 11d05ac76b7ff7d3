"""A token as it can be seen: white space and what has no shape of its own are drawn.

Owns how the text of one token is written in a line of cells. What is given back holds nothing that
a terminal would act upon, join with its neighbour or draw in no cells.
"""

from __future__ import annotations

import re
import unicodedata
from functools import lru_cache

from chatcache import formatting as fmt
from chatcache.backends.questions import TokenPiece

SEPARATOR = "│"
_BYTE = re.compile(rb"<([0-9A-F]{2})>")
SIGNS = {" ": "·", "\n": "↵", "\t": "→"}
_MARKS = ("Mn", "Me")
_BASE = "◌"  # carries a mark whose letter is in the token before
# Joined with what is before them: the second halves of Hangul syllables, the skin of an emoji, and
# what chooses between two shapes of a sign.
_JOINING = ((0x1160, 0x11FF), (0xD7B0, 0xD7FF), (0x1F3FB, 0x1F3FF), (0xFE00, 0xFE0F))


@lru_cache(maxsize=8192)
def shown(text: str) -> str:
    """The text of a token, with a sign or its bytes for each character that has no shape."""
    if text.isascii() and text.isprintable() and " " not in text:
        return text
    drawn = ""
    for character in text:
        if unicodedata.category(character) in _MARKS and not _is_joining(character):
            drawn += character if drawn and drawn[-1] not in ">" else _BASE + character
        else:
            drawn += SIGNS.get(character) or _plain(character)
    return drawn


def shown_piece(piece: TokenPiece) -> str:
    """A token; a control token says so, for its text could be anybody's."""
    return f"X:{shown(piece.text)}" if piece.is_control else shown(piece.text)


def part_bytes(piece: TokenPiece | None) -> bytes:
    """The bytes that a token stands for, also where they are a part of a character."""
    if piece is None:
        return b""
    raw = piece.text.encode("utf-8", "surrogatepass")
    if not piece.is_part:
        return raw
    return _BYTE.sub(lambda found: bytes([int(found[1], 16)]), raw)


def pieces_of_width(text: str, cells: int) -> list[str]:
    """A text cut into pieces of at most so many cells, and of one character at least."""
    pieces = []
    while (piece := fmt.fitting(text, cells) or text[:1]) != text:
        pieces.append(piece)
        text = text[len(piece) :]
    return [*pieces, text]


def cut_to(text: str, cells: int) -> str:
    """A drawn token in at most so many cells, with an ellipsis where it was cut."""
    if fmt.width(text) <= cells:
        return text
    return pieces_of_width(text, max(1, cells - 1))[0] + "…"


def _plain(character: str) -> str:
    is_space = character.isspace()
    has_shape = character.isprintable() and not is_space and not _is_joining(character)
    if has_shape and character != SEPARATOR and unicodedata.category(character) != "Co":
        return character
    return "".join(f"<{byte:02X}>" for byte in character.encode("utf-8", "surrogatepass"))


def _is_joining(character: str) -> bool:
    return any(first <= ord(character) <= last for first, last in _JOINING)
