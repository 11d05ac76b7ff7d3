"""What each token of a vocabulary says by itself, for tokenizers of all kinds.

Owns the text of one token: as it stands behind another one, a part of a character as its bytes.
Knows nothing of prompts.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from chatcache.backends.local.prompt.detokenize import REPLACEMENT
from chatcache.backends.local.prompt.symbols import SymbolCodec
from chatcache.backends.local.prompt.template import free_marker
from chatcache.backends.questions import TokenPiece, TokenPieces
from chatcache.token_ids import TokenIds

_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")
# How byte-level vocabularies are spelled: printable bytes of Latin-1 as they are, the others by the
# characters from 256 on (GPT-2, Radford et al. 2019).
_PRINTABLE = (*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100))
_OTHERS = [byte for byte in range(0x100) if byte not in _PRINTABLE]
_BYTE_OF = {
    **{chr(byte): byte for byte in _PRINTABLE},
    **{chr(0x100 + number): byte for number, byte in enumerate(_OTHERS)},
}
_ESCAPED = range(0xDC80, 0xDD00)  # what Python makes of bytes that are no UTF-8


class Vocabulary:
    """The tokens of one tokenizer. `codec` tells its control tokens; `name` is for people."""

    def __init__(self, tokenizer: Any, codec: SymbolCodec, name: str) -> None:
        self.name = name
        self._codec = codec
        self._spelling: Callable[[int], str | None] = tokenizer.convert_ids_to_tokens
        self._num_ids = len(tokenizer)
        self._before = tokenizer.encode("x", add_special_tokens=False)
        self._text_before = codec.decode(self._before)
        self._known: dict[int, TokenPiece] = {}

    def pieces(self, ids: TokenIds) -> TokenPieces:
        """Each distinct one of `ids` once, in the order of first appearance."""
        return TokenPieces(tuple(map(self.piece, dict.fromkeys(ids))), ids, self.name)

    def tokenize(self, text: str) -> TokenPieces:
        """A text that somebody wrote: control tokens in it are text."""
        marker = free_marker([text])
        return self.pieces(TokenIds(self._codec.encode(self._codec.mark(text, marker), marker)))

    def piece(self, token_id: int) -> TokenPiece:
        if token_id not in self._known:
            self._known[token_id] = self._made(token_id)
        return self._known[token_id]

    def _made(self, token_id: int) -> TokenPiece:
        control = self._codec.control_ids.get(token_id)
        if control is not None:
            return TokenPiece(token_id, control, is_control=True)
        spelling = self._spelling(token_id) if token_id < self._num_ids else None
        if spelling is None:
            return TokenPiece(token_id, f"<id {token_id}>", is_control=True)
        text = self._inside(token_id)
        if REPLACEMENT not in text:
            return TokenPiece(token_id, text)
        raw = _bytes_of(spelling)
        if raw is None:
            return TokenPiece(token_id, text, is_part=True)
        spelled = _spelled(raw)
        return TokenPiece(token_id, spelled, is_part=REPLACEMENT not in spelled)

    def _inside(self, token_id: int) -> str:
        """Its text behind another token: many decoders drop the space that begins a text."""
        text = self._codec.decode([*self._before, token_id])
        if text.startswith(self._text_before):
            return text[len(self._text_before) :]
        return self._codec.decode([token_id])


def _bytes_of(spelling: str) -> bytes | None:
    """The bytes that a token stands for, by its spelling in the vocabulary; None: it is written in
    no way that is known. Tokenizers that work on bytes have a character for each of them; others
    have a token for each byte that they cannot write otherwise."""
    if found := _BYTE_TOKEN.fullmatch(spelling):
        return bytes([int(found.group(1), 16)])
    if all(character in _BYTE_OF for character in spelling):
        return bytes(_BYTE_OF[character] for character in spelling)
    return None


def _spelled(raw: bytes) -> str:
    """The characters in `raw`, and what is no character as `<E2><82>`."""
    return "".join(
        f"<{ord(character) - _ESCAPED.start + 0x80:02X}>"
        if ord(character) in _ESCAPED
        else character
        for character in raw.decode("utf-8", "surrogateescape")
    )
