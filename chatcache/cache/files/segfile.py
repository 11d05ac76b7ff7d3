"""The segment file: one safetensors file per segment, readable with plain `safetensors.safe_open`.

This module owns the bytes of one file and knows nothing of directories, budgets or tensors: it
writes from and reads into plain buffers. It writes the format itself, because `safetensors` offers
neither an fsync before the rename nor a read into memory that exists already.

Layout (version 1): tensor `token_ids` (I32) first, then `key.N` and `value.N` per layer, each
`[num_kv_heads, num_tokens, head_dim]`. `__metadata__` holds the fields of `SegmentHeader`, a
checksum per tensor, and a digest over all of it: a flipped bit in the header is found like one in
the data. Nothing in a file is ever executed or imported. Models with recurrent or convolution
layers add `conv.N.I` and `recurrent.N.I`: the states of layer N behind the last token. K and V that
are kept as integers (I8) stand behind their scales (BF16), `key_scale.N` and `value_scale.N`.
"""

from __future__ import annotations

import errno
import json
import os
import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

import xxhash

from chatcache.cache.files.finite import are_finite
from chatcache.cache.files.pace import PIECE_BYTES, Pace
from chatcache.cache.segments import TensorSource
from chatcache.os_failures import reason
from chatcache.token_ids import BYTES_PER_ID, TokenIds

FORMAT = "chatcache-kv"
FORMAT_VERSION = 1
CHECKSUM_ALGORITHM = "xxh3-64"
TOKEN_IDS = "token_ids"
_MAX_HEADER_BYTES = 100_000_000
_MAX_BUFFERS_PER_READ = 1024
_BYTES_PER_READ = 1 << 20


class SegmentDamagedError(Exception):
    """The file is not what was written; `str(error)` says how."""


class SegmentMissingError(Exception):
    """The file is gone or cannot be opened."""


class SegmentFormatError(SegmentDamagedError):
    """The file is whole but of a format that this version does not read. It is left alone."""


@dataclass(frozen=True, slots=True)
class SegmentHeader:
    """What a segment is. Positions are absolute: `start` to `stop` of its path."""

    segment_id: str
    parent_id: str | None
    namespace: str
    start: int
    stop: int
    token_ids: TokenIds
    created_at: float
    creator: str
    num_bytes: int = 0
    has_states: bool = False

    @property
    def num_tokens(self) -> int:
        return self.stop - self.start


@dataclass(frozen=True, slots=True)
class _TensorEntry:
    dtype: str
    shape: tuple[int, ...]
    offset: int
    num_bytes: int
    checksum: str


def write_segment(
    file: BinaryIO, header: SegmentHeader, tensors: Sequence[TensorSource], pace: Pace | None = None
) -> int:
    """Write a whole segment to an open binary file; returns the number of bytes.

    With a `pace`, in small pieces at that pace.
    """
    pace = pace or Pace()
    pace.begin()
    ids = TensorSource(
        TOKEN_IDS, "I32", (header.num_tokens,), (memoryview(header.token_ids.packed),)
    )
    sources = [ids, *tensors]
    encoded = _encode_header(header, sources, pace)
    file.write(struct.pack("<Q", len(encoded)))
    file.write(encoded)
    for source in sources:
        for piece in _pieces(source.buffers, PIECE_BYTES):
            file.write(piece)
            pace.breathe()
    return 8 + len(encoded) + sum(source.num_bytes for source in sources)


def _encode_header(header: SegmentHeader, sources: Sequence[TensorSource], pace: Pace) -> bytes:
    table: dict[str, Any] = {}
    checksums: dict[str, str] = {}
    offset = 0
    for source in sources:
        end = offset + source.num_bytes
        table[source.name] = {
            "dtype": source.dtype,
            "shape": list(source.shape),
            "data_offsets": [offset, end],
        }
        offset = end
        checksums[source.name] = _checksum(source.buffers)
        pace.breathe()
    metadata = {
        "format": FORMAT,
        "format_version": str(FORMAT_VERSION),
        "segment_id": header.segment_id,
        "parent_id": header.parent_id or "",
        "namespace": header.namespace,
        "token_start": str(header.start),
        "token_stop": str(header.stop),
        "layout": "num_kv_heads,num_tokens,head_dim",
        "created_at": f"{header.created_at:.3f}",
        "creator": header.creator,
        "states": str(int(header.has_states)),
        "checksum_algorithm": CHECKSUM_ALGORITHM,
        "checksums": json.dumps(checksums),
    }
    metadata["header_digest"] = _header_digest(metadata, table)
    encoded = json.dumps({"__metadata__": metadata, **table}, separators=(",", ":")).encode()
    return encoded + b" " * (-len(encoded) % 8)


