"""Integers for a device, whose streams do everything as late as they may, against those for a CPU:
the same blocks, and the same numbers live."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from chatcache.cache.tensors import device_int8
from chatcache.cache.tensors.device_int8 import DeviceInt8KV
from chatcache.cache.tensors.int8 import Int8KV
from chatcache.cache.tensors.live_kv import LiveKV
from tests.lazy_link import LazyLink
from tests.unit.test_live_kv import CPU, NUM_LAYERS, append

TOKENS = list(range(20))


def device_kv() -> DeviceInt8KV:
    link = LazyLink()
    return DeviceInt8KV(
        NUM_LAYERS, torch.float32, CPU, link=link, slab_budget=1 << 22, slab_bytes=1 << 14
    )


@pytest.fixture
def pair() -> tuple[DeviceInt8KV, Int8KV]:
    made = device_kv(), Int8KV(NUM_LAYERS, torch.float32, CPU)
    for live in made:
        append(live, TOKENS)
    return made


def is_same(live: LiveKV, other: LiveKV) -> bool:
    return live.num_settled == other.num_settled and all(
        torch.equal(layer.view(kind), same.view(kind))
        for layer, same in zip(live.growing, other.growing, strict=True)
        for kind in ("key", "value")
    )


def test_blocks_and_what_is_live_are_the_same(pair: tuple[DeviceInt8KV, Int8KV]) -> None:
    ours, plain = pair
    for start, stop in [(0, 7), (7, 20)]:
        block, other = ours.export(start, stop), plain.export(start, stop)
        assert block.num_bytes == other.num_bytes
        assert block.tensors.keys() == other.tensors.keys()
        for name, tensor in other.tensors.items():
            assert torch.equal(block.tensors[name], tensor)
    assert is_same(ours, plain)


def test_a_part_of_a_block_comes_back(pair: tuple[DeviceInt8KV, Int8KV]) -> None:
    blocks = [live.export(4, 20) for live in pair]
    for live, block in zip(pair, blocks, strict=True):
        live.truncate(2)
        append(live, [80, 81])
        live.load(block, 4, 6, 17)
        live.flush()
        live.set_length(17)
    assert is_same(*pair)
    resident = pair[0].reside(6, 17)
    pair[0].truncate(6)
    pair[0].load(resident, 6, 6, 17)
    pair[0].flush()
    pair[0].set_length(17)
    assert is_same(*pair)


def test_a_file_is_read_into_its_place_and_is_the_block_from_then_on(
    pair: tuple[DeviceInt8KV, Int8KV],
) -> None:
    sources = pair[1].export(0, 20).sources()
    for live in pair:
        live.truncate(0)
        for source in sources:
            pieces = live.writable(source.name, source.dtype, source.shape, 0)
            whole = b"".join(bytes(buffer) for buffer in source.buffers)
            for number, piece in enumerate(pieces):
                piece[:] = whole[number * piece.nbytes : (number + 1) * piece.nbytes]
            live.written(source.name, 0)
        live.set_length(20)
    kept = pair[0].lend(0, 20)
    assert kept is not None
    assert [bytes(each.buffers[0]) for each in kept.sources()] == [
        bytes(each.buffers[0]) for each in sources
    ]
    assert is_same(*pair)
    assert pair[0].lend(0, 20) is None


@pytest.mark.parametrize(
    ("name", "dtype", "shape"),
    [("key.0", "F32", (2, 4, 3)), ("key.99", "I8", (2, 4, 3)), ("value_scale.0", "I8", (2, 4, 1))],
)
def test_what_is_not_of_this_kind_is_refused(name: str, dtype: str, shape: Any) -> None:
    with pytest.raises(ValueError, match=name.partition(".")[0]):
        device_kv().writable(name, dtype, shape, 0)


def test_a_device_without_room_for_the_integers_has_the_host_take_each(
    pair: tuple[DeviceInt8KV, Int8KV], monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, plain = pair
    settle, calls = device_int8.settle, []

    def scarce(live: torch.Tensor, name: str) -> Any:
        calls.append(name)
        if len(calls) == 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return settle(live, name)

    monkeypatch.setattr(device_int8, "settle", scarce)
    block, other = ours.export(0, 20), plain.export(0, 20)
    assert block.has_arrived()
    assert all(torch.equal(block.tensors[name], other.tensors[name]) for name in other.tensors)
    assert is_same(ours, plain)
