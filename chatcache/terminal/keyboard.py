"""Reads a terminal: bytes to tokens, with the pauses that tell a key from a sequence and a paste
from typing. Knows nothing of what becomes of them."""

from __future__ import annotations

import os
import selectors
import time
from codecs import getincrementaldecoder

from chatcache.terminal.sequences import ESC, ESCAPE_SECONDS, Sequences, Token

_READ_BYTES = 64 * 1024
# Pieces of one paste come closer than this, and keys do not.
_BURST_SECONDS = 0.02
_MAX_BURST = 4 * 1024 * 1024


class Keyboard:
    """What is typed on a terminal. It should be in raw mode; bytes that are no UTF-8 are replaced,
    not fatal."""

    def __init__(self, fileno: int) -> None:
        self._fileno = fileno
        self._decode = getincrementaldecoder("utf-8")("replace").decode
        self._sequences = Sequences()
        self._selector = selectors.SelectSelector()
        self._selector.register(fileno, selectors.EVENT_READ)

    def read(self, timeout: float) -> list[Token] | None:
        """What came within `timeout` seconds; None when the terminal is gone."""
        if self._sequences.is_waiting:
            timeout = min(timeout, ESCAPE_SECONDS)
        tokens: list[Token] = []
        if self._selector.select(timeout):
            if not (data := self._read()):
                return None
            if text := self._whole(self._decode(data)):  # not half a character
                tokens = self._sequences.feed(text, time.monotonic())
        return tokens + self._sequences.tick(time.monotonic())

    def close(self) -> None:
        self._selector.close()

    def _whole(self, text: str) -> str:
        """A text with what follows it at once: more than one character is no key."""
        while 1 < len(text) < _MAX_BURST and text[0] != ESC:
            if not self._selector.select(_BURST_SECONDS) or not (data := self._read()):
                break
            text += self._decode(data)
        return text

    def _read(self) -> bytes:
        try:
            return os.read(self._fileno, _READ_BYTES)
        except OSError:
            return b""