def _header_digest(metadata: Mapping[str, str], table: Mapping[str, Any]) -> str:
    covered = {key: value for key, value in metadata.items() if key != "header_digest"}
    canonical = json.dumps([covered, table], sort_keys=True, separators=(",", ":"))
    return xxhash.xxh3_128_hexdigest(canonical.encode())


def _checksum(buffers: Sequence[memoryview]) -> str:
    digest = xxhash.xxh3_64()
    for buffer in buffers:
        digest.update(buffer)
    return digest.hexdigest()


class SegmentFile:
    """An open segment file whose header has been checked. Use as a context manager."""

    def __init__(self, path: Path):
        """Open and check the header. Raises SegmentMissingError, SegmentDamagedError."""
        try:
            self._fd = os.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
        except OSError as error:
            raise SegmentMissingError(f"{path.name}: {error.strerror}") from error
        try:
            self._read_header()
        except OSError as error:
            os.close(self._fd)
            raise _unreadable("the header", error) from error
        except BaseException:
            os.close(self._fd)
            raise

    def __enter__(self) -> SegmentFile:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._fd)

    @property
    def tensor_names(self) -> list[str]:
        """All tensors but the token ids, in file order."""
        return [name for name in self._tensors if name != TOKEN_IDS]

    def shape(self, name: str) -> tuple[int, ...]:
        return self._entry(name).shape

    def dtype(self, name: str) -> str:
        return self._entry(name).dtype

    def num_bytes(self, name: str) -> int:
        return self._entry(name).num_bytes

    def read_into(self, name: str, buffers: Sequence[memoryview]) -> int:
        """Fill `buffers` with the bytes of a tensor, in order, and compare its checksum.

        Returns the number of bytes. The buffers hold garbage after a SegmentDamagedError.
        """
        entry = self._entry(name)
        size = sum(buffer.nbytes for buffer in buffers)
        if size != entry.num_bytes:
            raise SegmentDamagedError(f"{name} has {entry.num_bytes} bytes, {size} are expected")
        digest, offset = xxhash.xxh3_64(), entry.offset
        for batch in _batches(buffers):  # what was just read is in the processor's cache
            self._read_at(offset, batch, name)
            for piece in batch:
                digest.update(piece)
                offset += piece.nbytes
        if digest.hexdigest() != entry.checksum:
            raise SegmentDamagedError(f"the checksum of {name} is wrong")
        return size

    def verify(self) -> None:
        """Compare every checksum, and look for NaN and infinities. Raises SegmentDamagedError."""
        for name, entry in self._tensors.items():
            content = bytearray(entry.num_bytes)
            self.read_into(name, [memoryview(content)])
            if not are_finite(content, entry.dtype):
                raise SegmentDamagedError(f"{name} has numbers that are not finite")

    def _entry(self, name: str) -> _TensorEntry:
        try:
            return self._tensors[name]
        except KeyError:
            raise SegmentDamagedError(f"tensor {name} is not in the file") from None

    def _read_at(self, offset: int, batch: Sequence[memoryview], name: str) -> None:
        pending = list(batch)
        while pending:
            try:
                num_read = os.preadv(self._fd, pending, offset)
            except OSError as error:
                raise _unreadable(name, error) from error
            if num_read == 0:
                raise SegmentDamagedError(f"the file ends within {name}")
            offset += num_read
            pending = _advance(pending, num_read)

    def _read_header(self) -> None:
        num_bytes = os.fstat(self._fd).st_size
        prefix = os.pread(self._fd, 8, 0)
        if len(prefix) < 8:
            raise SegmentDamagedError("the file is empty or ends within its header")
        (length,) = struct.unpack("<Q", prefix)
        if length > _MAX_HEADER_BYTES or 8 + length > num_bytes:
            raise SegmentDamagedError("the header is longer than the file")
        raw = os.pread(self._fd, length, 8)
        try:
            table = json.loads(raw)
            metadata = table.pop("__metadata__")
            version = int(metadata["format_version"])
            if metadata["format"] != FORMAT:
                raise SegmentFormatError(f"not a {FORMAT} file")
            if version > FORMAT_VERSION:
                raise SegmentFormatError(f"format version {version} is newer than this chatcache")
            if _header_digest(metadata, table) != metadata["header_digest"]:
                raise SegmentDamagedError("the digest of the header is wrong")
            self._tensors = _parse_table(table, json.loads(metadata["checksums"]), 8 + length)
            header = _parse_metadata(metadata, num_bytes)
        except (ValueError, KeyError, TypeError, AttributeError, UnicodeDecodeError) as error:
            raise SegmentDamagedError(f"the header cannot be read ({error})") from error
        end = max(entry.offset + entry.num_bytes for entry in self._tensors.values())
        if end != num_bytes:
            raise SegmentDamagedError(f"the file has {num_bytes} bytes instead of {end}")
        packed = bytearray(header.num_tokens * BYTES_PER_ID)
        self.read_into(TOKEN_IDS, [memoryview(packed)])
        self.header = replace(header, token_ids=TokenIds.from_bytes(packed))


