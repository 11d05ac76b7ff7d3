"""Captured graphs on a card: what the stand-in is asked, of the real thing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from chatcache.backends.local.model import device_attention
from chatcache.backends.local.model.device_attention import grouped_attention
from chatcache.backends.local.run import static_step
from chatcache.backends.local.run.forward import Forward
from chatcache.backends.local.run.graphs import CudaGraphs
from chatcache.cache.tensors.link import CudaLink
from chatcache.cache.tensors.live_kv import LiveKV
from tests.equivalence.engine import SECOND, THIRD, IdsEngine, assert_same_bits, three_turns
from tests.equivalence.families import CAPTURED, family_model
from tests.equivalence.test_attention import reference
from tests.equivalence.test_static_step import PROMPT, ready, spoken

DTYPES = [torch.float32, torch.bfloat16]
on_a_real_card = pytest.mark.skipif(
    torch.version.cuda is None, reason="a pretended GPU does all at once, with the CPU's kernels"
)


@pytest.fixture(scope="module", params=DTYPES, ids=str)
def model(request: pytest.FixtureRequest, card: torch.device) -> Any:
    return family_model(CAPTURED + "qwen3").to(card, request.param)


def _follow(number: torch.Tensor, amount: int) -> None:
    number.copy_(torch.full_like(number, amount))


def _forward(model: Any) -> tuple[Forward, LiveKV]:
    forward = Forward(model, model.device)
    live = LiveKV(model.config.num_hidden_layers, model.dtype, model.device)
    forward.settle(live)
    assert forward.static is not None
    return forward, live


def test_a_graph_has_the_bits_of_the_steps_in_it(
    model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    forward, live = _forward(model)
    assert forward.static is not None
    assert forward.static.num_captured == 1
    captured = spoken(forward, live, 40)
    assert not forward.static._has_own_bits
    monkeypatch.setattr(static_step, "_DIRECT_TOKENS", 1 << 30)
    monkeypatch.setattr(static_step, "_DIRECT_PROMPTS", 1 << 30)
    direct, other = _forward(model)
    assert direct.static is not None
    direct.static._steps.clear()  # what was captured as it was proven
    assert torch.equal(spoken(direct, other, 40), captured)
    assert direct.static.num_captured == 0


@pytest.mark.parametrize(
    "family", ["deepseek_v3", "gemma2", "gemma3_text", "gpt_oss", "llama4_text", "qwen3_moe"]
)
def test_windows_soft_caps_sinks_and_experts_are_captured(family: str, card: torch.device) -> None:
    forward, live = _forward(family_model(CAPTURED + family).to(card, torch.bfloat16))
    for _ in range(3):
        live.truncate(0)
        spoken(forward, live, 30)
    assert forward.static is not None
    assert forward.static._graphs is not None  # none was refused, and none says something else
    assert forward.static.num_captured == 2  # of one token, and of the prompt


def test_all_that_a_turn_may_want_is_captured_between_turns(model: Any) -> None:
    forward, live = _forward(model)
    forward(live, PROMPT, 0)
    ready(forward, live)
    assert forward.static is not None
    assert {rows for rows, _ in forward.static._steps} >= set(static_step.ROWS)
    assert all(step.replay is not None for step in forward.static._steps.values())
    found = forward(live, SECOND, len(PROMPT))
    assert forward.likeliest(found) == int(found.argmax())
    live.truncate(0)
    forward.static = None
    expected = forward(live, [*PROMPT, *SECOND], 0)
    assert static_step._is_close(found, expected)


def test_what_is_sent_waits_for_what_was_sent_before(card: torch.device) -> None:
    graphs = CudaGraphs(card)
    target = torch.zeros(4, dtype=torch.long, device=card)
    found = []
    for number in range(3):
        torch.cuda._sleep(50_000_000)  # the device is behind
        graphs.send([number, number + 1], target)
        found.append(target.clone())
    assert torch.stack(found).tolist() == [[0, 1, 0, 0], [1, 2, 0, 0], [2, 3, 0, 0]]


@on_a_real_card
def test_a_capture_does_not_wait_for_copies(card: torch.device) -> None:
    graphs, number = CudaGraphs(card), torch.zeros(1, device=card)
    beside = torch.cuda.Stream(card)
    with torch.cuda.stream(beside):
        torch.cuda._sleep(2_000_000_000)
        over = beside.record_event()
    replay = graphs.capture(lambda: _follow(number, 2))
    assert not over.query()
    number.zero_()
    replay()
    assert number.item() == 2


def test_a_call_that_cannot_be_captured_is_refused_and_the_next_one_is_captured(
    card: torch.device,
) -> None:
    graphs, number = CudaGraphs(card), torch.zeros(1, device=card)
    with pytest.raises(RuntimeError):
        graphs.capture(lambda: _follow(number, int(number.item())))
    replay = graphs.capture(lambda: _follow(number, 3))
    number.zero_()
    replay()
    assert number.item() == 3


def test_buffers_that_grow_are_captured_anew(model: Any) -> None:
    forward, live = _forward(model)
    first = spoken(forward, live, 12)
    live.truncate(0)
    live.reserve(20_000)
    assert torch.equal(spoken(forward, live, 12), first)


def test_resumed_from_memory_and_disk_is_never_stopped(card: torch.device, tmp_path: Path) -> None:
    model = family_model(CAPTURED + "llama").to(card)
    engine = IdsEngine(model, tmp_path, link=CudaLink(card))
    one, two, three = three_turns(engine, 30)
    engine.prefixes.drain()
    again = IdsEngine(model, tmp_path, link=CudaLink(card))
    assert again.context.path.forward.static is not None
    assert_same_bits(again.turn(two.ids + THIRD, 30), three)
    again.forget_live()
    assert_same_bits(again.turn(one.ids + SECOND, 30), two)
    engine.close()
    again.close()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("num_new", "num_keys"), [(1, 300), (64, 64), (500, 2000)])
def test_the_fused_kernels_see_what_a_mask_would_show(
    card: torch.device, dtype: torch.dtype, num_new: int, num_keys: int
) -> None:
    generator = torch.Generator().manual_seed(num_keys)
    query = torch.randn((1, 8, num_new, 64), generator=generator).to(card, dtype)
    key, value = torch.randn((2, 1, 2, num_keys, 64), generator=generator).to(card, dtype)
    output, _ = grouped_attention(torch.nn.Identity(), query, key, value, None)
    limit = 2e-2 if dtype is torch.bfloat16 else 1e-4
    expected = reference(query.cpu(), key.cpu(), value.cpu())
    assert (output.cpu().double() - expected).abs().max() <= limit


@on_a_real_card
def test_grouped_heads_are_read_where_they_lie(card: torch.device) -> None:
    if torch.cuda.get_device_capability(card) < (8, 0):
        pytest.skip("older cards have no such kernel")
    query = torch.zeros((1, 8, 500, 64), dtype=torch.bfloat16, device=card)
    key, value = torch.zeros((2, 1, 2, 2000, 64), dtype=torch.bfloat16, device=card)
    assert device_attention._has_grouped_kernel(query, key, value)
