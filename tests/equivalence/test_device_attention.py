"""The attention of a GPU, on the CPU: the same calls of torch, against attention written out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from chatcache.backends.local.model import device_attention
from chatcache.backends.local.model.attention import install
from chatcache.backends.local.model.capturing import Sight
from chatcache.backends.local.model.device_attention import grouped_attention
from chatcache.backends.local.model.families import TUNED_FAMILIES
from tests.equivalence.engine import IdsEngine
from tests.equivalence.families import family_model
from tests.equivalence.test_attention import reference

SHAPES = [(1, 1), (1, 300), (5, 5), (5, 40), (70, 200), (200, 200)]


def _states(num_new: int, num_keys: int, group: int) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(num_new * num_keys + group)
    query = torch.randn((1, 2 * group, num_new, 16), generator=generator)
    buffers = torch.randn((2, 1, 2, num_keys + 9, 16), generator=generator)
    return query, buffers[0][:, :, :num_keys], buffers[1][:, :, :num_keys]


@pytest.mark.parametrize("is_grouped", [False, True])
@pytest.mark.parametrize("group", [1, 4])
@pytest.mark.parametrize(("num_new", "num_keys"), SHAPES)
def test_it_is_causal_attention(
    num_new: int, num_keys: int, group: int, is_grouped: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device_attention, "_has_grouped_kernel", lambda *states: is_grouped)
    query, key, value = _states(num_new, num_keys, group)
    with torch.inference_mode():
        output, _ = grouped_attention(torch.nn.Identity(), query, key, value, None)
    assert output.shape == (1, num_new, 2 * group, 16)
    torch.testing.assert_close(output.double(), reference(query, key, value), atol=2e-6, rtol=2e-5)


@pytest.mark.parametrize("score_numbers", [1 << 25, 4000])
@pytest.mark.parametrize(("num_new", "num_keys"), SHAPES)
def test_behind_a_length_a_bucket_may_hold_anything(
    num_new: int, num_keys: int, score_numbers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device_attention, "_SCORE_NUMBERS", score_numbers)
    query, key, value = _states(num_new, num_keys, 4)
    buckets = torch.full((2, 1, 2, num_keys + 60, 16), 1e30)
    buckets[0, :, :, num_keys:] = float("nan")
    buckets[0, :, :, :num_keys], buckets[1, :, :, :num_keys] = key, value
    positions = torch.arange(num_keys - num_new, num_keys)
    is_seen = torch.arange(num_keys + 60)[None] <= positions[:, None]
    output, _ = grouped_attention(torch.nn.Identity(), query, *buckets, is_seen[None, None])
    torch.testing.assert_close(output.double(), reference(query, key, value), atol=2e-6, rtol=2e-5)


@pytest.mark.parametrize("score_numbers", [1 << 25, 4000])
@pytest.mark.parametrize(("softcap", "has_sinks"), [(3.0, False), (None, True), (3.0, True)])
def test_soft_caps_and_sinks_over_a_bucket(
    softcap: float | None, has_sinks: bool, score_numbers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device_attention, "_SCORE_NUMBERS", score_numbers)
    query, key, value = _states(70, 200, 4)
    sinks = torch.linspace(-2, 3, 8) if has_sinks else None
    is_seen = Sight(window=50).seen(torch.arange(200), torch.arange(130, 200))
    output, _ = grouped_attention(
        torch.nn.Identity(),
        query,
        key,
        value,
        is_seen[None, None],
        softcap=softcap,
        s_aux=sinks,
        sliding_window=50,
    )
    wide_key, wide_value = (each.double().repeat_interleave(4, 1) for each in (key, value))
    scores = query.double() @ wide_key.transpose(2, 3) * 16**-0.5
    if softcap is not None:
        scores = (scores / softcap).tanh() * softcap
    exponents = scores.masked_fill(~is_seen, float("-inf")).exp()
    total = exponents.sum(-1, keepdim=True)
    if sinks is not None:
        total += sinks.double().exp().view(1, 8, 1, 1)
    expected = (exponents / total @ wide_value).transpose(1, 2)
    torch.testing.assert_close(output.double(), expected, atol=2e-6, rtol=2e-5)


@pytest.mark.parametrize("sight", [Sight(), Sight(window=9), Sight(chunk=9)])
def test_what_is_seen_lies_within_reach(sight: Sight) -> None:
    for start in (0, 5, 8, 30):
        positions = torch.arange(start, start + 4)
        is_seen = sight.seen(torch.arange(60), positions)
        at, seen = is_seen.nonzero().unbind(1)
        assert at.unique().numel() == 4  # each sees itself at least
        assert (seen <= positions[at]).all()
        first, reach = int(sight.first(positions[0])), sight.reach(4)
        assert reach is None or (seen.min() >= first and seen.max() < first + reach)


@pytest.mark.parametrize("option", ["sliding_window", "softcap", "s_aux"])
def test_what_it_does_not_know_is_refused(option: str) -> None:
    states = torch.zeros((1, 2, 3, 8))
    with pytest.raises(ValueError, match=option):
        grouped_attention(torch.nn.Identity(), states, states, states, None, **{option: 4})


@pytest.mark.parametrize("family", sorted(TUNED_FAMILIES))
def test_each_family_says_the_same_on_both_kernels(family: str, tmp_path: Path) -> None:
    overrides: dict[str, Any] = {"sliding_window": None, "use_sliding_window": False}
    model = family_model(family, layer_types=None, **overrides)
    ids = [3, 14, 15, 92, 65, 35, 89, 79, 32, 38, 46, 26, 43, 38]
    stock_engine = IdsEngine(model, tmp_path / "stock")
    stock = stock_engine.turn(ids, 6)
    assert install(model, torch.device("cuda")) == device_attention.NAME
    engine = IdsEngine(model, tmp_path / "kernel")
    ours = engine.turn(ids, 6)
    assert ours.answer == stock.answer
    assert (ours.logits - stock.logits).abs().max() <= 5e-3 * stock.logits.std()
    stock_engine.close()
    engine.close()
