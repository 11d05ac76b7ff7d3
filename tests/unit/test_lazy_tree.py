"""The tree that grows along the prompts matches as much as one that holds everything.

Few letters are used, so that few words are enough for segments that begin alike.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chatcache.cache.files.index import IndexRow, SegmentIndex
from chatcache.cache.files.store import SegmentStore
from tests.kvfakes import Bench, ByteBlock, ids_of

words = st.text("ab", min_size=1, max_size=7)
chats = st.lists(st.lists(words, min_size=1, max_size=4), min_size=1, max_size=12)


def commit(bench: Bench, parts: list[str], computed_from: int | None) -> None:
    ids = ids_of("".join(parts))
    ends = [len("".join(parts[: n + 1])) for n in range(len(parts))]
    if computed_from is not None:
        computed_from = min(computed_from, bench.cache.lookup(ids).num_tokens)
    bench.cache.commit(ids, ends, lambda start, stop: ByteBlock(ids, start, stop), computed_from)
    bench.cache.drain()


@settings(max_examples=120)
@given(
    said=chats,
    computed_from=st.none() | st.integers(0, 9),
    prompts=st.lists(st.text("ab", min_size=1, max_size=20), max_size=8),
)
def test_a_match_is_as_long_as_with_the_whole_tree(
    said: list[list[str]], computed_from: int | None, prompts: list[str]
) -> None:
    with tempfile.TemporaryDirectory(prefix="chatcache-test-") as directory:
        bench = Bench(Path(directory))
        for parts in said:
            commit(bench, parts, computed_from)
        prompts = [*prompts, *("".join(parts) + "b" for parts in said)]
        held = [bench.cache.lookup(ids_of(prompt)).num_tokens for prompt in prompts]
        bench.close()
        bench.reopen()
        found = [bench.cache.lookup(ids_of(prompt)).num_tokens for prompt in prompts]
        assert found == held
        assert bench.cache.check() == []
        bench.close()


def many_alike(directory: Path, num: int) -> Bench:
    """Chats whose questions all begin with the same twenty ids."""
    bench = Bench(directory, ram_budget=1 << 24, disk_budget=1 << 24)
    for number in range(num):
        bench.turn("System. ", f"Translate this, please: number {number:03}. ", "Yes. ")
    bench.close()
    return bench


def test_what_begins_alike_is_told_apart_without_reading_every_header(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = many_alike(tmp_path, 40)
    bench.reopen()
    loaded: list[str] = []
    real = SegmentStore.load
    monkeypatch.setattr(
        SegmentStore, "load", lambda store, name: loaded.append(name) or real(store, name)
    )
    text = "System. Translate this, please: number 017. Yes. "
    assert bench.cache.lookup(ids_of(text)).num_tokens == len(text)
    assert len(loaded) <= 5
    almost = "System. Translate this, please: number 01x. "
    assert bench.cache.lookup(ids_of(almost)).num_tokens == almost.index("x")
    bench.close()


def test_opening_reads_no_header_that_the_index_knows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = many_alike(tmp_path, 3)
    monkeypatch.setattr(SegmentStore, "load", lambda store, name: pytest.fail(name))
    bench.reopen()
    assert bench.cache.use()[1].num_segments == len(bench.files())
    bench.close()


def rows_of(**parents_and_words: tuple[str | None, int, str]) -> list[IndexRow]:
    """Segments by a one-letter name: parent, first position, ids."""
    return [
        IndexRow(
            segment_id=key(name),
            parent_id=None if parent is None else key(parent),
            start=start,
            stop=start + len(text),
            token_ids=ids_of(text),
            num_bytes=100,
            has_states=False,
        )
        for name, (parent, start, text) in parents_and_words.items()
    ]


def index_of(**parents_and_words: tuple[str | None, int, str]) -> SegmentIndex:
    """An index that is nowhere but in memory."""
    made = SegmentIndex(Path("nowhere"))
    made.add(rows_of(**parents_and_words))
    return made


def key(name: str) -> str:
    return name.rjust(32, "0")


def found(made: SegmentIndex, parent: str | None, prompt: str, extent: int) -> set[str]:
    parent_id = None if parent is None else key(parent)
    return {row.segment_id[-1] for row in made.children(parent_id, ids_of(prompt), extent)}


def test_every_segment_that_the_prompt_begins_with_is_brought_in() -> None:
    made = index_of(a=(None, 0, "s"), b=(None, 0, "sy"), c=(None, 0, "syst"), d=(None, 0, "x"))
    assert found(made, None, "system", 0) == {"a", "b", "c"}
    assert found(made, None, "sy", 0) == {"a", "b"}
    assert found(made, None, "z", 0) == set()
    made.remove([key("b")])
    assert found(made, None, "system", 0) == {"a", "c"}


def test_a_segment_that_was_forked_within_is_brought_in_for_its_child() -> None:
    """Two segments share as much of the prompt; the way on is from one of them."""
    made = index_of(
        a=(None, 0, "ab"), b=("a", 2, "cdefg"), c=("a", 2, "cdexy"), d=("c", 4, "az")
    )  # fmt: skip
    assert found(made, "a", "abcdaz", 2) == {"b", "c"}
    assert found(made, "c", "abcdaz", 4) == {"d"}
    assert found(made, "c", "abcdaz", 3) == set()


def test_what_is_added_later_is_found_as_well() -> None:
    made = index_of(a=(None, 0, "ab"), b=("a", 2, "cdefg"), c=("a", 2, "cdexy"))
    assert len(found(made, "a", "abcdzz", 2)) == 1
    made.add(rows_of(d=("b", 4, "zz"), e=("c", 4, "yy")))
    assert found(made, "a", "abcdzz", 2) == {"b", "c"}
    assert found(made, "b", "abcdzz", 4) == {"d"}


def test_a_segment_may_come_again_under_another_parent() -> None:
    made = index_of(a=(None, 0, "ab"), b=(None, 0, "x"), c=("a", 2, "cd"), d=("a", 2, "ce"))
    made.add(rows_of(d=("b", 1, "yz")))
    assert made.totals() == (4, 400)
    assert found(made, "b", "xyz", 1) == {"d"}
    assert found(made, "a", "abce", 2) == {"c"}
