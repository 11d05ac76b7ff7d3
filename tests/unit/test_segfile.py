"""The segment file: readable by everybody, and no changed byte goes unnoticed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open

from chatcache.cache.files import segfile
from chatcache.cache.files.segfile import (
    SegmentDamagedError,
    SegmentFile,
    SegmentFormatError,
    SegmentHeader,
    SegmentMissingError,
    write_segment,
)
from tests.kvfakes import ByteBlock, ids_of

IDS = ids_of("hello, world")
HEADER = SegmentHeader("ab" * 16, None, "ns", 0, 12, IDS, 1000.0, "test")


def written(path: Path) -> Path:
    with path.open("wb") as file:
        size = write_segment(file, HEADER, ByteBlock(IDS, 0, 12).sources())
    assert size == path.stat().st_size
    return path


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    path = written(tmp_path / "segment")
    with SegmentFile(path) as file:
        assert file.header == replace(HEADER, num_bytes=path.stat().st_size)
        file.verify()
        row = bytearray(12 * 8)
        other = bytearray(12 * 8)
        file.read_into("key.0", [memoryview(row), memoryview(other)])
    block = ByteBlock(IDS, 0, 12)
    assert (row, other) == (block.part("key.0", 0, 0, 12), block.part("key.0", 1, 0, 12))


@pytest.mark.parametrize("num_bytes", [1, 7, 64, 100, 1 << 20])
def test_large_tensors_are_read_and_checked_piece_by_piece(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, num_bytes: int
) -> None:
    monkeypatch.setattr(segfile, "_BYTES_PER_READ", num_bytes)
    path = written(tmp_path / "segment")
    rows = [bytearray(12 * 8), bytearray(12 * 8)]
    with SegmentFile(path) as file:
        file.read_into("value.0", [memoryview(row) for row in rows])
    block = ByteBlock(IDS, 0, 12)
    assert rows == [block.part("value.0", head, 0, 12) for head in range(2)]
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(SegmentDamagedError, match="checksum"), SegmentFile(path) as file:
        file.read_into("value.0", [memoryview(row) for row in rows])


def test_plain_safetensors_reads_the_file(tmp_path: Path) -> None:
    path = written(tmp_path / "segment.safetensors")
    with safe_open(path, framework="pt") as file:
        assert set(file.keys()) == {"token_ids", "key.0", "value.0"}
        assert file.get_tensor("token_ids").tolist() == [ord(c) for c in "hello, world"]
        assert file.metadata()["segment_id"] == HEADER.segment_id


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_no_flipped_bit_goes_unnoticed(tmp_path: Path, data: st.DataObject) -> None:
    path = written(tmp_path / "segment")
    content = bytearray(path.read_bytes())
    position = data.draw(st.integers(0, len(content) - 1))
    content[position] ^= 1 << data.draw(st.integers(0, 7))
    path.write_bytes(content)
    with pytest.raises(SegmentDamagedError), SegmentFile(path) as file:
        file.verify()


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_no_truncation_goes_unnoticed(tmp_path: Path, data: st.DataObject) -> None:
    path = written(tmp_path / "segment")
    content = path.read_bytes()
    path.write_bytes(content[: data.draw(st.integers(0, len(content) - 1))])
    with pytest.raises(SegmentDamagedError), SegmentFile(path):
        pass


def test_a_file_full_of_zeros_is_damaged(tmp_path: Path) -> None:
    path = written(tmp_path / "segment")
    path.write_bytes(bytes(path.stat().st_size))
    with pytest.raises(SegmentDamagedError), SegmentFile(path):
        pass


def test_a_missing_file_is_missing_and_not_damaged(tmp_path: Path) -> None:
    with pytest.raises(SegmentMissingError), SegmentFile(tmp_path / "nothing"):
        pass


def test_a_newer_format_is_left_alone(tmp_path: Path) -> None:
    path = written(tmp_path / "segment")
    content = path.read_bytes().replace(b'"format_version":"1"', b'"format_version":"9"')
    path.write_bytes(content)
    with pytest.raises(SegmentFormatError, match="newer"), SegmentFile(path):
        pass


def test_another_safetensors_file_is_refused(tmp_path: Path) -> None:
    import torch
    from safetensors.torch import save_file

    save_file({"x": torch.zeros(3)}, tmp_path / "other.safetensors")
    with pytest.raises(SegmentDamagedError), SegmentFile(tmp_path / "other.safetensors"):
        pass
