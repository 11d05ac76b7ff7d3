"""The VRAM tier: what stays on the device, what goes, and that it costs time at most."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from chatcache.backends.local.run.live_context import LivePath
from chatcache.cache.book.policy import TierPolicy
from chatcache.cache.prefix import PrefixCache
from chatcache.cache.segments import LostBlockError, TensorSource
from chatcache.cache.tensors.live_kv import LiveKV
from chatcache.errors import UnavailableError
from chatcache.frontend.lens.tree_replay import after_event
from chatcache.token_ids import TokenIds
from tests.kvfakes import BYTES_PER_TOKEN, FIELDS, ByteBlock, ByteSink

NUM_TOKENS = 10
RUN_BYTES = NUM_TOKENS * BYTES_PER_TOKEN
FIRST, SECOND, THIRD = (TokenIds(range(n, n + NUM_TOKENS)) for n in (0, 100, 200))


@dataclass
class Time:
    now: float = 1000.0

    def __call__(self) -> float:
        self.now += 1
        return self.now


@pytest.fixture
def time() -> Time:
    return Time()


@pytest.fixture
def cache(tmp_path: Path, time: Time) -> Iterator[PrefixCache]:
    made = open_cache(tmp_path, time)
    yield made
    made.close()


def open_cache(directory: Path, time: Time, **options: Any) -> PrefixCache:
    budgets = {"ram_budget": 1 << 20, "disk_budget": 1 << 20, "vram_budget": 2 * RUN_BYTES}
    cache = PrefixCache(directory, "ns", clock=time, **{**budgets, **options})
    cache.open(FIELDS)
    return cache


def tell(cache: PrefixCache, ids: TokenIds, boundaries: list[int] | None = None) -> None:
    cache.commit(ids, boundaries or [len(ids)], lambda start, stop: ByteBlock(ids, start, stop))
    cache.drain()


def leave(cache: PrefixCache, ids: TokenIds, num_staying: int = 0) -> None:
    cache.vram.keep(
        ids, num_staying, lambda start, stop: ByteBlock(ids, start, stop), BYTES_PER_TOKEN
    )


def restored(cache: PrefixCache, ids: TokenIds) -> tuple[list[tuple[int, str]], ByteSink]:
    sink = ByteSink()
    with cache.acquire(ids, len(ids)) as lease:
        result = cache.restore(lease, sink, 0)
    return [(run.stop, run.tier) for run in result.runs], sink


def resident(cache: PrefixCache) -> list[int]:
    """The first ids of the segments on the device."""
    found = cache._book.in_vram()
    return sorted(entry.token_ids[0] for entry in found)


def test_a_path_that_is_left_stays_on_the_device(cache: PrefixCache) -> None:
    tell(cache, FIRST)
    leave(cache, FIRST)
    runs, sink = restored(cache, FIRST)
    assert runs == [(NUM_TOKENS, "vram")]
    assert sink.is_true_to(FIRST)
    assert (cache.lookup(FIRST).ram_tokens, cache.lookup(FIRST).disk_tokens) == (NUM_TOKENS, 0)
    (row,) = cache.rows()
    assert (row.in_vram, row.in_ram, row.on_disk) == (True, True, True)
    use = cache.vram.use()
    assert use is not None
    assert (use.num_bytes, use.num_segments) == (RUN_BYTES, 1)
    assert cache.check() == []


def test_what_goes_on_behind_the_cut_is_kept_and_nothing_before_it(cache: PrefixCache) -> None:
    whole = FIRST + SECOND
    tell(cache, whole, [NUM_TOKENS, len(whole)])
    leave(cache, whole, NUM_TOKENS)
    assert resident(cache) == [100]
    leave(cache, whole, NUM_TOKENS - 1)
    assert resident(cache) == [0, 100]


def test_a_run_that_no_segment_holds_stays_nowhere(cache: PrefixCache) -> None:
    tell(cache, FIRST)
    leave(cache, FIRST[:5])  # a part of a segment
    leave(cache, THIRD)
    assert resident(cache) == []


def test_the_least_recently_used_goes_first_and_what_is_held_never(cache: PrefixCache) -> None:
    for ids in (FIRST, SECOND, THIRD):
        tell(cache, ids)
    leave(cache, FIRST)
    leave(cache, SECOND)
    with cache.acquire(FIRST, NUM_TOKENS):
        leave(cache, THIRD)
        assert resident(cache) == [0, 200]
        with cache.acquire(THIRD, NUM_TOKENS):
            leave(cache, SECOND)
    assert resident(cache) == [0, 200]
    assert cache.check() == []


def test_more_than_the_budget_is_not_kept(cache: PrefixCache) -> None:
    long = TokenIds(range(300, 300 + 2 * NUM_TOKENS + 1))
    tell(cache, FIRST)
    tell(cache, long)
    leave(cache, FIRST)
    leave(cache, long)
    assert resident(cache) == [0]


def test_what_takes_more_there_than_in_its_block_counts_as_that(cache: PrefixCache) -> None:
    """As integers do, which are numbers again on the device."""
    tell(cache, FIRST)
    cache.vram.keep(FIRST, 0, lambda start, stop: pytest.fail("no room"), 3 * BYTES_PER_TOKEN)
    assert resident(cache) == []


def test_a_device_without_room_gives_up_what_is_there(cache: PrefixCache) -> None:
    tell(cache, FIRST)
    tell(cache, SECOND)
    leave(cache, FIRST)

    def fail(start: int, stop: int) -> ByteBlock:
        raise torch.OutOfMemoryError("CUDA out of memory")

    cache.vram.keep(SECOND, 0, fail, BYTES_PER_TOKEN)
    assert resident(cache) == []
    assert restored(cache, FIRST)[0] == [(NUM_TOKENS, "ram")]


def test_ram_that_is_short_leaves_the_device_alone(tmp_path: Path, time: Time) -> None:
    cache = open_cache(tmp_path, time, ram_budget=RUN_BYTES)
    tell(cache, FIRST)
    leave(cache, FIRST)
    tell(cache, SECOND)
    entry = next(entry for entry in cache._book.entries() if entry.token_ids == FIRST)
    assert entry.block is None
    assert restored(cache, FIRST)[0] == [(NUM_TOKENS, "vram")]
    cache.vram.give_up()
    assert restored(cache, FIRST)[0] == [(NUM_TOKENS, "disk")]
    cache.close()


def test_what_lies_on_the_device_alone_is_gone_with_it(tmp_path: Path, time: Time) -> None:
    told: list[str] = []
    cache = open_cache(
        tmp_path,
        time,
        ram_budget=3 * RUN_BYTES // 2,
        is_spilling=False,
        on_event=lambda kind, text: told.append(text),
    )
    tell(cache, FIRST)
    leave(cache, FIRST)
    tell(cache, SECOND)
    assert restored(cache, FIRST)[0] == [(NUM_TOKENS, "vram")]
    assert cache.check() == []
    cache.vram.give_up()
    assert cache.lookup(FIRST).num_tokens == 0
    assert cache.check() == []
    assert told == ["evicted 10 tokens (VRAM)"]
    cache.close()


def test_what_was_not_used_in_time_is_not_on_the_device_either(tmp_path: Path, time: Time) -> None:
    cache = open_cache(tmp_path, time, policy=TierPolicy(ram_ttl=100))
    tell(cache, FIRST)
    leave(cache, FIRST)
    time.now += 1000
    assert restored(cache, FIRST)[0] == [(NUM_TOKENS, "disk")]
    assert resident(cache) == []
    cache.close()


def test_what_is_deleted_leaves_the_device(cache: PrefixCache) -> None:
    tell(cache, FIRST)
    leave(cache, FIRST)
    for path in cache._disk.store.paths():
        path.unlink()
    cache.forget_deleted(is_all=False)
    assert resident(cache) == []
    assert cache.lookup(FIRST).num_tokens == 0


def test_without_a_budget_there_is_no_such_tier(tmp_path: Path, time: Time) -> None:
    cache = open_cache(tmp_path, time, vram_budget=0)
    tell(cache, FIRST)
    leave(cache, FIRST)
    assert resident(cache) == []
    assert cache.vram.use() is None
    cache.close()


class LostBlock(ByteBlock):
    """The copy into it failed."""

    def sources(self) -> list[TensorSource]:
        raise LostBlockError("no memory at all")


class LosingSink(ByteSink):
    def load(self, block: ByteBlock, at: int, start: int, stop: int) -> None:
        if isinstance(block, LostBlock):
            raise LostBlockError("no memory at all")
        super().load(block, at, start, stop)


@pytest.mark.parametrize("is_spilling", [False, True])
def test_a_block_without_content_is_a_miss(tmp_path: Path, time: Time, is_spilling: bool) -> None:
    told: list[str] = []
    cache = open_cache(
        tmp_path, time, is_spilling=is_spilling, on_event=lambda kind, text: told.append(text)
    )
    cache.commit(FIRST, [4], lambda start, stop: ByteBlock(FIRST, start, stop))
    cache.commit(FIRST, [NUM_TOKENS], lambda start, stop: LostBlock(FIRST, start, stop))
    cache.drain()
    sink = LosingSink()
    with cache.acquire(FIRST, NUM_TOKENS) as lease:
        result = cache.restore(lease, sink, 0)
    assert (result.num_tokens, sink.num_tokens) == (4, 4)
    assert sink.is_true_to(FIRST[:4])
    assert cache.lookup(FIRST).num_tokens == 4
    assert cache.check() == []
    assert any("no memory at all" in text for text in told) == is_spilling
    cache.close()


class Full:
    """A device that has room for a step only when others have given way."""

    def __init__(self) -> None:
        self.has_room = False
        self.num_calls = 0

    def give_way(self) -> bool:
        could, self.has_room = not self.has_room, True
        return could

    def __call__(self, cache: Any, token_ids: Any, start: int) -> torch.Tensor:
        self.num_calls += 1
        for layer in cache.layers:
            states = torch.zeros(1, 1, len(token_ids), 2)
            layer.update(states, states)
            if not self.has_room:
                cause = torch.OutOfMemoryError("CUDA out of memory")
                raise UnavailableError("There is not enough memory.", "") from cause
        return torch.zeros(1, 3)


def test_a_step_without_memory_is_tried_again_once_residents_gave_way() -> None:
    full = Full()
    live = LiveKV(2, torch.float32, torch.device("cpu"))
    path = LivePath(full, live)  # type: ignore[arg-type]
    with pytest.raises(UnavailableError):
        path.compute([1, 2], 0)
    live.truncate(0)
    path.give_way = full.give_way
    with torch.inference_mode():
        path.compute([1, 2], 0)
    assert [layer.num_tokens for layer in live.growing] == [2, 2]
    full.has_room = False
    path.give_way = lambda: False
    with pytest.raises(UnavailableError):
        path.compute([3], 2)
    assert full.num_calls == 4


def test_its_changes_are_among_those_of_the_tree(cache: PrefixCache) -> None:
    tell(cache, FIRST)
    leave(cache, FIRST)
    (edge,) = cache.tree().edges
    assert edge.tiers == ("vram", "ram", "disk")
    cache.vram.give_up()
    shape = cache.tree(num_events=9)
    told = [(event.change, event.tier) for event in shape.events]
    assert told == [
        ("inserted", "ram"),
        ("spilled", "disk"),
        ("restored", "vram"),
        ("evicted", "vram"),
    ]
    assert [after_event(shape, n).edges[0].tiers for n in range(4)] == [
        ("ram",),
        ("ram", "disk"),
        ("vram", "ram", "disk"),
        ("ram", "disk"),
    ]
