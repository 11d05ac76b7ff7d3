"""Turns token ids into text while they are produced, whole characters only.

Owns: the window of ids that the next piece of text depends on. Works on any tokenizer that can
decode a list of ids (byte-level, byte fallback, metaspace); it does not look inside.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any

REPLACEMENT = "\ufffd"  # what a decoder writes for bytes that are not, or not yet, a character
_MAX_PARTIAL = 3  # a character has at most four bytes; a decoder may mark each missing one
_CONTEXT_IDS = 4  # decoders look back: the first space of a text, joined word pieces
_MAX_WINDOW_IDS = 32
_MAX_REPLAYED_IDS = 4096

Decode = Callable[[list[int]], str]


def plain_decode(tokenizer: Any) -> Decode:
    """`tokenizer.decode` that shows every token and cleans nothing up."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        return lambda ids: str(backend.decode(ids, skip_special_tokens=False))
    return lambda ids: str(
        tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
    )


def special_ids(tokenizer: Any) -> frozenset[int]:
    """The ids of all special tokens, also of those that no attribute of the tokenizer names."""
    added = tokenizer.added_tokens_decoder.items()
    return frozenset(tokenizer.all_special_ids) | {id_ for id_, token in added if token.special}


class CharacterStream:
    """Pushes ids, pulls whole characters. Each push decodes a bounded window, never everything.

    `context` are ids that came before and were shown already: a text that is continued keeps its
    first space, and a character that was cut between two runs is completed.
    """

    def __init__(self, decode: Decode, context: Sequence[int] = ()) -> None:
        self._decode = decode
        self._window: list[int] = []
        self._num_shown = 0
        self._num_pending = 0
        self.is_clean = True  # False while bytes of an unfinished character are held back
        self._clean_at = [0]
        for token_id in context:
            self.push(token_id)

    def push(self, token_id: int) -> str:
        """The characters that `token_id` completes; "" while a character is unfinished."""
        self._window.append(token_id)
        text = self._decode(self._window)
        stable = _stable_length(text)
        self.is_clean = stable == len(text)
        if self.is_clean:
            self._clean_at.append(len(self._window))
            self._num_pending = 0
        else:
            self._num_pending += 1
            if self._num_pending <= _MAX_PARTIAL:
                # byte fallback garbles the whole run of bytes until its last character is complete
                return ""
        piece = text[self._num_shown : stable]
        self._num_shown = max(self._num_shown, stable)
        self._shorten()
        return piece

    def finish(self, replacement_ids: Sequence[int]) -> str:
        """A replacement character that was held back, if it is what the ids really spell."""
        num_ids = len(replacement_ids)
        if self.is_clean or not num_ids or self._window[-num_ids:] != list(replacement_ids):
            return ""
        return self._decode(self._window)[self._num_shown :]

    def _shorten(self) -> None:
        """Forget ids in front of a boundary between characters, but for a little context."""
        length = len(self._window)
        if length <= 2 * _CONTEXT_IDS or not (self.is_clean or length > _MAX_WINDOW_IDS):
            return
        boundaries = [at for at in self._clean_at if at <= length - _CONTEXT_IDS]
        if not boundaries and length <= _MAX_WINDOW_IDS:
            return
        cut = boundaries[-1] if boundaries else length - _CONTEXT_IDS
        del self._window[:cut]
        self._clean_at = [at - cut for at in self._clean_at if at > cut]
        self._num_shown = _stable_length(self._decode(self._window))


class Detokenizer:
    """The text of an answer, id by id. Special tokens and `ends` are not shown, except those in
    `shown`.

    `context` are the last ids of an answer that is continued.
    """

    def __init__(
        self,
        tokenizer: Any,
        *,
        shown: Collection[str] = (),
        context: Sequence[int] = (),
        ends: Collection[int] = (),
    ) -> None:
        added = tokenizer.added_tokens_decoder
        visible = {id_ for id_, token in added.items() if token.content in shown}
        self._hidden = special_ids(tokenizer).union(ends) - visible
        self._stream = CharacterStream(plain_decode(tokenizer), self._tail(context))
        self._replacement_ids = _encode_inside(tokenizer, REPLACEMENT)

    def push(self, token_id: int) -> str:
        """The text that `token_id` adds; "" for a hidden token or an unfinished character."""
        return "" if token_id in self._hidden else self._stream.push(token_id)

    def finish(self) -> str:
        """The end of the text. Bytes of a character that was never finished are not text."""
        return self._stream.finish(self._replacement_ids)

    def _tail(self, context: Sequence[int]) -> list[int]:
        """The ids behind the last hidden token: what a decoder may look back to."""
        tail: list[int] = []
        for token_id in reversed(context[-_MAX_REPLAYED_IDS:]):
            if token_id in self._hidden:
                break
            tail.append(token_id)
        return tail[::-1]


def _stable_length(text: str) -> int:
    """How much of `text` no further id can change: all but a last character in the making."""
    stable = len(text)
    while stable and len(text) - stable < _MAX_PARTIAL and text[stable - 1] == REPLACEMENT:
        stable -= 1
    return stable


def _encode_inside(tokenizer: Any, text: str) -> list[int]:
    """The ids of `text` as it stands inside a text, without the space that may open one."""
    newline = tokenizer.encode("\n", add_special_tokens=False)
    ids = tokenizer.encode("\n" + text, add_special_tokens=False)
    return list(ids[len(newline) :]) if ids[: len(newline)] == newline else []
