"""What a message is on the wire: msgpack, typed, without code.

A frame is `[name of the message, its fields]`; the names are those of the dataclasses that a codec
is made for, and each has the fields of its dataclass. Decoding checks every type and makes nothing
but these classes, so bytes from elsewhere cannot do more than be refused. Fields that are not known
are left out, and fields that are missing have their default.

Besides what msgpack has: token ids are bytes (little-endian, 32 bits each), a path is its bytes, an
error is `[name, message, hint, num_tokens, limit]`.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import msgspec

from chatcache import errors
from chatcache.errors import ChatcacheError, ContextFullError, UnavailableError
from chatcache.token_ids import TokenIds

_ENVELOPE = msgspec.msgpack.Decoder(tuple[str, msgspec.Raw])


class ProtocolError(Exception):
    """What came is no message."""


class Codec:
    """Encodes and decodes the messages of the classes `kinds`. Thread-safe."""

    def __init__(self, kinds: Iterable[type]) -> None:
        self._kinds = {kind.__name__: kind for kind in kinds}
        self._decoders: dict[str, msgspec.msgpack.Decoder[Any]] = {}  # made when first needed

    def encode(self, message: object) -> bytes:
        """Raises TypeError for a message of another kind."""
        name = type(message).__name__
        if self._kinds.get(name) is not type(message):
            raise TypeError(f"{name} is not a message")
        try:
            return msgspec.msgpack.encode((name, message), enc_hook=_encoded)
        except UnicodeEncodeError:
            # Half a character, from a file name or a broken text. It has no place in UTF-8.
            plain = msgspec.to_builtins(message, builtin_types=(bytes,), enc_hook=_encoded)
            return msgspec.msgpack.encode((name, _storable(plain)))

    def decode(self, frame: bytes) -> Any:
        """Raises ProtocolError."""
        try:
            name, fields = _ENVELOPE.decode(frame)
            return self._decoder(name).decode(fields)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise ProtocolError(f"what came is no message: {error}") from error

    def _decoder(self, name: str) -> msgspec.msgpack.Decoder[Any]:
        decoder = self._decoders.get(name)
        if decoder is None:
            if name not in self._kinds:
                raise ProtocolError(f"there is no message {name!r}")
            decoder = msgspec.msgpack.Decoder(self._kinds[name], dec_hook=_decoded)
            self._decoders[name] = decoder
        return decoder


def portable(error: Exception) -> ChatcacheError:
    """`error`, or for one that means nothing to another process, its text."""
    if isinstance(error, ChatcacheError):
        return error
    return UnavailableError(f"The engine failed: {type(error).__name__}: {error}")


def _encoded(value: Any) -> object:
    if isinstance(value, TokenIds):
        return value.packed
    if isinstance(value, Path):
        return os.fsencode(value)
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, Exception):
        shown = portable(value)
        numbers = (shown.num_tokens, shown.limit) if isinstance(shown, ContextFullError) else (0, 0)
        return [type(shown).__name__, shown.message, shown.hint, *numbers]
    raise NotImplementedError(f"{type(value).__name__} does not cross the socket")


def _decoded(kind: type, value: Any) -> object:
    if kind is TokenIds:
        return TokenIds.from_bytes(_checked(value, bytes))
    if kind is Path:
        return Path(os.fsdecode(_checked(value, bytes)))
    if kind is Exception:
        name, message, hint, num_tokens, limit = _error_parts(value)
        error_kind = getattr(errors, name, None)
        if not (isinstance(error_kind, type) and issubclass(error_kind, ChatcacheError)):
            error_kind = UnavailableError
        if issubclass(error_kind, ContextFullError):
            return error_kind(message, hint, num_tokens, limit)
        return error_kind(message, hint)
    raise NotImplementedError(f"{kind} does not cross the socket")


def _error_parts(value: Any) -> tuple[str, str, str, int, int]:
    kinds = (str, str, str, int, int)
    parts = _checked(value, list)
    if len(parts) != len(kinds):
        raise ValueError(f"an error has {len(kinds)} parts, not {len(parts)}")
    name, message, hint, num_tokens, limit = map(_checked, parts, kinds)
    return name, message, hint, num_tokens, limit


def _checked(value: Any, kind: type) -> Any:
    if not isinstance(value, kind):
        raise ValueError(f"must be {kind.__name__}, not {type(value).__name__}")
    return value


def _storable(value: Any) -> Any:
    """The same with every text as UTF-8 can have it."""
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode()
    if isinstance(value, dict):
        return {_storable(key): _storable(content) for key, content in value.items()}
    if isinstance(value, (list, tuple)):
        return [_storable(content) for content in value]
    return value
