"""Token ids: the one form in which runs of them are kept, sent, compared and hashed.

A run is the bytes of little-endian unsigned 32-bit integers, so a journal in the database, a prompt
on its way to the engine and an edge of the radix tree are compared and cut at memory speed. Owns
the form and what can be asked of it. Knows no tokenizer and no model; these get lists (`to_list`).
"""

from __future__ import annotations

import sys
from array import array
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final, overload

BYTES_PER_ID: Final = 4
_TYPE: Final = "I"


class TokenIds(Sequence[int]):
    """Immutable; a slice is TokenIds, too. Equal and hashed by value, ordered by their bytes.

    Raises OverflowError for an id that does not fit into 32 bits.
    """

    __slots__ = ("_packed",)
    _packed: bytes

    def __init__(self, ids: Iterable[int] = ()) -> None:
        if isinstance(ids, TokenIds):
            packed = ids._packed
        else:
            values = array(_TYPE, ids)
            if sys.byteorder == "big":
                values.byteswap()
            packed = values.tobytes()
        object.__setattr__(self, "_packed", packed)

    @classmethod
    def from_bytes(cls, packed: bytes | bytearray) -> TokenIds:
        """The inverse of `packed`. Raises ValueError unless these are whole ids."""
        if len(packed) % BYTES_PER_ID:
            raise ValueError(f"{len(packed)} bytes are not a whole number of token ids")
        made = cls.__new__(cls)
        object.__setattr__(made, "_packed", bytes(packed))
        return made

    @property
    def packed(self) -> bytes:
        """The ids as little-endian 32-bit integers."""
        return self._packed

    def to_list(self) -> list[int]:
        """For tokenizers and tensors."""
        values = array(_TYPE)
        values.frombytes(self._packed)
        if sys.byteorder == "big":
            values.byteswap()
        return values.tolist()

    def common_prefix(self, other: TokenIds, start: int = 0) -> int:
        """How many leading ids are equal to those of `other` from position `start` on."""
        left, right, offset = self._packed, other._packed, start * BYTES_PER_ID
        limit = max(0, min(len(left), len(right) - offset))
        if left[:limit] == right[offset : offset + limit]:
            return limit // BYTES_PER_ID
        low, high = 0, limit // BYTES_PER_ID  # equal up to `low`, not equal up to `high`
        while high - low > 1:
            middle = (low + high) // 2
            begin, end = low * BYTES_PER_ID, middle * BYTES_PER_ID
            if left[begin:end] == right[offset + begin : offset + end]:
                low = middle
            else:
                high = middle
        return low

    def startswith(self, other: TokenIds) -> bool:
        return self._packed.startswith(other._packed)

    def __len__(self) -> int:
        return len(self._packed) // BYTES_PER_ID

    @overload
    def __getitem__(self, index: int) -> int: ...
    @overload
    def __getitem__(self, index: slice) -> TokenIds: ...
    def __getitem__(self, index: int | slice) -> int | TokenIds:
        if isinstance(index, slice):
            start, stop, step = index.indices(len(self))
            if step != 1:
                return TokenIds(self.to_list()[index])
            return TokenIds.from_bytes(self._packed[start * BYTES_PER_ID : stop * BYTES_PER_ID])
        at = index if index >= 0 else index + len(self)
        if not 0 <= at < len(self):
            raise IndexError(f"there is no position {index} in {len(self)} token ids")
        at *= BYTES_PER_ID
        return int.from_bytes(self._packed[at : at + BYTES_PER_ID], "little")

    def __iter__(self) -> Iterator[int]:
        return iter(self.to_list())

    def __reversed__(self) -> Iterator[int]:
        return reversed(self.to_list())

    def __add__(self, other: TokenIds) -> TokenIds:
        return TokenIds.from_bytes(self._packed + other._packed)

    def __eq__(self, other: object) -> bool:
        return self._packed == other._packed if isinstance(other, TokenIds) else NotImplemented

    def __lt__(self, other: TokenIds) -> bool:
        return self._packed < other._packed

    def __hash__(self) -> int:
        return hash(self._packed)

    def __repr__(self) -> str:
        shown = ", ".join(map(str, self[:8]))
        return f"TokenIds([{shown}{', …' if len(self) > 8 else ''}], {len(self):,})"

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError("token ids cannot be changed")

    def __reduce__(self) -> tuple[Any, ...]:
        return TokenIds.from_bytes, (self._packed,)


NO_IDS: Final = TokenIds()
