"""The header of a GGUF file: what it says, and what is refused before anything maps the file."""

from __future__ import annotations

import importlib
import os
import struct
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from chatcache.backends.local.model.gguf.cursor import MAX_HEADER_BYTES
from chatcache.backends.local.model.gguf.header import GgufHeader, read_gguf
from chatcache.backends.local.model.gguf.types import FILE_TYPES, TENSOR_TYPES
from chatcache.backends.local.packed.blocks import KINDS
from chatcache.errors import ModelLoadError
from tests.gguf_files import (
    ARRAY,
    FLOAT32,
    INT32,
    STRING,
    UINT32,
    UINT64,
    RawHeader,
    packed_text,
    small_header,
)

many = settings(
    max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def written(path: Path, content: bytes | RawHeader) -> Path:
    path.write_bytes(content if isinstance(content, bytes) else content.file_bytes())
    return path


def refusal(tmp_path: Path, content: bytes | RawHeader) -> str:
    path = written(tmp_path / "model.gguf", content)
    with pytest.raises(ModelLoadError) as caught:
        read_gguf(path)
    assert str(path) in caught.value.message
    assert caught.value.hint
    return caught.value.message


def test_a_header_says_what_a_list_of_models_shows(tmp_path: Path) -> None:
    header = read_gguf(written(tmp_path / "model.gguf", small_header()))
    assert (header.architecture, header.text("general.name")) == ("llama", "Tiny Model")
    assert header.context_length == 2048
    assert header.number("llama.rope.freq_base") == 10000.0
    assert header.quantization == "Q4_0"
    assert header.num_parameters == 64 * 4 + 64
    assert sum(tensor.num_bytes for tensor in header.tensors) == 4 * 36 + 256
    assert (header.num_splits, header.kind) == (1, "model")
    embedding, norm = header.tensors
    assert (embedding.type.name, embedding.shape) == ("Q4_0", (4, 64))
    assert (norm.type.name, norm.shape, norm.offset) == ("F32", (64,), header.data_offset + 160)
    tokens = header.array("tokenizer.ggml.tokens")
    kinds = header.array("tokenizer.ggml.token_type")
    assert tokens is not None
    assert kinds is not None
    assert list(tokens.strings()) == ["<s>", "hä", "", "x"]
    assert kinds.numbers() == (3, 1, 1, -1)
    assert header.has_tokenizer


def test_a_value_of_another_type_is_none(tmp_path: Path) -> None:
    header = read_gguf(written(tmp_path / "model.gguf", small_header()))
    assert header.text("general.file_type") is None
    assert header.integer("tokenizer.ggml.add_bos_token") is None
    assert header.number("general.name") is None
    assert header.array("general.name") is None
    assert header.integer("nothing") is None


def test_version_2_is_read_as_well(tmp_path: Path) -> None:
    header = small_header()
    header.version = 2
    assert read_gguf(written(tmp_path / "model.gguf", header)).architecture == "llama"


def test_data_are_aligned_as_the_file_says(tmp_path: Path) -> None:
    header = small_header().add_field("general.alignment", UINT32, 256)
    header.alignment = 256
    header.tensors.pop()
    found = read_gguf(written(tmp_path / "model.gguf", header))
    assert found.data_offset % 256 == 0
    assert found.tensors[0].offset == found.data_offset


def test_what_the_gguf_package_writes_is_read_alike(tmp_path: Path) -> None:
    gguf: Any = importlib.import_module("gguf")
    numpy: Any = importlib.import_module("numpy")
    path = tmp_path / "model.gguf"
    writer = gguf.GGUFWriter(path, "qwen2")
    writer.add_name("Written")
    writer.add_context_length(4096)
    writer.add_file_type(15)
    writer.add_token_list([f"token {number}" for number in range(5000)])
    rows = numpy.arange(3 * 64, dtype=numpy.float32).reshape(3, 64)
    for kind in ("Q8_0", "Q4_0", "F16", "BF16"):
        number = gguf.GGMLQuantizationType[kind]
        blocks = gguf.quantize(rows, number)
        writer.add_tensor(f"{kind}.weight", blocks, raw_dtype=number)
    writer.add_tensor("norm.weight", rows[0])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    reader = gguf.GGUFReader(path)
    header = read_gguf(path)
    assert [
        (tensor.name, tensor.type.number, tensor.offset, tensor.num_bytes, tensor.num_weights)
        for tensor in header.tensors
    ] == [
        (
            tensor.name,
            int(tensor.tensor_type),
            tensor.data_offset,
            tensor.n_bytes,
            tensor.n_elements,
        )
        for tensor in reader.tensors
    ]
    assert {tensor.shape for tensor in header.tensors} == {(3, 64), (64,)}
    tokens = header.array("tokenizer.ggml.tokens")
    assert tokens is not None
    assert list(tokens.strings())[4999] == "token 4999"


def test_the_tables_are_those_of_the_gguf_package() -> None:
    gguf: Any = importlib.import_module("gguf")
    theirs = {int(kind): (kind.name, *sizes) for kind, sizes in gguf.GGML_QUANT_SIZES.items()}
    ours = {
        number: (kind.name, kind.num_weights, kind.num_bytes)
        for number, kind in TENSOR_TYPES.items()
    }
    assert ours.items() <= theirs.items()
    names = {int(kind): kind.name.removeprefix("MOSTLY_") for kind in gguf.LlamaFileType}
    for number, word in FILE_TYPES.items():
        assert word in names[number]


def test_blocks_have_the_sizes_that_files_have() -> None:
    for name, kind in KINDS.items():
        assert TENSOR_TYPES[kind.ggml_type].name == name
        assert TENSOR_TYPES[kind.ggml_type].num_weights == kind.num_weights
        assert TENSOR_TYPES[kind.ggml_type].num_bytes == kind.num_bytes


# how it is quantised


def quantization(tmp_path: Path, kinds: list[int], said: int | None) -> str:
    header = RawHeader(data=bytes(100_000))
    header.add_field("general.architecture", STRING, "llama")
    if said is not None:
        header.add_field("general.file_type", UINT32, said)
    offset = 0
    for number, kind in enumerate(kinds):
        header.add_tensor(f"blk.{number}", [256, 4], kind, offset)
        offset += 4096
    return read_gguf(written(tmp_path / "model.gguf", header)).quantization


@pytest.mark.parametrize(
    ("kinds", "said", "word"),
    [
        ([12, 12, 14, 0], 15, "Q4_K_M"),
        ([12, 12], 15 + 1024, "Q4_K_M"),
        ([12, 12, 14], None, "Q4_K"),
        ([8, 8, 8, 8, 8], 0, "Q8_0"),  # the writer left the field alone
        ([8, 8, 8, 8, 8], 1, "Q8_0"),
        ([30, 30, 30], 15, "BF16"),
        ([30, 30, 30], 1, "BF16"),
        ([12, 12], 999, "Q4_K"),
        ([], 15, "Q4_K_M"),
        ([], None, ""),
    ],
)
def test_a_file_is_known_by_a_word(
    tmp_path: Path, kinds: list[int], said: int | None, word: str
) -> None:
    assert quantization(tmp_path, kinds, said) == word


# kinds of file


def kind_of(tmp_path: Path, *fields: tuple[str, str], has_tensor: bool = True) -> str:
    header = RawHeader(data=bytes(128))
    for key, value in fields:
        header.add_field(key, STRING, value)
    if has_tensor:
        header.add_tensor("a", [32])
    return read_gguf(written(tmp_path / "model.gguf", header)).kind


def test_what_a_file_holds_is_told(tmp_path: Path) -> None:
    assert kind_of(tmp_path, ("general.architecture", "llama")) == "model"
    assert kind_of(tmp_path, ("general.type", "adapter")) == "adapter"
    assert kind_of(tmp_path, ("general.architecture", "clip")) == "mmproj"
    assert kind_of(tmp_path, ("general.architecture", "llama"), has_tensor=False) == "vocab"


def test_a_part_of_a_model_says_how_many_there_are(tmp_path: Path) -> None:
    header = small_header().add_field("split.count", UINT32, 3).add_field("split.no", UINT32, 1)
    found = read_gguf(written(tmp_path / "part.gguf", header))
    assert found.num_splits == 3


# what is refused


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is no GGUF file"),
        (b"GG", "is no GGUF file"),
        (b"\x80\x02pickle", "is no GGUF file"),
        (b"version https://git-lfs.github.com/spec/v1\n", "pointer of git LFS"),
        (b"<!DOCTYPE html><html>", "web page"),
        (b"lmgg" + bytes(60), "before GGUF"),
        (b"tjgg" + bytes(60), "before GGUF"),
        (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "big-endian"),
        (b"GGUF" + struct.pack("<IQQ", 1, 0, 0), "version 1"),
        (b"GGUF" + struct.pack("<IQQ", 4, 0, 0), "version 4"),
        (b"GGUF" + struct.pack("<I", 3), "ends in the middle of its header"),
    ],
)
def test_what_is_no_gguf_file_is_called_what_it_is(
    tmp_path: Path, content: bytes, words: str
) -> None:
    assert words in refusal(tmp_path, content)


