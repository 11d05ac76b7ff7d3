"""GGUF files for tests: headers written byte by byte, so that any of them can be wrong."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

UINT32, INT32, FLOAT32, BOOL, STRING, ARRAY, UINT64 = 4, 5, 6, 7, 8, 9, 10
_PACKED = {UINT32: "<I", INT32: "<i", FLOAT32: "<f", BOOL: "<?", UINT64: "<Q"}


def packed_text(text: str | bytes) -> bytes:
    raw = text.encode() if isinstance(text, str) else text
    return struct.pack("<Q", len(raw)) + raw


def packed_value(kind: int, value: Any) -> bytes:
    return packed_text(value) if kind == STRING else struct.pack(_PACKED[kind], value)


def packed_array(kind: int, values: Sequence[Any]) -> bytes:
    return struct.pack("<IQ", kind, len(values)) + b"".join(packed_value(kind, v) for v in values)


@dataclass
class RawHeader:
    """A header and the data behind it, as they are to be in the file: right or wrong."""

    fields: list[bytes] = field(default_factory=list)
    tensors: list[bytes] = field(default_factory=list)
    data: bytes = b""
    magic: bytes = b"GGUF"
    version: int = 3
    num_tensors: int | None = None
    num_fields: int | None = None
    alignment: int = 32

    def add_field(self, key: str | bytes, kind: int, value: Any) -> RawHeader:
        self.fields.append(packed_text(key) + struct.pack("<I", kind) + packed_value(kind, value))
        return self

    def add_array(self, key: str, kind: int, values: Sequence[Any]) -> RawHeader:
        self.fields.append(packed_text(key) + struct.pack("<I", ARRAY) + packed_array(kind, values))
        return self

    def add_tensor(
        self, name: str | bytes, dimensions: Sequence[int], kind: int = 0, offset: int = 0
    ) -> RawHeader:
        """`dimensions` in the order of the file: the length of a row first."""
        self.tensors.append(
            packed_text(name)
            + struct.pack("<I", len(dimensions))
            + b"".join(struct.pack("<Q", length) for length in dimensions)
            + struct.pack("<IQ", kind, offset)
        )
        return self

    def header_bytes(self) -> bytes:
        def count(said: int | None, there: list[bytes]) -> bytes:
            return struct.pack("<Q", len(there) if said is None else said)

        return b"".join(
            [
                self.magic,
                struct.pack("<I", self.version),
                count(self.num_tensors, self.tensors),
                count(self.num_fields, self.fields),
                *self.fields,
                *self.tensors,
            ]
        )

    def file_bytes(self) -> bytes:
        header = self.header_bytes()
        return header + bytes(-len(header) % self.alignment) + self.data


def small_header() -> RawHeader:
    """One that is right: a model with two tensors and a vocabulary."""
    header = RawHeader(data=bytes(range(256)) * 2)
    header.add_field("general.architecture", STRING, "llama")
    header.add_field("general.name", STRING, "Tiny Model")
    header.add_field("general.size_label", STRING, "1K")
    header.add_field("general.file_type", UINT32, 2)
    header.add_field("llama.context_length", UINT32, 2048)
    header.add_field("llama.rope.freq_base", FLOAT32, 10000.0)
    header.add_field("tokenizer.ggml.add_bos_token", BOOL, True)
    header.add_array("tokenizer.ggml.tokens", STRING, ["<s>", "hä", "", "x"])
    header.add_array("tokenizer.ggml.token_type", INT32, [3, 1, 1, -1])
    header.add_tensor("token_embd.weight", [64, 4], kind=2)
    header.add_tensor("output_norm.weight", [64], kind=0, offset=160)
    return header
