"""The tree as it is shown, and its last changes: noted where they are decided, and bounded."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from chatcache.cache.book.events import MAX_EVENTS
from chatcache.cache.book.policy import TierPolicy
from chatcache.cache.files.pins import PinBook
from chatcache.cache.inspect import CacheInspector
from chatcache.cache.views import TreeEdge, TreeEvent, TreeShape
from chatcache.token_ids import TokenIds
from tests.kvfakes import BYTES_PER_TOKEN, Bench, ids_of

SYSTEM = "You are kind. "
A = (SYSTEM, "Hello! ", "Hi. ")
B = (SYSTEM, "Help me. ", "Yes. ")


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Callable[..., Bench]]:
    made = []

    def bench(**options: object) -> Bench:
        made.append(Bench(tmp_path, **options))
        return made[-1]

    yield bench
    for opened in made:
        opened.close()


def text_of(ids: TokenIds) -> str:
    return "".join(map(chr, ids))


def drawn(shape: TreeShape) -> list[tuple[str, str]]:
    """The text of each edge, and that of the one above it."""
    texts = [text_of(edge.ids) for edge in shape.edges]
    return [(texts[e.parent] if e.parent >= 0 else "", texts[n]) for n, e in enumerate(shape.edges)]


def told(bench: Bench, since: int = 0) -> list[tuple[str, str | None, int, int]]:
    events = bench.cache.tree(num_events=MAX_EVENTS).events
    return [(e.change, e.tier, e.start, e.stop) for e in events if e.number > since]


def last(bench: Bench) -> TreeEvent:
    return bench.cache.tree(num_events=1).events[0]


def test_two_chats_share_an_edge_that_is_split(make: Callable[..., Bench]) -> None:
    bench = make(is_spilling=False)
    bench.turn(*A)
    assert told(bench) == [
        ("inserted", "ram", 0, 14),
        ("inserted", "ram", 14, 21),
        ("inserted", "ram", 21, 25),
    ]
    number = last(bench).number
    bench.turn(*B)
    assert told(bench, number) == [
        ("hit", "ram", 0, 17),  # `Hel`, of a segment that stays whole
        ("split", None, 14, 21),
        ("inserted", "ram", 17, 23),
        ("inserted", "ram", 23, 28),
    ]
    split = next(e for e in bench.cache.tree(num_events=9).events if e.change == "split")
    assert (split.cut, text_of(split.tail)) == (17, "Hel")
    shape = bench.cache.tree(ids_of("".join(B)))
    assert drawn(shape) == [
        ("", SYSTEM),
        (SYSTEM, "Hel"),
        ("Hel", "lo! "),
        ("lo! ", "Hi. "),
        ("Hel", "p me. "),
        ("p me. ", "Yes. "),
    ]
    assert [edge.num_below for edge in shape.edges] == [2, 2, 1, 1, 1, 1]
    assert [edge.is_live for edge in shape.edges] == [True, True, False, False, True, True]
    assert [edge.hits for edge in shape.edges] == [1, 1, 1, 0, 0, 0]
    assert sum(edge.num_bytes for edge in shape.edges) == 36 * BYTES_PER_TOKEN
    assert {edge.tiers for edge in shape.edges} == {("ram",)}


def test_what_ram_gives_up_is_gone_or_spilled_before(make: Callable[..., Bench]) -> None:
    bench = make(ram_budget=30 * BYTES_PER_TOKEN, policy=TierPolicy(spill="pressure"))
    bench.turn(*A)
    number = last(bench).number
    bench.turn("Something else ", "entirely. ", "Well. ")
    changes = told(bench, number)
    assert ("spilled", "disk", 21, 25) in changes
    assert changes.index(("spilled", "disk", 21, 25)) < changes.index(("evicted", "ram", 21, 25))
    assert not any(event.is_gone for event in bench.cache.tree(num_events=99).events)
    number = last(bench).number
    assert bench.turn(*A, "More. ", "Yes. ") == 25
    assert ("hit", "disk", 0, 25) in told(bench, number)
    assert ("restored", "disk", 21, 25) in told(bench, number)


def test_without_a_disk_the_event_keeps_what_the_tree_has_lost(make: Callable[..., Bench]) -> None:
    bench = make(ram_budget=30 * BYTES_PER_TOKEN, is_spilling=False)
    bench.turn(*A)
    bench.turn("Something else ", "entirely. ", "Well. ")
    gone = [e for e in bench.cache.tree(num_events=99).events if e.is_gone]
    assert [text_of(event.ids) for event in gone] == ["Hi. ", "Hello! ", SYSTEM, "Well. "]
    assert gone[1].parent == gone[2].segments[0]


def test_a_file_that_is_gone_or_damaged_is_given_up(make: Callable[..., Bench]) -> None:
    bench = make()
    bench.turn(*A)
    bench.close()
    bench.reopen()
    for path in bench.files():
        path.write_bytes(path.read_bytes()[:-40] + bytes(40))
    bench.turn(*A, "More. ", "Yes. ")
    assert ("given_up", None, 0, 14) in told(bench)
    assert ("inserted", "disk", 0, 14) in told(bench)  # it was found there before it was read


def test_no_words_of_what_was_deleted_stay_in_the_events(make: Callable[..., Bench]) -> None:
    bench = make()
    bench.turn(*A)
    bench.cache.forget_deleted(is_all=True)
    assert bench.cache.tree(num_events=MAX_EVENTS).events == ()


def test_events_are_bounded_and_numbered_on(make: Callable[..., Bench]) -> None:
    bench = make(is_spilling=False)
    for number in range(MAX_EVENTS // 2):
        bench.turn("Again: ", f"{number:04}. ", "Yes. ")
    events = bench.cache.tree(num_events=10_000).events
    assert len(events) == MAX_EVENTS
    numbers = [event.number for event in events]
    assert numbers == list(range(numbers[0], numbers[0] + MAX_EVENTS))
    assert numbers[0] > 1
    assert bench.cache.tree(num_events=3).events == events[-3:]


def test_the_tree_from_disk_alone_is_the_tree_of_the_engine(
    make: Callable[..., Bench], tmp_path: Path
) -> None:
    bench = make()
    bench.turn(*A)
    bench.turn(*B)
    bench.turn(*A, "More. ", "Yes. ")
    PinBook(bench.cache._disk.store.directory).add([bench.cache.rows()[0].segment_id])
    with_engine = bench.cache.tree()
    bench.close()
    without = CacheInspector(tmp_path, 1 << 20, 1 << 20).tree("ns")
    assert sorted(drawn(without)) == sorted(drawn(with_engine))
    assert {edge.tiers for edge in without.edges} == {("disk",)}
    assert {edge.tiers for edge in with_engine.edges} == {("ram", "disk")}
    assert without.events == ()
    assert sum(edge.is_pinned for edge in without.edges) >= 1
    bench.reopen()  # a new process, which no prompt has asked yet
    assert drawn(bench.cache.tree()) == drawn(without)
    assert len(bench.cache._book.entries()) == 0


def test_of_very_many_files_the_last_written_are_shown(
    make: Callable[..., Bench], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("chatcache.cache.tiers.tree.MAX_UNREACHED", 4)
    bench = make()
    for number in range(4):
        bench.turn(f"{number}: a chat ", "Hello. ", "Hi. ")
    bench.close()
    bench.reopen()
    shape = bench.cache.tree()
    edges: tuple[TreeEdge, ...] = shape.edges
    assert [edge.start for edge in edges] == [0, 10, 17]  # the fourth row hangs in the air
    assert shape.num_more == 9
