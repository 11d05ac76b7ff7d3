"""What a GGUF file says about itself, read without torch and without trusting it.

Owns the header: its metadata, which tensors lie where, and what can be told of a model from that
(https://github.com/ggml-org/ggml/blob/master/docs/gguf.md). Weights are not read here. A file whose
header says anything that cannot be true is refused, before anything maps it into memory.
"""

from __future__ import annotations

import math
import stat
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from chatcache.backends.local.model.gguf.cursor import BrokenHeaderError, Cursor, GgufArray, Value
from chatcache.backends.local.model.gguf.parts import MAGIC
from chatcache.backends.local.model.gguf.types import (
    FILE_TYPES,
    GUESSED_FILE_TYPE,
    PLAIN_TYPES,
    TENSOR_TYPES,
    TensorType,
)
from chatcache.backends.local.model.stand_ins import stand_in
from chatcache.errors import ModelLoadError

ANEW = "Download the file again, or choose another with --model."

_VERSIONS = (2, 3)
_OLD_MAGICS = (b"lmgg", b"fmgg", b"tjgg", b"algg")  # ggml, ggmf, ggjt, ggla: before 2023-08
_DEFAULT_ALIGNMENT = 32
_MAX_ALIGNMENT = 1 << 20
_MAX_FIELDS = 1 << 16
_MAX_TENSORS = 1 << 18
_MAX_DIMENSIONS = 4
_MAX_KEY_BYTES = (1 << 16) - 1
_MAX_TENSOR_NAME_BYTES = 256
_MIN_FIELD_BYTES = 8 + 1 + 4 + 1
_MIN_TENSOR_BYTES = 8 + 1 + 4 + 8 + 4 + 8


@dataclass(frozen=True, slots=True)
class GgufTensor:
    """A tensor in a file. `shape` is in torch's order, `[out_features, in_features]` for a matrix;
    `offset` counts from the beginning of the file."""

    name: str
    type: TensorType
    shape: tuple[int, ...]
    offset: int

    @property
    def num_weights(self) -> int:
        return math.prod(self.shape)

    @property
    def num_bytes(self) -> int:
        return self.num_weights // self.type.num_weights * self.type.num_bytes


@dataclass(frozen=True, slots=True)
class GgufHeader:
    """The header of one file. Of a model that is split over several, each has its own tensors."""

    path: Path
    metadata: Mapping[str, Value]
    tensors: tuple[GgufTensor, ...]
    data_offset: int
    num_file_bytes: int

    # values, None where there is none of that type

    def text(self, key: str) -> str | None:
        value = self.metadata.get(key)
        return value if isinstance(value, str) else None

    def integer(self, key: str) -> int | None:
        value = self.metadata.get(key)
        return value if isinstance(value, int) and not isinstance(value, bool) else None

    def number(self, key: str) -> float | None:
        value = self.metadata.get(key)
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        return float(value) if is_number else None  # type: ignore[arg-type]

    def array(self, key: str) -> GgufArray | None:
        value = self.metadata.get(key)
        return value if isinstance(value, GgufArray) else None

    def of_model(self, key: str) -> str:
        """The full name of a field of this architecture, such as `context_length`."""
        return f"{self.architecture}.{key}"

    # what a list of models shows

    @property
    def architecture(self) -> str:
        return self.text("general.architecture") or ""

    @property
    def kind(self) -> str:
        """What the file holds: `model`, `adapter`, `mmproj`, `imatrix`, `vocab`, `diffusion` ..."""
        if (named := self.text("general.type")) is not None:
            return named
        if self.architecture == "clip":
            return "mmproj"
        is_only_vocabulary = not self.tensors and self.num_splits == 1
        return "vocab" if is_only_vocabulary else "model"

    @property
    def context_length(self) -> int | None:
        return self.integer(self.of_model("context_length"))

    @property
    def num_layers(self) -> int | None:
        return self.integer(self.of_model("block_count"))

    @property
    def has_tokenizer(self) -> bool:
        tokens = self.array("tokenizer.ggml.tokens")
        return tokens is not None and tokens.has_text and len(tokens) > 0

    @property
    def num_parameters(self) -> int:
        """The number of weights in this file."""
        return sum(tensor.num_weights for tensor in self.tensors)

    @property
    def num_splits(self) -> int:
        return max(1, self.integer("split.count") or 1)

    @property
    def quantization(self) -> str:
        """The word that people know the file by: `Q4_K_M`, `Q8_0`, `BF16`.

        By `general.file_type`, unless most weights are of another sort than it says, as in files
        whose writer left it alone."""
        matrices = [tensor for tensor in self.tensors if len(tensor.shape) > 1]
        num_weights = Counter[str]()  # vectors, which nobody quantises, can be most of a tiny model
        for tensor in matrices or self.tensors:
            num_weights[tensor.type.name] += tensor.num_weights
        (most, _), *_ = num_weights.most_common(1) or [("", 0)]
        said = FILE_TYPES.get((self.integer("general.file_type") or 0) % GUESSED_FILE_TYPE, "")
        is_said = "general.file_type" in self.metadata and said
        if not most:
            return said if is_said else ""
        if is_said and (said in PLAIN_TYPES) == (most in PLAIN_TYPES):
            return said if said not in PLAIN_TYPES else most
        return most