def with_field(raw: bytes) -> RawHeader:
    header = small_header()
    header.fields.append(packed_text("some.field") + raw)
    return header


HUGE = 1 << 62


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: RawHeader(num_tensors=HUGE), "4,611,686,018,427,387,904 tensors"),
        (lambda: RawHeader(num_fields=HUGE), "4,611,686,018,427,387,904 fields"),
        (lambda: RawHeader(num_fields=60_000), "counts 60,000 things"),
        (lambda: small_header().add_field("general.name", STRING, "again"), "twice"),
        (lambda: small_header().add_field("", STRING, "x"), "of 0 bytes"),
        (lambda: small_header().add_field(b"\xff\xfe", STRING, "x"), "that is no text"),
        (lambda: with_field(struct.pack("<I", 13)), "unknown type 13"),
        (lambda: with_field(struct.pack("<IQ", STRING, HUGE)), "a text of"),
        (lambda: with_field(struct.pack("<IQ", STRING, 1 << 20)), "ends in the middle"),
        (lambda: with_field(struct.pack("<IIQ", ARRAY, STRING, HUGE)), "texts"),
        (lambda: with_field(struct.pack("<IIQ", ARRAY, STRING, 1000)), "counts 1,000 things"),
        (lambda: with_field(struct.pack("<IIQ", ARRAY, UINT64, HUGE)), "ends in the middle"),
        (lambda: with_field(struct.pack("<IIQ", ARRAY, ARRAY, 1)), "array of arrays"),
        (lambda: with_field(struct.pack("<IIQ", ARRAY, 77, 1)), "unknown type 77"),
        (lambda: small_header().add_tensor("output_norm.weight", [32], 0, 416), "twice"),
        (lambda: small_header().add_tensor("x", [32], 0, 0), "in the place of another"),
        (lambda: small_header().add_tensor("x", [32], 0, 417), "not aligned"),
        (lambda: small_header().add_tensor("x", [32], 0, 4096), "truncated"),
        (lambda: small_header().add_tensor("x", [32], 0, HUGE), "no whole GGUF file"),
        (lambda: small_header().add_tensor("x", [HUGE, HUGE, HUGE, HUGE], 0, 416), "no whole"),
        (lambda: small_header().add_tensor("x", [0, 4], 0, 416), "without any weights"),
        (lambda: small_header().add_tensor("x", [33], 2, 416), "no whole blocks of Q4_0"),
        (lambda: small_header().add_tensor("x", [32], 99, 416), "unknown type 99"),
        (lambda: small_header().add_tensor("x", [1] * 5, 0, 416), "5 dimensions"),
        (lambda: small_header().add_tensor("x" * 300, [32], 0, 416), "of 300 bytes"),
        (lambda: small_header().add_tensor(b"\xff", [32], 0, 416), "that is no text"),
        (lambda: small_header().add_field("general.alignment", UINT32, 0), "aligned by 0"),
        (lambda: small_header().add_field("general.alignment", UINT32, 24), "aligned by 24"),
        (lambda: small_header().add_field("general.alignment", STRING, "x"), "aligned by 'x'"),
        (lambda: small_header().add_field("general.alignment", FLOAT32, 32.0), "aligned by"),
        (lambda: small_header().add_field("general.alignment", INT32, -32), "aligned by -32"),
    ],
)
def test_a_claim_that_cannot_be_true_is_refused(
    tmp_path: Path, make: Callable[[], RawHeader], words: str
) -> None:
    assert words in refusal(tmp_path, make())


