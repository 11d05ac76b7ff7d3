"""The CPU kernel against torch's, on shapes around every branch, and in every family it serves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from chatcache.backends.local.model import attention, tuning
from chatcache.backends.local.model.attention import install, matmul_attention
from chatcache.backends.local.model.families import TUNED_FAMILIES
from chatcache.backends.local.packed import reordered
from tests.equivalence.engine import IdsEngine
from tests.equivalence.families import VOCAB, family_model
from tests.models import build_model

CPU = torch.device("cpu")


def reference(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """Causal attention written out, in double precision."""
    query, key, value = query.double(), key.double(), value.double()
    repeats = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(repeats, 1), value.repeat_interleave(repeats, 1)
    scores = query @ key.transpose(2, 3) * query.shape[3] ** -0.5
    num_new, num_keys = scores.shape[2:]
    visible = torch.ones((num_new, num_keys), dtype=torch.bool).tril(num_keys - num_new)
    weights = scores.masked_fill(~visible, float("-inf")).softmax(-1)
    return (weights @ value).transpose(1, 2)


@pytest.mark.parametrize("group", [1, 2, 4])
@pytest.mark.parametrize(
    ("num_new", "num_keys"),
    [
        (1, 1),
        (1, 511),
        (1, 512),
        (1, 1279),
        (1, 1280),
        (1, 1500),
        (5, 5),
        (5, 40),
        (5, 600),
        (130, 600),
        (600, 600),
    ],
)
def test_the_kernel_is_causal_attention(group: int, num_new: int, num_keys: int) -> None:
    generator = torch.Generator().manual_seed(num_new * num_keys + group)
    query = torch.randn((1, 2 * group, num_new, 16), generator=generator)
    buffers = torch.randn((2, 1, 2, num_keys + 9, 16), generator=generator)
    key, value = buffers[0][:, :, :num_keys], buffers[1][:, :, :num_keys]
    output, _ = matmul_attention(torch.nn.Identity(), query, key, value, None)
    assert output.shape == (1, num_new, 2 * group, 16)
    torch.testing.assert_close(output.double(), reference(query, key, value), atol=2e-6, rtol=2e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize(("num_new", "num_keys"), [(1, 1300), (1, 2048), (7, 777), (16, 1024)])
def test_the_bits_do_not_depend_on_what_lies_behind_the_keys(
    dtype: torch.dtype, num_new: int, num_keys: int
) -> None:
    """A conversation that was never stopped has other buffers than one that was resumed."""
    generator = torch.Generator().manual_seed(num_keys)
    query = torch.randn((1, 4, num_new, 64), generator=generator).to(dtype)
    states = torch.randn((2, 1, 2, num_keys, 64), generator=generator).to(dtype)
    outputs = []
    for room, rest in ((num_keys, 0.0), (num_keys + 256, float("nan")), (3 * num_keys, 1e30)):
        buffers = torch.full((2, 1, 2, room, 64), rest, dtype=dtype)
        buffers[:, :, :, :num_keys] = states
        key, value = buffers[:, :, :, :num_keys]
        outputs.append(matmul_attention(torch.nn.Identity(), query, key, value, None)[0])
    assert all(torch.equal(one, outputs[0]) for one in outputs)
    expected = reference(query, *states)
    torch.testing.assert_close(outputs[0].double(), expected, atol=2e-2, rtol=0)


def test_keys_in_any_layout_are_read_right() -> None:
    generator = torch.Generator().manual_seed(3)
    query = torch.randn((1, 4, 3, 16), generator=generator)
    states = torch.randn((1, 2, 600, 16), generator=generator)
    padded = torch.randn((1, 2, 600, 20), generator=generator)
    padded[..., :16] = states
    for key in (states.transpose(1, 2).contiguous().transpose(1, 2), padded[..., :16]):
        output, _ = matmul_attention(torch.nn.Identity(), query, key, states, None)
        expected = reference(query, states, states)
        torch.testing.assert_close(output.double(), expected, atol=2e-6, rtol=2e-5)


def test_bf16_stays_within_its_rounding() -> None:
    generator = torch.Generator().manual_seed(1)
    query, key, value = (
        torch.randn((1, heads, length, 32), generator=generator).bfloat16()
        for heads, length in ((4, 33), (2, 800), (2, 800))
    )
    output, _ = matmul_attention(torch.nn.Identity(), query, key, value, None)
    torch.testing.assert_close(output.double(), reference(query, key, value), atol=2e-2, rtol=0)


@pytest.mark.parametrize("option", ["sliding_window", "softcap", "s_aux"])
def test_what_the_kernel_does_not_know_is_refused(option: str) -> None:
    states = torch.zeros((1, 2, 3, 8))
    with pytest.raises(ValueError, match=option):
        matmul_attention(torch.nn.Identity(), states, states, states, None, **{option: 4})


@pytest.fixture(params=sorted(TUNED_FAMILIES))
def model(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A tiny model on the kernel, with a threshold so low that its own branches are taken."""
    overrides = {"sliding_window": None, "layer_types": None, "use_sliding_window": False}
    made = family_model(request.param, **overrides)
    monkeypatch.setattr(attention, "MIN_KEYS", 4)
    monkeypatch.setattr(attention, "MIN_KEYS_OF_ONE", 4)
    monkeypatch.setattr(attention, "_BLOCK_BYTES", 12)
    return made