def read_gguf(path: Path) -> GgufHeader:
    """The header of a file, every claim of it checked. Raises ModelLoadError, which names it."""
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise ModelLoadError(f"{path} is not a file.", ANEW)
        with path.open("rb") as file:
            cursor = Cursor(file, status.st_size)
            return _header(path, cursor, status.st_size)
    except OSError as error:
        raise ModelLoadError(
            f"{path} cannot be read: {error.strerror}.", "Check the path and its permissions."
        ) from error
    except BrokenHeaderError as error:
        raise ModelLoadError(f"{path} is no whole GGUF file: it {error}.", ANEW) from error


def _header(path: Path, cursor: Cursor, num_file_bytes: int) -> GgufHeader:
    _check_version(path, cursor, num_file_bytes)
    num_tensors = cursor.count("tensors", _MIN_TENSOR_BYTES, _MAX_TENSORS)
    num_fields = cursor.count("fields", _MIN_FIELD_BYTES, _MAX_FIELDS)
    metadata: dict[str, Value] = {}
    for _ in range(num_fields):
        key = cursor.name("the name of a field", _MAX_KEY_BYTES)
        if key in metadata:
            raise BrokenHeaderError(f"has the field {key!r} twice")
        metadata[key] = cursor.value()
    alignment = _alignment(metadata)
    found: dict[str, GgufTensor] = {}
    for _ in range(num_tensors):
        tensor = _tensor(cursor, alignment)
        if tensor.name in found:
            raise BrokenHeaderError(f"has the tensor {tensor.name!r} twice")
        found[tensor.name] = tensor
    data_offset = -(-cursor.position // alignment) * alignment
    tensors = tuple(
        GgufTensor(tensor.name, tensor.type, tensor.shape, data_offset + tensor.offset)
        for tensor in found.values()
    )
    _check_places(path, tensors, num_file_bytes)
    return GgufHeader(path, metadata, tensors, data_offset, num_file_bytes)


def _check_version(path: Path, cursor: Cursor, num_file_bytes: int) -> None:
    magic = cursor.raw(min(len(MAGIC), num_file_bytes))
    if magic in _OLD_MAGICS:
        raise ModelLoadError(
            f"{path} is in a format from before GGUF, which is no longer read.",
            "Choose a copy of the model as GGUF.",
        )
    if magic != MAGIC:
        what = stand_in(path) or "is no GGUF file"
        raise ModelLoadError(f"{path} {what}.", ANEW)
    raw = cursor.raw(4)
    version = int.from_bytes(raw, "little")
    if int.from_bytes(raw, "big") in (*_VERSIONS, 1):
        raise ModelLoadError(
            f"{path} was written for big-endian machines.",
            "Choose a copy of the model for little-endian ones, as nearly all are.",
        )
    if version not in _VERSIONS:
        raise ModelLoadError(
            f"{path} is GGUF of version {version}; known are 2 and 3.",
            "Choose another copy of the model."
            if version < 2
            else "A newer chatcache may know it; choose another copy of the model.",
        )


def _alignment(metadata: Mapping[str, Value]) -> int:
    alignment = metadata.get("general.alignment", _DEFAULT_ALIGNMENT)
    is_size = isinstance(alignment, int) and not isinstance(alignment, bool)
    if not is_size or not 0 < alignment <= _MAX_ALIGNMENT or alignment & (alignment - 1):  # type: ignore[operator]
        raise BrokenHeaderError(f"says that its data are aligned by {alignment!r:.40}")
    return int(alignment)  # type: ignore[arg-type]


def _tensor(cursor: Cursor, alignment: int) -> GgufTensor:
    """A tensor whose offset still counts from the first one."""
    name = cursor.name("the name of a tensor", _MAX_TENSOR_NAME_BYTES)
    num_dimensions = cursor.uint32()
    if num_dimensions > _MAX_DIMENSIONS:
        raise BrokenHeaderError(f"gives the tensor {name!r} {num_dimensions:,} dimensions")
    dimensions = [cursor.uint64() for _ in range(num_dimensions)] or [1]
    number = cursor.uint32()
    offset = cursor.uint64()
    if number not in TENSOR_TYPES:
        raise BrokenHeaderError(f"has the tensor {name!r} in the unknown type {number}")
    if 0 in dimensions:
        raise BrokenHeaderError(f"has the tensor {name!r} without any weights")
    kind = TENSOR_TYPES[number]
    if dimensions[0] % kind.num_weights:
        raise BrokenHeaderError(
            f"has rows of {dimensions[0]:,} weights in the tensor {name!r}, which are no whole "
            f"blocks of {kind.name}"
        )
    if offset % alignment:
        raise BrokenHeaderError(f"has the tensor {name!r} at an offset that is not aligned")
    return GgufTensor(name, kind, tuple(reversed(dimensions)), offset)


def _check_places(path: Path, tensors: tuple[GgufTensor, ...], num_file_bytes: int) -> None:
    """Every tensor lies inside the file, and none in another."""
    stop = 0
    for tensor in sorted(tensors, key=lambda tensor: tensor.offset):
        if tensor.offset < stop:
            raise BrokenHeaderError(f"has the tensor {tensor.name!r} in the place of another")
        stop = tensor.offset + tensor.num_bytes
    if stop > num_file_bytes:
        raise ModelLoadError(
            f"{path} is truncated: it has {num_file_bytes:,} bytes instead of {stop:,}."
            if stop < 1 << 50
            else f"{path} is no whole GGUF file: it has a tensor of {stop:,} bytes.",
            ANEW,
        )
