"""Pins, times to live, spill modes and the free-space floor, on real files with a clock by hand."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from chatcache.cache.book.policy import SpillMode, TierPolicy
from chatcache.cache.files.pins import PinBook
from chatcache.cache.files.store import SegmentStore
from tests.kvfakes import BYTES_PER_TOKEN, Bench, ByteBlock, ids_of

SYSTEM, HELLO, HI = "You are helpful. ", "Hello! ", "Hi! "
HISTORY = SYSTEM + HELLO + HI
HOUR = 3600.0
MakeBench = Callable[..., Bench]


class Clock:
    def __init__(self) -> None:
        self.now = 1_000_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def make(tmp_path: Path, clock: Clock) -> Iterator[MakeBench]:
    made: list[Bench] = []

    def make_bench(**options: Any) -> Bench:
        made.append(Bench(tmp_path, clock=clock, **options))
        return made[-1]

    yield make_bench
    for bench in made:
        bench.close()


def held(bench: Bench, text: str = HISTORY) -> tuple[int, int]:
    lookup = bench.cache.lookup(ids_of(text))
    return lookup.ram_tokens, lookup.disk_tokens


def pin_all(bench: Bench) -> PinBook:
    book = PinBook(bench.directory / "segments" / "ns")
    book.add(row.segment_id for row in bench.cache.rows())
    return book


def warnings(bench: Bench) -> list[str]:
    return [text for kind, text in bench.events if kind == "warning"]


# Pins


def test_pins_survive_a_restart_and_shield_from_both_budgets(make: MakeBench) -> None:
    bench = make()
    bench.turn(SYSTEM, HELLO, HI)
    book = pin_all(bench)
    bench.close()
    bench = make(ram_budget=1, disk_budget=500)
    assert all(row.is_pinned for row in bench.cache.rows())
    bench.turn("x" * 30, "y" * 10)
    assert held(bench) == (0, len(HISTORY))
    assert [text.split(" take ")[0] for text in warnings(bench)] == ["pinned segments"]
    book.remove(row.segment_id for row in bench.cache.rows())
    bench.turn("z" * 30, "y" * 10)
    assert held(bench) == (0, 0)
    assert len(bench.files()) == 0


def test_a_pin_of_another_process_is_seen_while_running(make: MakeBench) -> None:
    bench = make(ram_budget=60 * BYTES_PER_TOKEN, is_spilling=False)
    bench.directory.joinpath("segments", "ns").mkdir(parents=True)
    bench.turn(SYSTEM, HELLO, HI)
    pin_all(bench)
    bench.turn(SYSTEM, "x" * 30, "y" * 10)
    assert held(bench) == (len(HISTORY), 0)
    assert {row.is_pinned for row in bench.cache.rows()} >= {True}


def test_pins_are_private_and_add_up(tmp_path: Path) -> None:
    book, other = PinBook(tmp_path), PinBook(tmp_path)
    assert book.add(["a", "b"]) == 2
    assert other.add(["b", "c"]) == 1
    assert book.read() == {"a", "b", "c"}
    assert book.remove(["a", "x"]) == 1
    assert other.read() == {"b", "c"}
    assert (tmp_path / "pins.json").stat().st_mode & 0o077 == 0


def test_a_pin_file_that_cannot_be_read_leaves_the_last_word(tmp_path: Path) -> None:
    book = PinBook(tmp_path)
    book.add(["a"])
    (tmp_path / "pins.json").write_text("{half")
    assert book.read() == {"a"}
    (tmp_path / "pins.json").write_text(json.dumps({"segments": 3}))
    assert book.read() == {"a"}
    assert PinBook(tmp_path).read() == frozenset()


def test_other_models_pins_are_honoured(make: MakeBench, tmp_path: Path, clock: Clock) -> None:
    bench = make()
    bench.turn(SYSTEM, HELLO, HI)
    pin_all(bench)
    bench.close()
    moved = tmp_path / "segments" / "other"
    (tmp_path / "segments" / "ns").rename(moved)
    clock.now += HOUR
    bench = make(disk_budget=1200)
    bench.turn("x" * 10, "y" * 10)
    assert len(list(moved.glob("*.safetensors"))) == 3


# Times to live


def test_what_is_over_is_not_used_and_is_given_up(make: MakeBench, clock: Clock) -> None:
    bench = make(policy=TierPolicy(ram_ttl=HOUR, disk_ttl=HOUR))
    bench.turn(SYSTEM, HELLO, HI)
    clock.now += HOUR - 1
    assert held(bench) == (len(HISTORY), 0)
    clock.now += 1
    assert held(bench) == (0, 0)
    assert bench.turn(SYSTEM, HELLO, HI, "?", "!") == 0
    assert sorted(file.start for file in bench.cache.expired) == [0, 17, 24]
    assert held(bench, HISTORY + "?!") == (len(HISTORY) + 2, 0)
    bench.close()
    bench.reopen()
    assert held(bench, HISTORY + "?!") == (0, len(HISTORY) + 2)


def test_a_turn_is_kept_also_where_its_history_is_given_up_meanwhile(
    make: MakeBench, clock: Clock
) -> None:
    """As the writer's thread does, when it makes room while K and V are copied out."""
    bench = make(policy=TierPolicy(ram_ttl=HOUR, disk_ttl=HOUR))
    bench.turn(SYSTEM, HELLO, HI)
    path = ids_of(HISTORY + "On. Yes.")

    def export(start: int, stop: int) -> ByteBlock:
        if start == len(HISTORY):
            clock.now += HOUR
            assert held(bench) == (0, 0)
            with bench.cache.acquire(path, len(HISTORY)) as lease:
                assert lease.num_tokens == 0
        return ByteBlock(path, start, stop)

    bench.cache.commit(path, [len(HISTORY + "On. "), len(HISTORY + "On. Yes.")], export)
    assert bench.cache.check() == []
    assert held(bench, HISTORY + "On. Yes.") == (len(HISTORY + "On. Yes."), 0)


