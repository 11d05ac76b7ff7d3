"""The live KV: what it holds, and what it has given away, whatever is done to it in between."""

from __future__ import annotations

import gc
import weakref
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from chatcache.cache.tensors import layers
from chatcache.cache.tensors import live_kv as kv
from chatcache.cache.tensors.blocks import KVBlock, LentBlock, TensorBlock
from chatcache.cache.tensors.live_kv import LiveKV

NUM_LAYERS, NUM_HEADS, HEAD_DIM = 2, 2, 4
CPU = torch.device("cpu")


def make_short(patch: pytest.MonkeyPatch) -> None:
    """Short runs are lent, and buffers are short."""
    patch.setattr(kv, "MIN_LENT_TOKENS", 4)
    patch.setattr(layers, "_GROWTH_TOKENS", 8)


@pytest.fixture(autouse=True)
def short_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    make_short(monkeypatch)


def live_kv() -> LiveKV:
    return LiveKV(NUM_LAYERS, torch.float32, CPU)


def rows(tokens: list[int], kind: str, layer: int) -> torch.Tensor:
    """`[num_heads, num_tokens, head_dim]` that no other tokens, kind or layer has."""
    sign = 1 if kind == "key" else -1
    numbers = torch.tensor(tokens, dtype=torch.float32)[None, :, None] + layer / 4
    heads = torch.arange(NUM_HEADS)[:, None, None] / 8
    return (sign * (numbers + heads)).expand(NUM_HEADS, len(tokens), HEAD_DIM)


@torch.inference_mode()
def append(live: LiveKV, tokens: list[int]) -> None:
    for number, layer in enumerate(live.layers):
        layer.update(rows(tokens, "key", number)[None], rows(tokens, "value", number)[None])


def holds(live: LiveKV, tokens: list[int]) -> bool:
    return live.num_tokens == len(tokens) and all(
        not tokens or torch.equal(layer.view(kind)[0].cpu(), rows(tokens, kind, number))
        for number, layer in enumerate(live.layers)
        for kind in ("key", "value")
    )


def has(block: TensorBlock, tokens: list[int]) -> bool:
    """Whether a block has these tokens, and would write them."""
    written = {source.name: b"".join(source.buffers) for source in block.sources()}
    return all(
        torch.equal(tensor, rows(tokens, name[:-2], int(name[-1])))
        and written[name] == tensor.contiguous().numpy().tobytes()
        for name, tensor in block.tensors.items()
    )


def test_a_long_run_stays_where_it_lies() -> None:
    live = live_kv()
    append(live, list(range(8)))
    block = live.export(0, 8)
    assert isinstance(block, LentBlock)
    assert block.tensors["key.1"].data_ptr() == live.layers[1].view("key").data_ptr()
    assert block.num_bytes == live.num_bytes


def test_what_is_appended_behind_a_lent_run_moves_nothing() -> None:
    live = live_kv()
    live.reserve(14)
    append(live, list(range(14)))
    block = live.export(0, 14)
    append(live, [50])
    assert block.tensors["key.0"].data_ptr() == live.layers[0].view("key").data_ptr()


def test_another_path_is_written_elsewhere() -> None:
    live = live_kv()
    append(live, list(range(8)))
    block = live.export(0, 8)
    live.truncate(5)
    append(live, [90, 91, 92])
    assert holds(live, [0, 1, 2, 3, 4, 90, 91, 92])
    assert has(block, list(range(8)))


def test_a_path_that_was_left_is_gone_on_with_where_it_lies() -> None:
    live = live_kv()
    append(live, list(range(8)))
    block = live.export(0, 8)
    place = block.tensors["key.0"].data_ptr()
    live.truncate(0)
    append(live, [70, 71])
    assert live.adopt(block, 8)
    assert holds(live, list(range(8)))
    assert live.layers[0].view("key").data_ptr() == place


def test_only_the_lender_goes_on_there() -> None:
    live, other = live_kv(), live_kv()
    append(live, list(range(8)))
    assert not other.adopt(live.export(0, 8), 8)
    assert other.num_tokens == 0


def test_growing_leaves_no_second_copy() -> None:
    live = live_kv()
    append(live, list(range(8)))
    block = live.export(0, 8)
    before = weakref.ref(live.layers[0].home.tensors["key"])
    append(live, list(range(8, 40)))
    gc.collect()
    assert before() is None
    assert has(block, list(range(8)))


