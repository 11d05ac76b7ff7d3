"""A path that stays where it was computed has the bits of one that is copied out and back in."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from chatcache.backends.local.run import any_token
from chatcache.cache.tensors import layers
from chatcache.cache.tensors import live_kv as kv
from chatcache.cache.tensors.blocks import LentBlock
from chatcache.cache.tensors.live_kv import LiveKV
from tests.equivalence.engine import IdsEngine
from tests.equivalence.families import family_model

NUM_STEPS = 20
TOLERANCE = 1e-4


class CopyingKV(LiveKV):
    """A live KV that copies every block."""

    def _may_lend(self, start: int, stop: int) -> bool:
        return False


@pytest.fixture
def short_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs of a few tokens are lent, and buffers grow often."""
    monkeypatch.setattr(kv, "MIN_LENT_TOKENS", 6)
    monkeypatch.setattr(any_token, "MIN_LENT_TOKENS", 6)
    monkeypatch.setattr(any_token, "MIN_PART_TOKENS", 2)
    monkeypatch.setattr(any_token, "_SHORT_END", 4)
    monkeypatch.setattr(layers, "_GROWTH_TOKENS", 4)


@pytest.fixture
def model(short_runs: None) -> Any:
    return family_model("qwen3")


@pytest.fixture
def pair(
    model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[IdsEngine, IdsEngine]]:
    """One engine that lends and one that copies, on one model."""
    lending = IdsEngine(model, tmp_path / "lending")
    with monkeypatch.context() as patch:
        patch.setattr("tests.equivalence.engine.LiveKV", CopyingKV)
        copying = IdsEngine(model, tmp_path / "copying")
    yield lending, copying
    lending.close()
    copying.close()


def num_lent(engine: IdsEngine) -> int:
    blocks = [entry.block for entry in engine.prefixes._book.entries()]
    return sum(isinstance(block, LentBlock) for block in blocks)


@pytest.mark.parametrize("seed", range(6))
def test_turns_forks_and_switches_in_any_order(
    pair: tuple[IdsEngine, IdsEngine], seed: int
) -> None:
    """Each step goes on from a random place of a random conversation: its end, or inside it.

    Tokens that two paths share were computed twice, and either's bits may be gone on with."""
    draw = random.Random(seed)
    told: list[list[int]] = [[draw.randrange(90) for _ in range(3)]]
    most_lent = 0
    for _ in range(NUM_STEPS):
        path = draw.choice(told)
        cut = draw.choice([len(path), draw.randrange(1, len(path) + 1)])
        message = [draw.randrange(90) for _ in range(draw.choice([2, 30, 60]))]
        prompt, num_answer = path[:cut] + message, draw.randrange(1, 7)
        if draw.random() < 0.25:
            for engine in pair:
                engine.forget_live()
        said, other = (engine.turn(prompt, num_answer) for engine in pair)
        assert said.ids == other.ids
        assert said.reuse.num_tokens == other.reuse.num_tokens
        assert (said.logits - other.logits).abs().max() / other.logits.std() <= TOLERANCE
        told.append(said.ids)
        most_lent = max(most_lent, num_lent(pair[0]))
    assert most_lent > 0
    assert num_lent(pair[1]) == 0
    assert [problem for engine in pair for problem in engine.prefixes.check()] == []


def test_what_is_lent_is_what_is_written(
    pair: tuple[IdsEngine, IdsEngine],
) -> None:
    """Files of a run that was lent, and then left for another path, hold the run."""
    first, second = [list(range(start, start + 40)) for start in (1, 50)]
    for engine in pair:
        engine.turn(first, 3)
        engine.turn(second, 3)
        engine.prefixes.drain()
    ours, theirs = (
        {path.name: load_file(path) for path in engine.prefixes._disk.store.paths()}
        for engine in pair
    )
    assert sorted(ours) == sorted(theirs)
    for name, tensors in ours.items():
        assert all(torch.equal(tensor, theirs[name][key]) for key, tensor in tensors.items())


def test_a_message_asked_again_moves_nothing(pair: tuple[IdsEngine, IdsEngine]) -> None:
    lending, _ = pair
    prompt = list(range(1, 60))
    one = lending.turn(prompt, 4)
    place = lending.live.layers[0].keys.data_ptr()
    again = lending.turn(prompt, 4)
    assert num_lent(lending) == 1
    assert lending.live.layers[0].keys.data_ptr() == place
    assert torch.equal(one.logits[1:], again.logits[1:])


def test_a_long_run_that_was_read_from_disk_is_neither_read_nor_moved_again(
    model: Any, tmp_path: Path
) -> None:
    first = IdsEngine(model, tmp_path)
    one = first.turn(list(range(1, 60)), 4)
    first.close()
    resumed = IdsEngine(model, tmp_path)
    assert resumed.turn([*one.ids, 61, 62], 2).reuse.disk_tokens == len(one.ids)
    place = resumed.live.layers[0].keys.data_ptr()
    resumed.turn([70, 71, 72], 2)
    back = resumed.turn([*one.ids, 63, 64], 2)
    short_runs = len(one.ids) - 55
    assert (back.reuse.num_tokens, back.reuse.disk_tokens) == (len(one.ids), short_runs)
    assert resumed.live.layers[0].keys.data_ptr() == place
    resumed.close()