def test_use_keeps_the_whole_path_alive(make: MakeBench, clock: Clock) -> None:
    bench = make(policy=TierPolicy(ram_ttl=HOUR, disk_ttl=HOUR))
    bench.turn(SYSTEM, HELLO, HI)
    bench.turn(SYSTEM, "other ", "answer")
    clock.now += HOUR / 2
    assert bench.turn(SYSTEM, HELLO, HI, "?", "!") == len(HISTORY)
    clock.now += HOUR / 2
    bench.turn("new", "chat")
    assert held(bench) == (len(HISTORY), 0)
    assert held(bench, SYSTEM + "other answer") == (len(SYSTEM), 0)


def test_memory_is_cleared_before_the_disk(make: MakeBench, clock: Clock) -> None:
    bench = make(policy=TierPolicy(ram_ttl=60, disk_ttl=HOUR))
    bench.turn(SYSTEM, HELLO, HI)
    clock.now += 60
    assert held(bench) == (0, len(HISTORY))
    bench.turn("new", "chat")
    assert bench.cache.use()[0].num_segments == 2
    assert bench.turn(SYSTEM, HELLO, HI, "?", "!") == len(HISTORY)


def test_times_count_over_restarts_and_for_other_models(make: MakeBench, clock: Clock) -> None:
    bench = make()
    bench.turn(SYSTEM, HELLO, HI)
    bench.close()
    (bench.directory / "segments" / "ns").rename(bench.directory / "segments" / "other")
    bench = make()
    bench.turn("another ", "chat")
    bench.close()
    clock.now += 2 * HOUR
    bench = make(policy=TierPolicy(disk_ttl=HOUR))
    assert held(bench) == (0, 0)
    assert list(bench.directory.glob("segments/*/*.safetensors")) == []
    assert len(bench.cache.expired) == 2


def test_a_look_deletes_nothing(make: MakeBench, clock: Clock) -> None:
    make().turn(SYSTEM, HELLO, HI)
    clock.now += 2 * HOUR
    bench = make(is_spilling=False, policy=TierPolicy(disk_ttl=HOUR))
    assert held(bench) == (0, 0)
    assert len(bench.files()) == 3


@pytest.mark.parametrize("needs_states", [False, True])
def test_what_is_over_is_given_up_once_where_nothing_is_deleted(
    make: MakeBench, clock: Clock, needs_states: bool
) -> None:
    writing = make(needs_states=needs_states)
    ids = ids_of(HISTORY)
    writing.cache.commit(
        ids,
        [len(SYSTEM), len(HISTORY)],
        lambda start, stop: ByteBlock(ids, start, stop, with_states=needs_states),
    )
    writing.cache.drain()
    clock.now += 2 * HOUR
    looking = make(is_spilling=False, needs_states=needs_states, policy=TierPolicy(disk_ttl=HOUR))
    for _ in range(2):
        with looking.cache.acquire(ids, len(ids)) as lease:
            assert lease.num_tokens == 0
    assert len(looking.cache.expired) <= 2
    assert len(looking.files()) == 2


def test_pinned_segments_have_no_end(make: MakeBench, clock: Clock) -> None:
    bench = make(policy=TierPolicy(ram_ttl=60, disk_ttl=HOUR))
    bench.turn(SYSTEM, HELLO, HI)
    pin_all(bench)
    clock.now += 5 * HOUR
    assert bench.turn(SYSTEM, HELLO, HI, "?", "!") == len(HISTORY)


# Spill modes


