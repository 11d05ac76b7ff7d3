"""The tiers on a card: what the stand-in is asked, on real streams, events and locked pages."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import settings

from chatcache.backends.local.run.assemble import link_to
from chatcache.cache.tensors.device_kv import DeviceKV
from chatcache.cache.tensors.link import CudaLink, Link
from tests.equivalence.families import CAPTURED, family_model
from tests.equivalence.test_device import start as start
from tests.equivalence.test_device import (
    test_a_fork_and_the_way_back_stay_on_the_device as test_a_fork_and_the_way_back,
)
from tests.equivalence.test_device import (
    test_resumed_from_disk_is_never_stopped as test_resumed_from_disk,
)
from tests.equivalence.test_device import (
    test_turns_forks_and_switches_in_any_order as test_any_order,
)
from tests.unit.test_device_kv import NUM_LAYERS, SLAB, DeviceAndGiven, append, has, holds

__all__ = ["start", "test_a_fork_and_the_way_back", "test_any_order", "test_resumed_from_disk"]

MANY_TOKENS = 20_000


@pytest.fixture(scope="module", params=["qwen3", CAPTURED + "qwen3"])
def model(request: pytest.FixtureRequest, card: torch.device) -> Any:
    return family_model(request.param).to(card)


@pytest.fixture
def new_link(card: torch.device) -> Callable[..., Link]:
    return lambda: CudaLink(card)


def device_kv(slab_bytes: int = SLAB, budget: int = 1 << 30) -> DeviceKV:
    card = torch.device("cuda", torch.cuda.current_device())
    link = CudaLink(card)
    return DeviceKV(
        NUM_LAYERS, torch.float32, card, link=link, slab_budget=budget, slab_bytes=slab_bytes
    )


def test_a_card_has_a_link_with_locked_pages_and_events(card: torch.device) -> None:
    link = link_to(card)
    assert link is not None
    host, stream = link.pinned(1 << 20), link.stream()
    assert host.is_pinned()
    assert 0 < link.num_free_bytes() <= torch.cuda.get_device_properties(card).total_memory
    there = torch.arange(1 << 18, dtype=torch.float32, device=card)
    stream.follow(link.compute.mark())
    stream.copy(host.view(torch.float32), there)
    event = stream.mark()
    event.wait()
    assert event.is_over()
    assert torch.equal(host.view(torch.float32), there.cpu())


def test_a_long_run_goes_down_and_comes_back_while_the_model_computes(card: torch.device) -> None:
    live = device_kv(slab_bytes=1 << 24)
    tokens = list(range(MANY_TOKENS))
    append(live, tokens)
    block = live.export(0, MANY_TOKENS)
    live.truncate(1)
    append(live, [7, 8, 9])
    assert has(block, tokens)
    live.truncate(0)
    live.load(block, 0, 0, MANY_TOKENS)
    live.set_length(MANY_TOKENS)
    live.flush()
    append(live, [5])
    assert holds(live, [*tokens, 5])
    assert block.tensors["key.0"].is_pinned()


class OnCard(DeviceAndGiven):
    def new_live(self, budget: int, *, is_eager: bool) -> DeviceKV:
        return device_kv(budget=budget)


TestOnCard = OnCard.TestCase
TestOnCard.settings = settings(max_examples=40, stateful_step_count=25, deadline=None)
