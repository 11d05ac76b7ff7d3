"""The modes of a terminal, and what a program that was killed may have left of them."""

from __future__ import annotations

import contextlib
import termios
from typing import Any


def usable(attributes: list[Any]) -> list[Any]:
    """The attributes as they were before a program that could not give them back: with lines, an
    echo and signals. Attributes that nobody has left behind stay as they are."""
    wanted = termios.ICANON | termios.ECHO
    if attributes[3] & wanted:
        return attributes
    found = [*attributes[:6], list(attributes[6])]
    found[0] |= termios.ICRNL | termios.IXON
    found[1] |= termios.OPOST
    found[3] |= wanted | termios.ISIG | termios.IEXTEN
    return found


def make_usable(fileno: int) -> None:
    """Put right what a killed program has left of a terminal."""
    with contextlib.suppress(termios.error):
        termios.tcsetattr(fileno, termios.TCSANOW, usable(termios.tcgetattr(fileno)))