@pytest.mark.parametrize(
    ("mode", "after_turn", "after_pressure", "after_close"),
    [("turn", 3, 5, 5), ("pressure", 0, 3, 3), ("exit", 0, 3, 5), ("never", 0, 0, 0)],
)
def test_when_segments_are_written(
    make: MakeBench, mode: SpillMode, after_turn: int, after_pressure: int, after_close: int
) -> None:
    bench = make(policy=TierPolicy(spill=mode), ram_budget=60 * BYTES_PER_TOKEN)
    bench.turn(SYSTEM, HELLO, HI)
    assert len(bench.files()) == after_turn
    bench.turn("x" * 30, "y" * 20)
    assert len(bench.files()) == after_pressure
    assert bench.cache.use()[0].num_bytes <= 54 * BYTES_PER_TOKEN
    bench.close()
    assert len(bench.files()) == after_close


def test_what_was_written_at_exit_is_found_again(make: MakeBench) -> None:
    bench = make(policy=TierPolicy(spill="exit"))
    bench.turn(SYSTEM, HELLO, HI)
    bench.close()
    bench.reopen()
    assert held(bench) == (0, len(HISTORY))


@pytest.mark.parametrize("mode", ["pressure", "exit"])
def test_all_is_written_at_once_when_asked(make: MakeBench, mode: SpillMode) -> None:
    bench = make(policy=TierPolicy(spill=mode))
    bench.turn(SYSTEM, HELLO, HI)
    assert bench.cache.spill() > 0
    bench.cache.drain()
    assert len(bench.files()) == 3
    bench.events.clear()
    assert bench.cache.spill() == 0
    assert bench.events == [("spilled", "everything that can be is on disk already")]
    bench.reopen()
    assert held(bench) == (0, len(HISTORY))


def test_one_segment_is_written_with_all_before_it(make: MakeBench) -> None:
    bench = make(policy=TierPolicy(spill="exit"))
    bench.turn(SYSTEM, HELLO, HI)
    middle = sorted(bench.cache.rows(), key=lambda row: row.start)[1]
    assert bench.cache.spill(middle.segment_id) > 0
    bench.cache.drain()
    assert len(bench.files()) == 2
    on_disk = {row.start for row in bench.cache.rows() if row.on_disk}
    assert on_disk == {0, middle.start}
    bench.events.clear()
    assert bench.cache.spill(middle.segment_id) == 0
    assert bench.cache.spill("unknown") == 0
    assert bench.events == [("spilled", "all of it that can be is on disk already")] * 2


def test_a_cache_that_never_spills_says_so(make: MakeBench) -> None:
    bench = make(policy=TierPolicy(spill="never"))
    bench.turn(SYSTEM, HELLO, HI)
    assert bench.cache.spill() == 0
    assert warnings(bench) == ["nothing is written to disk: that is switched off"]


# The floor


@pytest.fixture
def free(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Let the disk have so many bytes free, plus what is deleted of what was there."""

    def set_free(num_bytes: int) -> None:
        def used(store: SegmentStore) -> int:
            return sum(stamp.num_bytes for _, stamp in store.stamps())

        before: list[int] = []

        def free_bytes(store: SegmentStore) -> int:
            before.append(used(store))
            return num_bytes + before[0] - used(store)

        monkeypatch.setattr(SegmentStore, "free_bytes", free_bytes)

    return set_free


def test_old_segments_make_room_above_the_floor(
    make: MakeBench, free: Callable[[int], None], clock: Clock
) -> None:
    bench = make(policy=TierPolicy(disk_floor=10_000))
    bench.turn("old " * 10, "words " * 10)
    clock.now += 60
    free(10_000)
    bench.turn(HELLO, HI)
    assert warnings(bench) == []
    on_disk = [row for row in bench.cache.rows() if row.on_disk]
    assert [row.num_tokens for row in on_disk] == [len(HI), len(HELLO), 40]


def test_a_disk_at_its_floor_is_one_warning_and_no_loss(
    make: MakeBench, free: Callable[[int], None]
) -> None:
    bench = make(policy=TierPolicy(disk_floor=1 << 40))
    free(1 << 30)
    assert bench.turn(SYSTEM, HELLO, HI) == 0
    assert bench.turn(SYSTEM, HELLO, HI, "?", "!") == len(HISTORY)
    assert bench.files() == []
    (warning,) = warnings(bench)
    assert "would be left on the disk" in warning


def test_nothing_is_deleted_when_it_would_not_help(
    make: MakeBench, free: Callable[[int], None]
) -> None:
    bench = make(policy=TierPolicy(disk_floor=1 << 20))
    free(1 << 30)
    bench.turn(SYSTEM, HELLO, HI)
    free(0)
    bench.turn("x", "y")
    assert len(bench.files()) == 3