def test_a_file_is_refused_wherever_it_was_cut_off(tmp_path: Path) -> None:
    whole = small_header().file_bytes()
    used = read_gguf(written(tmp_path / "whole.gguf", whole)).tensors[-1]
    for length in range(used.offset + used.num_bytes):
        refusal(tmp_path, whole[:length])


def test_nothing_is_kept_of_what_a_sparse_file_only_claims(tmp_path: Path) -> None:
    """A file of a terabyte takes no room on disk, and every length in it can be true."""
    path = tmp_path / "model.gguf"
    header = RawHeader(num_fields=1).header_bytes() + packed_text("a")
    path.write_bytes(header + struct.pack("<IIQ", ARRAY, UINT64, 1 << 36))
    os.truncate(path, 1 << 40)
    tracemalloc.start()
    try:
        with pytest.raises(ModelLoadError, match="header of more than"):
            read_gguf(path)
        path.write_bytes(header + struct.pack("<IIQ", ARRAY, STRING, 1 << 30))
        os.truncate(path, 1 << 40)
        with pytest.raises(ModelLoadError):
            read_gguf(path)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 3 * MAX_HEADER_BYTES


def test_a_pipe_a_directory_and_nothing_are_no_files(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.gguf")
    for name in ("pipe.gguf", ".", "missing.gguf"):
        with pytest.raises(ModelLoadError):
            read_gguf(tmp_path / name)


def read_or_refuse(path: Path) -> GgufHeader | None:
    try:
        return read_gguf(path)
    except ModelLoadError:
        return None


def look_at_everything(header: GgufHeader) -> None:
    """All that is asked of a header works on whatever was accepted."""
    _ = (header.kind, header.quantization, header.num_parameters)
    _ = (header.context_length, header.num_layers, header.num_splits)
    for key in header.metadata:
        array = header.array(key)
        if array is not None:
            assert len(list(array.strings()) or array.numbers()) == len(array)
    for tensor in header.tensors:
        assert header.data_offset <= tensor.offset
        assert tensor.offset + tensor.num_bytes <= header.num_file_bytes


@many
@given(content=st.binary(max_size=300))
def test_random_bytes_are_refused(tmp_path: Path, content: bytes) -> None:
    for head in (b"", b"GGUF", b"GGUF\x03\0\0\0"):
        found = read_or_refuse(written(tmp_path / "model.gguf", head + content))
        if found is not None:
            look_at_everything(found)


@many
@given(data=st.data())
def test_a_header_with_any_bytes_changed_is_read_or_refused(
    tmp_path: Path, data: st.DataObject
) -> None:
    content = bytearray(small_header().file_bytes())
    places = st.integers(0, len(small_header().header_bytes()) - 1)
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(places)
        patch = data.draw(
            st.sampled_from([b"\xff" * 8, bytes(8), b"\x80" + bytes(7), bytes(7) + b"\x80"])
            | st.binary(min_size=1, max_size=9)
        )
        content[place : place + len(patch)] = patch
    found = read_or_refuse(written(tmp_path / "model.gguf", bytes(content)))
    if found is not None:
        look_at_everything(found)
