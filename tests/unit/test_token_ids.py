"""The one form of token ids against plain lists."""

from __future__ import annotations

import copy
import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chatcache.token_ids import NO_IDS, TokenIds

any_id = st.integers(0, 2**32 - 1)
runs = st.lists(any_id)
alike = st.lists(st.integers(0, 1), max_size=12)


@given(runs)
def test_ids_come_back_as_they_were_given(ids: list[int]) -> None:
    kept = TokenIds(ids)
    assert kept.to_list() == list(kept) == ids
    assert len(kept) == len(ids)
    assert TokenIds.from_bytes(kept.packed) == kept == TokenIds(kept)
    assert pickle.loads(pickle.dumps(kept)) == copy.deepcopy(kept) == kept
    assert list(reversed(kept)) == ids[::-1]


def test_ids_are_little_endian_words() -> None:
    packed = bytes([1, 0, 0, 0, 2, 1, 0, 0, 255, 255, 255, 255])
    assert TokenIds((1, 258, 2**32 - 1)).packed == packed
    assert TokenIds.from_bytes(packed).to_list() == [1, 258, 2**32 - 1]


@given(runs, st.slices(20))
def test_slices_and_positions_are_those_of_a_list(ids: list[int], cut: slice) -> None:
    kept = TokenIds(ids)
    assert kept[cut].to_list() == ids[cut]
    assert isinstance(kept[cut], TokenIds)
    for at in range(-len(ids), len(ids)):
        assert kept[at] == ids[at]
    for at in (len(ids), -len(ids) - 1):
        with pytest.raises(IndexError):
            kept[at]


@given(alike, alike)
def test_equal_ids_are_equal_and_of_one_hash(left: list[int], right: list[int]) -> None:
    assert (TokenIds(left) == TokenIds(right)) == (left == right)
    assert len({TokenIds(left), TokenIds(right)}) == (1 if left == right else 2)
    assert (TokenIds(left) + TokenIds(right)).to_list() == left + right
    assert TokenIds(left).startswith(TokenIds(right)) == (left[: len(right)] == right)
    assert TokenIds(left) != left


@given(alike, alike, st.integers(0, 5))
def test_common_prefix_counts_equal_leading_ids(
    left: list[int], right: list[int], start: int
) -> None:
    pairs = zip(left, right[start:], strict=False)
    limit = min(len(left), len(right[start:]))
    expected = next((at for at, (this, that) in enumerate(pairs) if this != that), limit)
    assert TokenIds(left).common_prefix(TokenIds(right), start) == expected


@pytest.mark.parametrize("wrong", [-1, 2**32])
def test_what_is_no_id_is_refused(wrong: int) -> None:
    with pytest.raises(OverflowError):
        TokenIds([1, wrong])


def test_half_an_id_is_refused() -> None:
    with pytest.raises(ValueError, match="5 bytes"):
        TokenIds.from_bytes(b"\0" * 5)


def test_nothing_can_be_changed() -> None:
    with pytest.raises(AttributeError):
        NO_IDS._packed = b"\0\0\0\0"
    assert not NO_IDS