def _parse_table(
    table: Mapping[str, Any], checksums: Mapping[str, str], data_offset: int
) -> dict[str, _TensorEntry]:
    entries = {}
    for name, row in table.items():
        begin, end = row["data_offsets"]
        entries[name] = _TensorEntry(
            dtype=row["dtype"],
            shape=tuple(row["shape"]),
            offset=data_offset + begin,
            num_bytes=end - begin,
            checksum=checksums[name],
        )
    return entries


def _parse_metadata(metadata: Mapping[str, str], num_bytes: int) -> SegmentHeader:
    return SegmentHeader(
        segment_id=metadata["segment_id"],
        parent_id=metadata["parent_id"] or None,
        namespace=metadata["namespace"],
        start=int(metadata["token_start"]),
        stop=int(metadata["token_stop"]),
        token_ids=TokenIds(),
        created_at=float(metadata["created_at"]),
        creator=metadata["creator"],
        num_bytes=num_bytes,
        has_states=metadata.get("states") == "1",
    )


def _batches(buffers: Sequence[memoryview]) -> Iterator[list[memoryview]]:
    """Pieces for one system call each."""
    batch: list[memoryview] = []
    size = 0
    for piece in _pieces(buffers, _BYTES_PER_READ):
        if batch and (len(batch) == _MAX_BUFFERS_PER_READ or size + piece.nbytes > _BYTES_PER_READ):
            yield batch
            batch, size = [], 0
        batch.append(piece)
        size += piece.nbytes
    if batch:
        yield batch


def _pieces(buffers: Iterable[memoryview], num_bytes: int) -> Iterator[memoryview]:
    """The buffers as bytes, in pieces of at most `num_bytes`."""
    for buffer in buffers:
        flat = buffer.cast("B") if buffer.nbytes else buffer
        for begin in range(0, flat.nbytes, num_bytes):
            yield flat[begin : begin + num_bytes]


def _unreadable(what: str, error: OSError) -> SegmentDamagedError | SegmentMissingError:
    """Only a bad disk is damage; a network mount that is away comes back."""
    kind = SegmentDamagedError if error.errno == errno.EIO else SegmentMissingError
    return kind(f"{what} cannot be read: {reason(error)}")


def _advance(pending: list[memoryview], num_read: int) -> list[memoryview]:
    """What is left of the buffers after `num_read` bytes have arrived."""
    for index, buffer in enumerate(pending):
        if num_read < buffer.nbytes:
            return [buffer[num_read:], *pending[index + 1 :]]
        num_read -= buffer.nbytes
    return []
