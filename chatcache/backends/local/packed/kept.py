"""Quantised weights in a safetensors file: packed matrices as bytes, all else as it was.

Owns the file. `__metadata__` has the kinds of the blocks, what they were made from, and a checksum
per tensor. A file is written tensor by tensor, so that a model is never whole in memory; read, it
is mapped.
"""

from __future__ import annotations

import json
import math
import mmap
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
import xxhash

from chatcache.atomic_write import replacing
from chatcache.backends.local.packed.blocks import KINDS, BlockKind, BlockMatrix

FORMAT, FORMAT_VERSION = "chatcache-quantized", "1"
_NO_CHECKSUM = "0" * 16
_ALIGNMENT = 64
_DTYPES = {
    "U8": torch.uint8,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "BOOL": torch.bool,
}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}


class KeptDamagedError(Exception):
    """The file is not what was written; `str(error)` says how."""


@dataclass(frozen=True, slots=True)
class KeptTensor:
    """What a tensor of the file will be; `kind` and `num_columns` if it is a packed matrix."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    kind: BlockKind | None = None
    num_columns: int = 0

    @property
    def num_bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True, slots=True)
class KeptWeights:
    """The weights of a model by name; views of the mapped file `path`, if there is one."""

    matrices: Mapping[str, BlockMatrix]
    rest: Mapping[str, torch.Tensor]
    path: Path | None = None


class KeptWriter:
    """A file that is being written: its tensors come in the order that was planned."""

    def __init__(self, file: BinaryIO, plan: Mapping[str, KeptTensor], source: Mapping[str, str]):
        self._file, self._plan, self._source = file, plan, source
        self._checksums = dict.fromkeys(plan, _NO_CHECKSUM)
        header = self._header()
        end = len(header) + sum(tensor.num_bytes for tensor in plan.values())
        os.posix_fallocate(file.fileno(), 0, end)  # a full disk says so before anything is computed
        file.write(header)

    def add(self, name: str, tensor: torch.Tensor) -> None:
        data = tensor.contiguous().view(torch.uint8).reshape(-1).numpy().data
        self._checksums[name] = xxhash.xxh3_64_hexdigest(data)
        self._file.write(data)

    def finish(self) -> None:
        self._file.seek(0)
        self._file.write(self._header())

    def _header(self) -> bytes:
        """As long before the checksums are known as afterwards."""
        start, table = 0, {}
        for name, tensor in self._plan.items():
            table[name] = {
                "dtype": _NAMES[tensor.dtype],
                "shape": list(tensor.shape),
                "data_offsets": [start, start + tensor.num_bytes],
            }
            start += tensor.num_bytes
        packed = {
            name: [tensor.kind.name, tensor.num_columns]
            for name, tensor in self._plan.items()
            if tensor.kind is not None
        }
        metadata = {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            **self._source,
            "kinds": json.dumps(packed),
            "checksums": json.dumps(self._checksums),
        }
        text = json.dumps({"__metadata__": metadata, **table}).encode()
        text += b" " * (-(8 + len(text)) % _ALIGNMENT)
        return len(text).to_bytes(8, "little") + text


@contextmanager
def writing(
    path: Path, plan: Mapping[str, KeptTensor], source: Mapping[str, str]
) -> Iterator[KeptWriter]:
    """A file that appears whole at the end, or not at all. Raises OSError."""
    for folder in (path.parent.parent, path.parent):  # `parents` would make them for everybody
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    with replacing(path) as file:
        writer = KeptWriter(file, plan, source)
        yield writer
        writer.finish()


def read_kept(path: Path, source: Mapping[str, str]) -> KeptWeights:
    """The weights in a file, every checksum compared. Raises OSError, KeptDamagedError."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        size = os.fstat(file.fileno()).st_size
        if not 2 <= length <= size - 8:
            raise KeptDamagedError("it is no whole file")
        text = file.read(length)
        # Private, not read-only: torch wants memory that it could write to.
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    try:
        return _parse(path, json.loads(text), mapped, 8 + length, source)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise KeptDamagedError(f"its header is broken ({type(error).__name__})") from error


def _parse(
    path: Path, header: dict[str, Any], mapped: mmap.mmap, start: int, source: Mapping[str, str]
) -> KeptWeights:
    metadata = header.pop("__metadata__")
    expected = {"format": FORMAT, "format_version": FORMAT_VERSION, **source}
    if {key: metadata.get(key) for key in expected} != expected:
        raise KeptDamagedError("it is of other weights")
    kinds, checksums = json.loads(metadata["kinds"]), json.loads(metadata["checksums"])
    matrices, rest, end = {}, {}, start
    for name, entry in header.items():
        tensor = _tensor(mapped, start, entry)
        if xxhash.xxh3_64_hexdigest(tensor.reshape(-1).numpy().data) != checksums[name]:
            raise KeptDamagedError(f"the checksum of {name} is wrong")
        end = max(end, start + entry["data_offsets"][1])
        if name in kinds:
            kind, num_columns = kinds[name]
            matrices[name] = BlockMatrix(KINDS[kind], tensor.view(entry["shape"]), num_columns)
        else:
            rest[name] = tensor.view(_DTYPES[entry["dtype"]]).view(entry["shape"])
    if end != len(mapped):
        raise KeptDamagedError("it is no whole file")
    return KeptWeights(matrices, rest, path)


def _tensor(mapped: mmap.mmap, start: int, entry: Mapping[str, Any]) -> torch.Tensor:
    first, last = entry["data_offsets"]
    count = math.prod(entry["shape"]) * _DTYPES[entry["dtype"]].itemsize
    if not 0 <= first <= last <= len(mapped) - start or last - first != count:
        raise KeptDamagedError("its header is broken")
    if not count:
        return torch.empty(0, dtype=torch.uint8)
    return torch.frombuffer(mapped, dtype=torch.uint8, count=count, offset=start + first)
