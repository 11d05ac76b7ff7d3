"""The live KV on a device, with streams that are as slow as they may be, and with quick ones."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import initialize, invariant, precondition, rule

from chatcache.cache.segments import LostBlockError
from chatcache.cache.tensors.blocks import ResidentBlock, TensorBlock
from chatcache.cache.tensors.device_blocks import SlabBlock
from chatcache.cache.tensors.device_kv import DeviceKV
from tests.lazy_link import BYTES_PER_SECOND, LazyLink
from tests.unit.test_live_kv import (
    CPU,
    HEAD_DIM,
    NUM_HEADS,
    NUM_LAYERS,
    Given,
    PathMachine,
    append,
    has,
    holds,
    make_short,
    rows,
)

SLAB = 1 << 14
NAMES = [f"{kind}.{number}" for number in range(NUM_LAYERS) for kind in ("key", "value")]


def device_kv(link: LazyLink | None = None, budget: int = 1 << 22) -> DeviceKV:
    return DeviceKV(
        NUM_LAYERS,
        torch.float32,
        CPU,
        link=link or LazyLink(),
        slab_budget=budget,
        slab_bytes=SLAB,
    )


def read_file(live: DeviceKV, tokens: list[int], start: int) -> None:
    """As the reader does: fill the memory that the live KV gives, tensor by tensor."""
    for name in NAMES:
        run = rows(tokens, name[:-2], int(name[-1])).contiguous()
        memory = live.writable(name, "F32", (NUM_HEADS, len(tokens), HEAD_DIM), start)
        for piece, head in zip(memory, run, strict=True):
            piece[:] = memoryview(head.numpy()).cast("B")
        live.written(name, start)
    live.set_length(start + len(tokens))


def test_an_export_waits_for_nothing_and_arrives_when_it_is_read() -> None:
    live = device_kv()
    append(live, list(range(8)))
    block = live.export(2, 8)
    live.truncate(2)
    append(live, [90, 91, 92])  # where the copy still reads
    assert has(block, list(range(2, 8)))
    assert holds(live, [0, 1, 90, 91, 92])


def test_a_path_that_is_left_waits_for_no_slab(monkeypatch: pytest.MonkeyPatch) -> None:
    """While memory is locked for what it held, it goes on: what is still read is set aside."""
    live, may_go_on = device_kv(), threading.Event()
    carve = live.slabs.carve

    def slow(num_bytes: int) -> Any:
        may_go_on.wait()
        return carve(num_bytes)

    monkeypatch.setattr(live.slabs, "carve", slow)
    append(live, list(range(8)))
    block = live.export(2, 8)
    live.truncate(4)
    append(live, [90, 91, 92])
    may_go_on.set()
    assert has(block, list(range(2, 8)))
    assert holds(live, [0, 1, 2, 3, 90, 91, 92])


def test_what_is_appended_behind_does_not_wait_for_a_copy_down() -> None:
    live = device_kv()
    append(live, list(range(8)))
    block = live.export(0, 8)
    live.truncate(8)
    append(live, [8, 9])
    block._is_queued.wait()
    assert not block.has_arrived()


def test_layers_arrive_one_by_one() -> None:
    live = device_kv()
    append(live, list(range(8)))
    block = live.export(0, 8)
    live.truncate(0)
    live.load(block, 0, 0, 8)
    live.set_length(8)
    live.flush()
    states = rows([8], "key", 0)[None], rows([8], "value", 0)[None]
    with torch.inference_mode():
        live.layers[0].update(*states)
    assert torch.equal(live.layers[0].view("key")[0], rows(list(range(9)), "key", 0))
    assert live._arriving[0].arrival is None
    later = live._arriving[1].arrival
    assert later is not None
    assert not later.is_over()


def test_what_copies_took_is_told_when_they_have_ended() -> None:
    """By the clock of the device; queueing them takes next to nothing."""
    link = LazyLink()
    live = device_kv(link)
    append(live, list(range(8)))
    blocks = [live.export(0, 3), live.export(3, 8)]
    resident = live.reside(0, 8)
    live.truncate(0)
    for block, start, stop in ((blocks[0], 0, 3), (blocks[1], 3, 6)):
        live.load(block, start, start, stop)
        live.set_length(stop)
    live.flush()
    assert live.brought() == []
    assert holds(live, list(range(6)))
    (told,) = live.brought()
    num_bytes = 6 * NUM_HEADS * HEAD_DIM * 4 * len(NAMES)
    assert (told.source, told.num_bytes, told.num_runs) == ("ram", num_bytes, 2)
    assert told.seconds == pytest.approx(num_bytes / BYTES_PER_SECOND)
    live.truncate(0)
    live.load(resident, 0, 0, 8)
    live.set_length(8)
    live.flush()
    (told,) = live.brought()
    assert (told.source, told.num_bytes, told.num_runs) == ("vram", resident.num_bytes, 1)
    assert told.seconds > 0
    assert live.brought() == []


def test_copies_begin_when_the_model_has_computed_what_came_before() -> None:
    link = LazyLink()
    live = device_kv(link)
    append(live, list(range(8)))
    block = live.export(0, 8)
    assert has(block, list(range(8)))
    assert link.compute.num_waits == 1
    live.load(block, 0, 0, 8)
    live.flush()
    assert holds(live, list(range(8)))
    assert link.compute.num_waits == 2
    read_file(live, list(range(4)), 8)
    assert holds(live, [*range(8), *range(4)])
    assert link.compute.num_waits == 2 + len(NAMES)


def test_what_is_read_beyond_the_end_does_not_come_over_what_is_computed_there() -> None:
    live = device_kv()
    read_file(live, list(range(8)), 0)
    live.set_length(5)
    append(live, [50, 51])
    assert holds(live, [0, 1, 2, 3, 4, 50, 51])


def test_longer_buffers_get_what_is_on_its_way(monkeypatch: pytest.MonkeyPatch) -> None:
    make_short(monkeypatch)
    live = device_kv()
    read_file(live, list(range(8)), 0)
    live.reserve(100)
    assert holds(live, list(range(8)))


def test_memory_of_a_block_that_is_given_up_is_not_used_before_its_copies_have_ended() -> None:
    live = device_kv(budget=0)
    append(live, list(range(8)))
    block: SlabBlock | None = live.export(0, 8)
    assert block is not None
    block._is_queued.wait()
    block = None  # while its content comes down
    live._exports.clear()
    live.truncate(0)
    read_file(live, list(range(20, 28)), 0)
    live._down.mark().wait()
    assert holds(live, list(range(20, 28)))
    block = live.export(0, 8)
    assert has(block, list(range(20, 28)))
    live.truncate(0)
    live.load(block, 0, 0, 8)
    live.set_length(8)
    live.flush()
    block = None  # while its content goes up
    live._exports.clear()
    read_file(live, list(range(60, 68)), 8)
    assert holds(live, [*range(20, 28), *range(60, 68)])


def without_room(runs: Any, dim: int) -> Any:
    raise torch.OutOfMemoryError("CUDA out of memory")


@pytest.mark.parametrize("has_room", [True, False])
def test_runs_of_several_blocks_come_together(
    has_room: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not has_room:
        monkeypatch.setattr(torch, "cat", without_room)
    live = device_kv()
    append(live, list(range(20)))
    blocks = [
        (live.reside(start, start + 4) if is_there else live.export(start, start + 4), start)
        for start, is_there in zip(range(0, 20, 4), (True, True, False, True, False), strict=True)
    ]
    live.truncate(0)
    for block, start in blocks:
        live.load(block, start, start, start + 4)
        live.set_length(start + 4)
    read_file(live, [20, 21], 20)
    live.flush()
    assert holds(live, list(range(22)))


def test_a_file_is_read_by_way_of_slabs_and_then_held_there() -> None:
    link = LazyLink()
    live = device_kv(link)
    append(live, [5])
    read_file(live, list(range(1, 9)), 1)
    block = live.lend(1, 9)
    assert isinstance(block, SlabBlock)
    assert has(block, list(range(1, 9)))
    assert live.lend(1, 9) is None
    assert holds(live, [5, *range(1, 9)])
    assert link.num_pins == 1


def test_what_was_read_is_not_held_where_the_slabs_are_full() -> None:
    live = device_kv(budget=256)
    read_file(live, list(range(8)), 0)
    assert live.lend(0, 8) is None
    assert holds(live, list(range(8)))


def test_a_run_that_is_no_longer_live_cannot_be_lent() -> None:
    live = device_kv()
    read_file(live, list(range(8)), 0)
    live.truncate(4)
    assert live.lend(0, 8) is None


def test_a_tensor_of_another_model_is_refused() -> None:
    live = device_kv()
    append(live, [1])
    with pytest.raises(ValueError, match="the model wants"):
        live.writable("key.0", "F32", (NUM_HEADS + 1, 4, HEAD_DIM), 0)
    with pytest.raises(ValueError, match="the model wants"):
        live.writable("key.0", "BF16", (NUM_HEADS, 4, HEAD_DIM), 0)
    with pytest.raises(ValueError, match="not a tensor of this model"):
        live.writable("key.9", "F32", (NUM_HEADS, 4, HEAD_DIM), 0)


def test_a_copy_that_failed_says_so_to_whoever_reads_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    live = device_kv()
    append(live, list(range(8)))

    def fail(num_bytes: int) -> Any:
        raise MemoryError("no memory at all")

    monkeypatch.setattr(live.slabs, "carve", fail)
    block = live.export(0, 8)
    with pytest.raises(LostBlockError, match="no memory at all"):
        block.sources()
    with pytest.raises(LostBlockError):
        live.load(block, 0, 0, 8)
    live.truncate(0)
    append(live, [3])
    assert holds(live, [3])


def test_without_room_for_a_contiguous_copy_heads_go_one_by_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    live = device_kv()
    append(live, list(range(8)))
    copy: Callable[..., None] = live._down.copy

    def only_heads(target: torch.Tensor, source: torch.Tensor) -> None:
        if source.dim() == 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        copy(target, source)

    monkeypatch.setattr(live._down, "copy", only_heads)
    assert has(live.export(0, 8), list(range(8)))


class DeviceAndGiven(PathMachine):
    """Any order of what turns do. Slabs are short of room."""

    live: DeviceKV

    @initialize(is_eager=st.booleans(), budget=st.sampled_from([0, SLAB, 1 << 22]))
    def begin(self, is_eager: bool, budget: int) -> None:
        self.live = self.new_live(budget, is_eager=is_eager)
        append(self.live, [0])
        self.live.truncate(0)

    def new_live(self, budget: int, *, is_eager: bool) -> DeviceKV:
        return device_kv(LazyLink(is_eager=is_eager), budget)

    @precondition(lambda self: self.path)
    @rule(share=st.floats(0, 0.9), is_resident=st.booleans())
    def give(self, share: float, is_resident: bool) -> None:
        start, stop = int(share * len(self.path)), len(self.path)
        give: Callable[..., Any] = self.live.reside if is_resident else self.live.export
        self.given.append(Given(give(start, stop), start, self.path[:stop]))

    @precondition(lambda self: self.given)
    @rule(data=st.data(), share=st.floats(0, 1), is_read=st.booleans(), rest=st.integers(0, 3))
    def load(self, data: st.DataObject, share: float, is_read: bool, rest: int) -> None:
        """A part of what is held, behind the tokens before it; by way of a file, if so, of which
        the last tokens may not be wanted."""
        found = self.any_given(data)
        start = found.start + int(share * (len(found.path) - found.start - 1))
        if self.path[:start] != found.path[:start]:
            return
        self.live.truncate(start)
        if is_read:
            read_file(self.live, found.path[start:], start)
            lent = self.live.lend(start, len(found.path))
            if lent is not None:
                self.given.append(Given(lent, start, found.path))
            self.path = found.path[: max(start, len(found.path) - rest)]
            self.live.set_length(len(self.path))
        else:
            self.live.load(found.block, found.start, start, len(found.path))
            self.live.set_length(len(found.path))
            self.live.flush()
            self.path = found.path

    @precondition(lambda self: self.given)
    @rule(data=st.data())
    def look(self, data: st.DataObject) -> None:
        found = self.any_given(data)
        tokens = found.path[found.start :]
        if isinstance(found.block, ResidentBlock):
            for name, tensor in found.block.tensors.items():
                assert torch.equal(tensor.cpu(), rows(tokens, name[:-2], int(name[-1])))
        else:
            assert has(found.block, tokens)

    @rule()
    def look_at_live(self) -> None:
        assert holds(self.live, self.path)

    @invariant()
    def slabs_are_sound(self) -> None:
        if hasattr(self, "live"):
            assert self.live.slabs.check() == []

    def teardown(self) -> None:
        for found in self.given:
            block: TensorBlock = found.block
            tensors = block.tensors
            for name, tensor in tensors.items():
                tokens = found.path[found.start :]
                assert torch.equal(tensor.cpu(), rows(tokens, name[:-2], int(name[-1])))
        super().teardown()


TestDeviceAndGiven = DeviceAndGiven.TestCase
TestDeviceAndGiven.settings = settings(max_examples=60, stateful_step_count=25, deadline=None)
