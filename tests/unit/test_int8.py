"""K and V as 8-bit integers: how far they are off, and that they never pass for exact ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from chatcache.cache.book.namespace import explain_change, is_approximate, namespace_id
from chatcache.cache.tensors.int8 import MAX_INTEGER, Int8KV, dequantise, quantise
from chatcache.cache.tensors.live_kv import LiveKV
from chatcache.compose import tier_policy
from chatcache.config import load_settings
from chatcache.errors import UsageError
from chatcache.tui.panel.drawing import lines
from chatcache.tui.panel.state import PanelState
from tests.toymodel import fake_model_info

CPU = torch.device("cpu")
HEADS, TOKENS, DIM = 2, 12, 8
TINY = torch.finfo(torch.float32).tiny  # below, a step is no number of its own
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


@given(
    seed=st.integers(0, 1 << 30),
    magnitude=st.floats(-30, 4),
    outlier=st.floats(0, 3),
    dtype=st.sampled_from(DTYPES),
    kind=st.sampled_from(["key", "value"]),
)
def test_no_number_is_off_by_more_than_half_a_step(
    seed: int, magnitude: float, outlier: float, dtype: torch.dtype, kind: str
) -> None:
    made = torch.Generator().manual_seed(seed)
    tensor = torch.randn(HEADS, TOKENS, DIM, generator=made) * 10.0**magnitude
    tensor[:, :, 0] *= 10.0**outlier
    tensor = tensor.to(dtype).nan_to_num(posinf=1.0, neginf=-1.0)
    integers, scales = quantise(tensor, kind)
    shape = (HEADS, 1, DIM) if kind == "key" else (HEADS, TOKENS, 1)
    assert (integers.dtype, scales.shape) == (torch.int8, shape)
    assert integers.abs().max() <= MAX_INTEGER
    wide = tensor.float()
    off = (dequantise(integers, scales) - wide).abs()
    assert (off <= (0.5 + 1e-4) * scales.float() + TINY).all()
    largest = wide.abs().amax(1 if kind == "key" else 2, keepdim=True)
    assert torch.allclose(scales.float() * MAX_INTEGER, largest, rtol=1e-2, atol=TINY * 200)


@pytest.mark.parametrize("no_number", ["nan", "inf"])
@pytest.mark.parametrize("kind", ["key", "value"])
def test_zeros_stay_zeros_and_what_is_no_number_stays_none(kind: str, no_number: str) -> None:
    zeros = torch.zeros(HEADS, TOKENS, DIM)
    assert torch.equal(dequantise(*quantise(zeros, kind)), zeros)
    zeros[0, 3, 5] = float(no_number)
    assert dequantise(*quantise(zeros, kind))[0, 3, 5].isnan()


def filled(kind: type[LiveKV], dtype: torch.dtype = torch.bfloat16) -> LiveKV:
    live = kind(1, dtype, CPU)
    made = torch.Generator().manual_seed(7)
    key, value = (torch.randn(1, HEADS, TOKENS, DIM, generator=made).to(dtype) for _ in "kv")
    with torch.inference_mode():
        live.update(key, value, 0)
    return live


@pytest.mark.parametrize("dtype", DTYPES)
def test_what_is_kept_is_what_goes_on(dtype: torch.dtype) -> None:
    """From the block, from a file, and live: the same bits."""
    live = filled(Int8KV, dtype)
    exact = live.layers[0].view("key").clone()
    block = live.export(0, TOKENS)
    kept = live.layers[0].view("key")
    assert not torch.equal(kept, exact)
    assert live.num_settled == TOKENS
    loaded, read = Int8KV(1, dtype, CPU), Int8KV(1, dtype, CPU)
    loaded.load(block, 0, 0, 5)
    loaded.load(block, 0, 5, TOKENS)
    for source in block.sources():
        memories = read.writable(source.name, source.dtype, source.shape, 0)
        whole = b"".join(bytes(buffer) for buffer in source.buffers)
        for index, memory in enumerate(memories):
            memory[:] = whole[index * memory.nbytes : (index + 1) * memory.nbytes]
        read.written(source.name, 0)
    for other in (loaded, read):
        other.set_length(TOKENS)
        assert torch.equal(other.layers[0].view("key"), kept)
        assert torch.equal(other.layers[0].view("value"), live.layers[0].view("value"))


def test_half_of_bfloat16_is_kept() -> None:
    made = torch.randn(1, 8, 100, 128).to(torch.bfloat16)
    sizes = []
    for kind in (LiveKV, Int8KV):
        live = kind(1, torch.bfloat16, CPU)
        with torch.inference_mode():
            live.update(made, made, 0)
        sizes.append(live.export(0, 100).num_bytes)
    assert sizes[1] <= 0.53 * sizes[0]


def test_only_what_was_exported_or_restored_is_settled() -> None:
    live = filled(Int8KV)
    assert live.num_settled == 0
    live.export(4, 8)
    assert live.num_settled == 0
    live.export(0, 4)
    assert live.num_settled == 4
    live.truncate(2)
    assert live.num_settled == 2
    assert filled(LiveKV).num_settled == TOKENS


@pytest.mark.parametrize("kinds", [(LiveKV, Int8KV), (Int8KV, LiveKV)])
def test_neither_reads_the_other(kinds: tuple[type[LiveKV], type[LiveKV]]) -> None:
    writer, reader = (filled(kind) for kind in kinds)
    first, *_ = writer.export(0, TOKENS).sources()
    with pytest.raises(ValueError, match=r"key(_scale)?\.0 is"):
        reader.writable(first.name, first.dtype, first.shape, 0)


def test_integers_without_their_scales_are_refused() -> None:
    reader = Int8KV(1, torch.bfloat16, CPU)
    reader.writable("key.0", "I8", (HEADS, TOKENS, DIM), 0)
    with pytest.raises(ValueError, match="no scales"):
        reader.written("key.0", 0)
    reader.writable("key_scale.0", "BF16", (HEADS, TOKENS, 1), 0)
    reader.writable("key.0", "I8", (HEADS, TOKENS, DIM), 0)
    with pytest.raises(ValueError, match="no scales"):
        reader.written("key.0", 0)


def test_exact_and_approximate_are_different_namespaces() -> None:
    exact = {"weights": "w", "soft.name": "m"}
    approximate = {**exact, "precision": "int8"}
    assert namespace_id(exact) != namespace_id(approximate)
    assert (is_approximate(exact), is_approximate(approximate)) == (False, True)
    reason = "settings_changed"
    words = "how exactly K and V are kept changed"
    forth, back = explain_change(exact, approximate), explain_change(approximate, exact)
    assert forth == (reason, f"{words} (exact before, int8 now)")
    assert back == (reason, f"{words} (int8 before, exact now)")


@pytest.mark.parametrize(
    ("value", "kept", "mode", "precision"),
    [
        ("turn", "turn", "turn", "exact"),
        ("int8", "turn, int8", "turn", "int8"),
        ("exit, int8", "exit, int8", "exit", "int8"),
        ("int8 pressure", "pressure, int8", "pressure", "int8"),
        (False, "never", "never", "exact"),
    ],
)
def test_the_setting_says_when_and_how(
    home: Path, value: Any, kept: str, mode: str, precision: str
) -> None:
    (home / "config.toml").write_text(f"[cache]\nspill = {json.dumps(value)}\n")
    loaded = load_settings()
    policy = tier_policy(loaded)
    assert loaded.config.cache.spill == kept
    assert (policy.spill, policy.precision) == (mode, precision)


@pytest.mark.parametrize("value", ["never, int8", "int4", "turn, exit", "", "int8, int4"])
def test_what_means_nothing_is_refused(home: Path, value: str) -> None:
    (home / "config.toml").write_text(f'[cache]\nspill = "{value}"\n')
    with pytest.raises(UsageError, match=r'or with int8: "int8", "exit, int8"'):
        load_settings()


@pytest.mark.parametrize("fields", [{}, {"precision": "int8"}])
def test_the_panel_says_what_is_approximate(fields: dict[str, str]) -> None:
    state = PanelState(info=fake_model_info(namespace_fields=fields))
    text = " ".join(piece.text for line in lines(state, 60, 0.0) for piece in line)
    assert ("kept as int8, approximate" in " ".join(text.split())) == bool(fields)
