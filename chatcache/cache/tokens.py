"""Token ids as bytes, so that long runs are compared and hashed at memory speed.

A run of ids is packed as little-endian 32-bit integers. Position `i` of the run is the four bytes
from `4 * i`.
"""

from __future__ import annotations

import hashlib
import sys
from array import array
from collections.abc import Sequence

BYTES_PER_ID = 4


def pack(token_ids: Sequence[int]) -> bytes:
    """The ids as bytes. Raises OverflowError for an id that does not fit into 31 bits."""
    packed = array("i", token_ids)
    if sys.byteorder == "big":
        packed.byteswap()
    return packed.tobytes()


def unpack(packed: bytes) -> list[int]:
    """The inverse of `pack`."""
    token_ids = array("i")
    token_ids.frombytes(packed)
    if sys.byteorder == "big":
        token_ids.byteswap()
    return token_ids.tolist()


def common_prefix(left: bytes, right: bytes, right_from: int = 0) -> int:
    """How many leading ids of `left` are equal to those of `right[right_from:]` (in ids)."""
    offset = right_from * BYTES_PER_ID
    limit = max(0, min(len(left), len(right) - offset))
    if left[:limit] == right[offset : offset + limit]:
        return limit // BYTES_PER_ID
    low, high = 0, limit // BYTES_PER_ID  # equal up to `low`, not equal up to `high`
    while high - low > 1:
        middle = (low + high) // 2
        start, stop = low * BYTES_PER_ID, middle * BYTES_PER_ID
        if left[start:stop] == right[offset + start : offset + stop]:
            low = middle
        else:
            high = middle
    return low


def chain_digest(namespace: str, start: int, packed: bytes) -> str:
    """The id of a segment: a digest of its namespace, first position and every id up to its end.

    Two segments have the same id exactly when the same model read the same tokens at the same
    positions after the same history, so a segment that is computed again replaces itself.
    """
    digest = hashlib.blake2b(digest_size=16)
    digest.update(f"{namespace}\0{start}\0".encode())
    digest.update(packed)
    return digest.hexdigest()
