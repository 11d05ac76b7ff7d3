"""A model on a device with memory of its own says what it says without one, whatever the order of
copies: its streams here do everything as late as they may. The `gpu` ones run on a real card."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from chatcache.backends.local.run import any_token
from chatcache.cache.tensors import buckets, layers
from chatcache.cache.tensors.device_kv import DeviceKV
from chatcache.cache.tensors.link import Link
from tests.equivalence.engine import FIRST, OTHER, SECOND, IdsEngine, Said, assert_same_bits
from tests.equivalence.families import CAPTURED, family_model
from tests.lazy_link import LazyLink

NUM_STEPS = 10
Start = Callable[..., IdsEngine]


@pytest.fixture(scope="module", params=["qwen3", CAPTURED + "qwen3"])
def model(request: pytest.FixtureRequest) -> Any:
    return family_model(request.param)


@pytest.fixture
def new_link() -> Callable[..., Link]:
    return LazyLink


@pytest.fixture
def start(
    model: Any,
    new_link: Callable[..., Link],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Start]:
    """An engine in a directory of this name; few tokens are worth a restore, and buffers grow."""
    monkeypatch.setattr(any_token, "MIN_PART_TOKENS", 2)
    monkeypatch.setattr(layers, "_GROWTH_TOKENS", 8)
    monkeypatch.setattr(buckets, "MIN_BUCKET", 32)
    engines: list[IdsEngine] = []

    def made(name: str, *, is_device: bool = True, **budgets: Any) -> IdsEngine:
        options = {"link": new_link(), "vram_budget": 1 << 24} if is_device else {}
        engines.append(IdsEngine(model, tmp_path / name, **{**options, **budgets}))
        return engines[-1]

    yield made
    for engine in engines:
        engine.close()


def test_a_fork_and_the_way_back_stay_on_the_device(start: Start) -> None:
    told: list[list[Said]] = []
    for engine in (start("ours"), start("plain", is_device=False)):
        one = engine.turn(FIRST, 4)
        two = engine.turn(one.ids + SECOND, 4)
        fork = engine.turn(one.ids + OTHER, 4)
        back = engine.turn([*two.ids, 7, 8], 4)
        again = engine.turn([*fork.ids, 9], 4)
        told.append([one, two, fork, back, again])
    for said, other in zip(*told, strict=True):
        assert_same_bits(said, other)
    back, again = told[0][3:]
    assert {run.tier for run in back.reuse.runs} == {"ram", "vram"}
    assert again.reuse.runs[-1].tier == "vram"
    assert back.reuse.disk_tokens == 0


def test_integers_stay_on_the_device_as_the_numbers_that_they_say(start: Start) -> None:
    told: list[list[Said]] = []
    for engine in (
        start("ours", precision="int8"),
        start("without", precision="int8", vram_budget=0),
        start("plain", precision="int8", is_device=False),
    ):
        one = engine.turn(FIRST, 4)
        two = engine.turn(one.ids + SECOND, 4)
        engine.turn(one.ids + OTHER, 4)
        told.append([one, two, engine.turn([*two.ids, 7, 8], 4)])
    (_, _, back), (_, _, again), (_, _, plain) = told
    assert (back.reuse.runs[-1].tier, again.reuse.runs[-1].tier) == ("vram", "ram")
    assert_same_bits(back, again)
    assert_same_bits(back, plain)


def test_resumed_from_disk_is_never_stopped(start: Start) -> None:
    plain = start("plain", is_device=False)
    first = start("kept")
    one = first.turn(FIRST, 4)
    first.close()
    resumed = start("kept")
    two = resumed.turn(one.ids + SECOND, 4)
    assert two.reuse.disk_tokens == len(one.ids)
    same = plain.turn(plain.turn(FIRST, 4).ids + SECOND, 4)
    assert_same_bits(two, same)
    resumed.turn(OTHER, 3)
    resumed.prefixes.vram.give_up()
    back = resumed.turn([*two.ids, 5], 2)
    assert back.reuse.disk_tokens == 0  # what was read is in slabs since then


@pytest.mark.parametrize("seed", range(2))
def test_turns_forks_and_switches_in_any_order(start: Start, seed: int) -> None:
    """As on a machine that was never short of anything, also where every tier is."""
    draw = random.Random(seed)
    scarce = {"ram_budget": 30_000, "vram_budget": 30_000, "disk_budget": 1 << 30}
    engines = [
        start("plain", is_device=False),
        start("lazy"),
        start("scarce", **scarce),
    ]
    told: list[list[int]] = [[draw.randrange(90) for _ in range(3)]]
    tiers: set[str] = set()
    for _ in range(NUM_STEPS):
        path = draw.choice(told)
        cut = draw.choice([len(path), draw.randrange(1, len(path) + 1)])
        prompt = path[:cut] + [draw.randrange(90) for _ in range(draw.choice([2, 9, 30]))]
        num_answer = draw.randrange(1, 5)
        if draw.random() < 0.2:
            for engine in engines:
                engine.forget_live()
        said = [engine.turn(prompt, num_answer) for engine in engines]
        for other in said[1:]:
            assert other.ids == said[0].ids
            assert (other.logits - said[0].logits).abs().max() <= 1e-4 * said[0].logits.std()
        told.append(said[0].ids)
        engines[2].prefixes.drain()
        tiers.update(run.tier for run in said[2].reuse.runs)
    assert tiers == {"vram", "ram", "disk"}
    assert [problem for engine in engines for problem in engine.prefixes.check()] == []
    for engine in engines[1:]:
        engine.prefixes.drain()
        assert isinstance(engine.live, DeviceKV)
        assert engine.live.slabs.check() == []