def test_a_run_behind_much_that_is_held_elsewhere_is_copied() -> None:
    live = live_kv()
    append(live, list(range(24)))
    assert isinstance(live.export(16, 24), KVBlock)
    assert isinstance(live.export(2, 24), LentBlock)


def test_buffers_that_are_mostly_empty_are_not_lent() -> None:
    live = live_kv()
    live.reserve(100)
    append(live, list(range(8)))
    assert isinstance(live.export(0, 8), KVBlock)


def test_a_short_path_gives_long_buffers_back() -> None:
    live = live_kv()
    append(live, list(range(200)))
    live.truncate(0)
    live.reserve(5)
    append(live, [1])
    assert live.layers[0].home.room < 50


def test_long_buffers_that_were_left_are_used_again() -> None:
    """Also when a short path came in between."""
    live = live_kv()
    append(live, list(range(40)))
    block = live.export(0, 40)
    live.truncate(0)
    append(live, list(range(100, 140)))
    place = live.layers[0].view("key").data_ptr()
    live.truncate(0)
    live.reserve(5)
    append(live, [1, 2])
    live.adopt(block, 40)
    live.truncate(0)
    live.reserve(40)
    append(live, list(range(200, 240)))
    assert live.layers[0].view("key").data_ptr() == place
    assert has(block, list(range(40)))


@dataclass(eq=False)
class Given:
    """A block, its positions, and the whole path that it was cut out of."""

    block: Any
    start: int
    path: list[int] = field(default_factory=list)


class PathMachine(RuleBasedStateMachine):
    """A live path that grows and is cut, and blocks of it that are held; every token is another
    number. Whoever inherits it makes `live`, and gives and loads blocks."""

    live: LiveKV

    def __init__(self) -> None:
        super().__init__()
        self._patch = pytest.MonkeyPatch()
        make_short(self._patch)
        self.path: list[int] = []
        self.given: list[Given] = []
        self.next_token = 0

    @rule(num_tokens=st.integers(1, 12))
    def compute(self, num_tokens: int) -> None:
        tokens = list(range(self.next_token, self.next_token + num_tokens))
        self.next_token += num_tokens
        append(self.live, tokens)
        self.path = self.path + tokens

    @rule(share=st.floats(0, 1))
    def cut(self, share: float) -> None:
        self.path = self.path[: int(share * len(self.path))]
        self.live.truncate(len(self.path))

    @rule(num_tokens=st.integers(0, 60))
    def make_room(self, num_tokens: int) -> None:
        self.live.reserve(num_tokens)

    @precondition(lambda self: self.given)
    @rule(data=st.data())
    def lose(self, data: st.DataObject) -> None:
        self.given.remove(self.any_given(data))

    def any_given(self, data: st.DataObject) -> Given:
        return data.draw(st.sampled_from(self.given))

    def teardown(self) -> None:
        self._patch.undo()


class LiveAndGiven(PathMachine):
    """Any order of what turns do."""

    def __init__(self) -> None:
        super().__init__()
        self.live = live_kv()

    @precondition(lambda self: self.path)
    @rule(share=st.floats(0, 0.9), rest=st.integers(0, 3))
    def give(self, share: float, rest: int) -> None:
        start = int(share * len(self.path))
        stop = max(start + 1, len(self.path) - rest)
        self.given.append(Given(self.live.export(start, stop), start, self.path[:stop]))

    @precondition(lambda self: self.given)
    @rule(data=st.data(), share=st.floats(0, 1))
    def adopt(self, data: st.DataObject, share: float) -> None:
        found = self.any_given(data)
        num_tokens = found.start + int(share * (len(found.path) - found.start))
        if self.live.adopt(found.block, num_tokens):
            self.path = found.path[:num_tokens]

    @precondition(lambda self: self.given)
    @rule(data=st.data())
    def load(self, data: st.DataObject) -> None:
        found = self.any_given(data)
        if self.path[: found.start] != found.path[: found.start]:
            return
        self.live.truncate(found.start)
        self.live.load(found.block, found.start, found.start, len(found.path))
        self.live.set_length(len(found.path))
        self.path = found.path

    @invariant()
    def nothing_is_lost(self) -> None:
        assert holds(self.live, self.path)
        for found in self.given:
            assert has(found.block, found.path[found.start :])


TestLiveAndGiven = LiveAndGiven.TestCase
TestLiveAndGiven.settings = settings(max_examples=150, stateful_step_count=30)