@pytest.mark.skipif(not reordered.is_sound(), reason="this torch packs no weights")
def test_packed_weights_give_the_same_bits(
    model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tuning, "_MIN_WEIGHTS", 0)
    model = model.to(torch.bfloat16)
    ids = torch.tensor([[3, 14, 15, 92, 65, 35, 89, 79]])
    with torch.inference_mode():
        expected = model(input_ids=ids).logits
        assert tuning.reorder_linears(model, torch.device("cuda")) == 0
        assert tuning.reorder_linears(model, CPU) > 2 * 4
        assert torch.equal(model(input_ids=ids).logits, expected)


def test_each_family_says_the_same_on_both_kernels(model: Any, tmp_path: Path) -> None:
    ids = [3, 14, 15, 92, 65, 35, 89, 79, 32, 38, 46, 26, 43, 38]
    assert model.config._attn_implementation == "sdpa"
    stock_engine = IdsEngine(model, tmp_path / "stock")
    stock = stock_engine.turn(ids, 12)
    assert install(model, CPU) == attention.NAME
    engine = IdsEngine(model, tmp_path / "kernel")
    ours = engine.turn(ids, 12)
    engine.prefixes.drain()
    again = IdsEngine(model, tmp_path / "kernel").turn([*ours.ids, 5, 6], 5)
    engine.forget_live()
    resumed = engine.turn([*ours.ids, 5, 6], 5)
    assert ours.answer == stock.answer
    assert (ours.logits - stock.logits).abs().max() <= 5e-3 * stock.logits.std()
    assert again.reuse.num_tokens == resumed.reuse.num_tokens == len(ours.ids)
    assert torch.equal(again.logits, resumed.logits)
    stock_engine.close()
    engine.close()


def test_other_families_and_devices_keep_the_stock_kernel() -> None:
    other = build_model("gpt2", vocab_size=VOCAB, eos_token_id=0)
    assert install(other, CPU) == other.config._attn_implementation == "sdpa"
    windowed = build_model("mistral", vocab_size=VOCAB, eos_token_id=0, sliding_window=8)
    assert install(windowed, CPU) == "sdpa"
    ordinary = build_model("qwen3", vocab_size=VOCAB, eos_token_id=0)
    assert install(ordinary, torch.device("mps")) == "sdpa"
    assert install(windowed, torch.device("cuda")) == "sdpa"
