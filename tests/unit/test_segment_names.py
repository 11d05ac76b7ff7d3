"""The name of a segment's file is read as it was made."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chatcache.cache.files.names import SegmentName, file_name, id_of, is_file_name, parse_name

segment_ids = st.text("0123456789abcdef", min_size=32, max_size=32)


@given(st.builds(SegmentName, st.integers(0), st.integers(0), segment_ids))
def test_a_name_is_read_as_it_was_made(segment: SegmentName) -> None:
    name = file_name(segment)
    assert is_file_name(name)
    assert parse_name(name) == segment
    assert id_of(name) == segment.segment_id


@pytest.mark.parametrize(
    "name",
    [
        "namespace.json",
        ".tmp-1-abc",
        f"0-4-{'0' * 31}.safetensors",
        f"0-4-{'G' * 32}.safetensors",
        f"-1-4-{'0' * 32}.safetensors",
        f"0-4-{'0' * 32}.safetensors.old",
    ],
)
def test_other_files_are_none_of_them(name: str) -> None:
    assert not is_file_name(name)
    with pytest.raises(ValueError, match="does not name a segment"):
        parse_name(name)
