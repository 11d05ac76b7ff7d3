"""Reads the values of a GGUF header, one behind the other, from a file that nobody vouches for.

Owns the bounds: nothing is read or kept that the file does not have, and no count in it is believed
before the bytes behind it were seen. What the values mean is told in `header`.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import BinaryIO

MAX_HEADER_BYTES = 64 << 20  # the largest vocabularies take a third of it
MAX_STRING_BYTES = 16 << 20
MAX_STRINGS = 1 << 22  # in one array; the largest vocabularies have a tenth of it
_FIRST_READ_BYTES = 1 << 16

STRING, ARRAY = 8, 9
_BOOL = 7
# Types of values by number: how `struct` reads them.
_SCALARS = {
    0: "B",
    1: "b",
    2: "H",
    3: "h",
    4: "I",
    5: "i",
    6: "f",
    _BOOL: "?",
    10: "Q",
    11: "q",
    12: "d",
}
_READERS = {number: struct.Struct(f"<{letter}") for number, letter in _SCALARS.items()}
_LENGTH = struct.Struct("<Q")


class BrokenHeaderError(Exception):
    """What is wrong with a header, as the end of a sentence that begins with the file."""


@dataclass(frozen=True, slots=True)
class GgufArray:
    """An array of a header. Its elements are made when they are asked for: a vocabulary has
    hundreds of thousands of strings, which most readers do not want."""

    element_type: int
    count: int
    _header: bytearray = field(repr=False)
    _start: int = field(repr=False)

    def __len__(self) -> int:
        return self.count

    @property
    def has_text(self) -> bool:
        return self.element_type == STRING

    def strings(self) -> Iterator[str]:
        """The elements of an array of text; bytes that are no text become U+FFFD."""
        data, position = self._header, self._start
        for _ in range(self.count if self.has_text else 0):
            (length,) = _LENGTH.unpack_from(data, position)
            position += 8
            yield data[position : position + length].decode(errors="replace")
            position += length

    def numbers(self) -> tuple[float, ...]:
        """The elements of an array of numbers: int, float or bool."""
        if self.has_text:
            return ()
        letter = _SCALARS[self.element_type]
        return struct.unpack_from(f"<{self.count}{letter}", self._header, self._start)


Value = str | int | float | bool | GgufArray


class Cursor:
    """A place in the header, which is read as far as it is needed."""

    def __init__(self, file: BinaryIO, num_file_bytes: int) -> None:
        self._file = file
        self._num_file_bytes = num_file_bytes
        self._data = bytearray()
        self.position = 0

    def advance(self, num_bytes: int) -> int:
        """Step over bytes that are there; the position before them."""
        start, self.position = self.position, self.position + num_bytes
        if self.position > len(self._data):
            self._read_to(self.position)
        return start

    def _read_to(self, stop: int) -> None:
        if stop > self._num_file_bytes:
            raise BrokenHeaderError("ends in the middle of its header")
        if stop > MAX_HEADER_BYTES:
            raise BrokenHeaderError(f"has a header of more than {MAX_HEADER_BYTES >> 20} MiB")
        wanted = max(stop - len(self._data), len(self._data), _FIRST_READ_BYTES)
        self._data += self._file.read(wanted)
        if len(self._data) < stop:
            raise BrokenHeaderError("became shorter while it was read")

    def raw(self, num_bytes: int) -> bytes:
        start = self.advance(num_bytes)
        return bytes(self._data[start : self.position])

    def uint32(self) -> int:
        return self._integer(4)

    def uint64(self) -> int:
        return self._integer(8)

    def _integer(self, num_bytes: int) -> int:
        return int.from_bytes(self.raw(num_bytes), "little")

    def name(self, what: str, max_bytes: int) -> str:
        """A name that must be text. Raises BrokenHeaderError."""
        length = self.uint64()
        if not 0 < length <= max_bytes:
            raise BrokenHeaderError(f"has {what} of {length:,} bytes")
        try:
            return self.raw(length).decode()
        except UnicodeDecodeError as error:
            raise BrokenHeaderError(f"has {what} that is no text") from error

    def value(self) -> Value:
        """A value with its type before it. Raises BrokenHeaderError."""
        kind = self.uint32()
        if kind == STRING:
            return self._string()
        if kind == ARRAY:
            return self._array()
        if kind not in _READERS:
            raise BrokenHeaderError(f"has a value of the unknown type {kind}")
        reader = _READERS[kind]
        value: int | float | bool = reader.unpack(self.raw(reader.size))[0]
        return value

    def _string(self) -> str:
        length = self.uint64()
        if length > MAX_STRING_BYTES:
            raise BrokenHeaderError(f"has a text of {length:,} bytes in its header")
        return self.raw(length).decode(errors="replace")

    def _array(self) -> GgufArray:
        kind, count = self.uint32(), self.uint64()
        start = self.position
        if kind == STRING:
            self._skip_strings(count)
        elif kind == ARRAY:
            raise BrokenHeaderError("has an array of arrays, which no reader knows")
        elif kind in _READERS:
            self.advance(count * _READERS[kind].size)
        else:
            raise BrokenHeaderError(f"has an array of the unknown type {kind}")
        return GgufArray(kind, count, self._data, start)

    def _skip_strings(self, count: int) -> None:
        """Written out, because vocabularies have hundreds of thousands of them."""
        if count > MAX_STRINGS:
            raise BrokenHeaderError(f"has an array of {count:,} texts")
        self._expect(count, 8)
        length_at, data, position = _LENGTH.unpack_from, self._data, self.position
        for _ in range(count):
            if position + 8 > len(data):
                self._read_to(position + 8)
            position += 8 + length_at(data, position)[0]
        self.position = position
        self.advance(0)

    def _expect(self, count: int, min_bytes: int) -> None:
        """Raises BrokenHeaderError for a count that the rest of the file has no room for."""
        if count * min_bytes > self._num_file_bytes - self.position:
            raise BrokenHeaderError(f"counts {count:,} things in its header, and ends before them")

    def count(self, what: str, min_bytes: int, limit: int) -> int:
        """The number of things that take at least `min_bytes` each. Raises BrokenHeaderError."""
        count = self.uint64()
        if count > limit:
            raise BrokenHeaderError(f"says that it has {count:,} {what}")
        self._expect(count, min_bytes)
        return count
