"""The book: entries and tree change together, whole lineages are found, holding is counted."""

from __future__ import annotations

import pytest

from chatcache.cache.book.entries import Entry
from chatcache.cache.book.segment_book import SegmentBook, lineage
from tests.kvfakes import ByteBlock, ids_of


def enter(book: SegmentBook, segment_id: str, text: str, start: int) -> Entry:
    ids = ids_of(text)
    entry = Entry(
        segment_id=segment_id,
        parent_id=None,
        start=start,
        stop=len(ids),
        token_ids=ids[start:],
        num_bytes=10,
        last_used=0.0,
        block=ByteBlock(ids, start, len(ids)),
    )
    book.add(ids, entry)
    return entry


@pytest.fixture
def book() -> SegmentBook:
    made = SegmentBook()
    enter(made, "system", "You are kind. ", 0)
    enter(made, "hello", "You are kind. Hello! ", 14)
    enter(made, "hi", "You are kind. Hello! Hi. ", 21)
    enter(made, "other", "You are kind. Well? ", 14)
    return made


def test_a_parent_is_found_and_a_lineage_goes_up_to_the_root(book: SegmentBook) -> None:
    found = [entry.segment_id for entry in book.lineage("hi")]
    assert found == ["hi", "hello", "system"]
    assert book["other"].parent_id == "system"
    assert book.lineage("unknown") == []


def test_a_lineage_of_rows_that_lie_ends(book: SegmentBook) -> None:
    parents: dict[str, str | None] = {"a": "b", "b": "c", "c": "a", "d": "gone", "e": None}
    assert lineage("a", parents.get, parents) == ["a", "b", "c"]
    assert lineage("d", parents.get, parents) == ["d"]
    assert lineage("e", parents.get, parents) == ["e"]


def test_what_is_removed_is_neither_matched_nor_listed(book: SegmentBook) -> None:
    book.remove(book["hello"])
    assert "hello" not in book
    assert book.match(ids_of("You are kind. Hello! Hi. ")).num_tokens == 14
    assert [entry.segment_id for entry in book.entries()] == ["system", "hi", "other"]
    assert book.check() == []


def test_only_what_lies_nowhere_is_gone(book: SegmentBook) -> None:
    entry = book["other"]
    assert not book.remove_if_gone(entry)
    entry.block = None
    assert book.check() == ["other is neither in RAM nor on disk"]
    assert book.remove_if_gone(entry)
    assert "other" not in book


def test_what_is_held_is_let_go_of_also_when_something_fails(book: SegmentBook) -> None:
    entries = book.lineage("hello")

    def fail_in_the_middle() -> None:
        with book.held(entries):
            assert all(entry.is_held for entry in entries)
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail_in_the_middle()
    assert not any(entry.is_held for entry in book.entries())


def test_pins_count_for_what_comes_later(book: SegmentBook) -> None:
    book.set_pinned(frozenset({"hi", "later"}))
    enter(book, "later", "Something else. ", 0)
    assert [entry.segment_id for entry in book.entries() if entry.is_pinned] == ["hi", "later"]
    book.set_pinned(frozenset({"later"}))
    assert [entry.segment_id for entry in book.entries() if entry.is_held] == ["later"]


def test_a_segment_without_a_path_to_it_is_refused(book: SegmentBook) -> None:
    with pytest.raises(ValueError, match="no path up to position 5"):
        enter(book, "lost", "Nobody said this. ", 5)
    assert "lost" not in book
    assert book.check() == []
