"""Weights made into blocks: what the bytes mean to gguf's own reader, and what they lose."""

from __future__ import annotations

import gguf
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from chatcache.backends.local.packed.blocks import KINDS, BlockMatrix
from chatcache.backends.local.packed.quantize import is_quantizable, quantizing

# The largest error of a weight, as a share of the range of its group.
WORST = {"Q8_0": 0.005, "Q4_1": 0.12, "Q5_1": 0.06, "Q4_K": 0.15, "Q6_K": 0.04}


def made(weight: torch.Tensor, kind: str) -> BlockMatrix:
    with quantizing() as quantize:
        return quantize(weight, KINDS[kind])


def read_back(matrix: BlockMatrix, num_columns: int) -> torch.Tensor:
    """By the reader of the gguf package, which knows nothing of chatcache."""
    kind = gguf.GGMLQuantizationType(matrix.kind.ggml_type)
    return torch.from_numpy(gguf.dequantize(matrix.data.numpy(), kind)).reshape(-1, num_columns)


def squared_error(weight: torch.Tensor, read: torch.Tensor) -> float:
    return float((weight - read).square().sum())


@pytest.mark.parametrize("kind", WORST)
@given(
    seed=st.integers(0, 2**32 - 1),
    num_rows=st.integers(1, 5),
    scale=st.sampled_from([0.02, 1.0, 50.0]),
    shift=st.sampled_from([-3.0, -0.5, 0.0, 0.5, 3.0]),
)
@settings(max_examples=15, deadline=None)
def test_no_weight_is_far_from_what_it_was(
    kind: str, seed: int, num_rows: int, scale: float, shift: float
) -> None:
    generator = torch.Generator().manual_seed(seed)
    weight = scale * (torch.randn((num_rows, 512), generator=generator) + shift)
    read = read_back(made(weight, kind), 512)
    size = 256 if kind == "Q4_K" else 32
    groups = weight.reshape(-1, size)
    span = groups.amax(1).clamp(min=0) - groups.amin(1).clamp(max=0)
    error = (weight - read).reshape(-1, size).abs().amax(1)
    assert bool((error <= WORST[kind] * span + 1e-6).all())


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_1", "Q5_1"])
def test_it_loses_less_than_the_plain_way(kind: str) -> None:
    weight = 0.02 * torch.randn((64, 512), generator=torch.Generator().manual_seed(3))
    plain = gguf.quantize(weight.numpy(), gguf.GGMLQuantizationType[kind])
    plain_read = torch.from_numpy(gguf.dequantize(plain, gguf.GGMLQuantizationType[kind]))
    ours = squared_error(weight, read_back(made(weight, kind), 512))
    assert ours < squared_error(weight, plain_read)


@pytest.mark.parametrize(
    ("kind", "share"),
    # What llama.cpp's own quantiser (0.3.36 of llama-cpp-python) loses of such weights.
    [("Q4_K", 5.09e-3), ("Q6_K", 3.15e-4)],
)
def test_it_loses_no_more_than_llama_cpp(kind: str, share: float) -> None:
    weight = 0.02 * torch.randn((512, 1024), generator=torch.Generator().manual_seed(1))
    error = squared_error(weight, read_back(made(weight, kind), 1024))
    assert error / float(weight.square().sum()) <= share


@pytest.mark.parametrize("kind", WORST)
@pytest.mark.parametrize("value", [0.0, 0.75, -0.75])
def test_equal_weights_stay_as_they_are(kind: str, value: float) -> None:
    weight = torch.full((2, 512), value)
    assert torch.allclose(read_back(made(weight, kind), 512), weight, rtol=2e-3)


@pytest.mark.parametrize("kind", WORST)
def test_an_outlier_does_not_spoil_other_groups(kind: str) -> None:
    weight = 0.01 * torch.randn((1, 1024), generator=torch.Generator().manual_seed(5))
    weight[0, 3] = 8.0
    read = read_back(made(weight, kind), 1024)
    assert abs(float(read[0, 3]) - 8.0) < 0.3
    assert squared_error(weight[:, 256:], read[:, 256:]) < 0.01 * float(weight[:, 256:].norm() ** 2)


def test_what_is_on_the_grid_of_four_bits_is_kept() -> None:
    codes = torch.randint(0, 16, (8, 256), generator=torch.Generator().manual_seed(7)).float()
    codes[:, ::32], codes[:, 1::32] = 0.0, 15.0
    weight = codes * 0.125 - 1.0
    assert torch.equal(read_back(made(weight, "Q4_1"), 256), weight)


def test_the_bytes_depend_neither_on_threads_nor_on_the_rows_beside() -> None:
    weight = torch.randn((700, 256), generator=torch.Generator().manual_seed(9))
    before = torch.get_num_threads()
    whole = made(weight, "Q4_K").data
    try:
        torch.set_num_threads(1)
        assert np.array_equal(made(weight, "Q4_K").data.numpy(), whole.numpy())
    finally:
        torch.set_num_threads(before)
    assert torch.equal(made(weight[5:9], "Q4_K").data, whole[5:9])
    assert torch.get_num_threads() == before


def test_half_precision_is_read_as_it_is() -> None:
    weight = torch.randn((4, 256), generator=torch.Generator().manual_seed(2)).bfloat16()
    assert torch.equal(made(weight, "Q8_0").data, made(weight.float(), "Q8_0").data)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e6])
def test_what_blocks_cannot_hold_is_told(value: float) -> None:
    weight = torch.zeros((2, 32))
    assert is_quantizable(weight)
    weight[1, 7] = value
    assert not is_quantizable(weight)


def test_rows_must_be_whole_blocks_of_a_kind_that_is_made() -> None:
    with pytest.raises(ValueError, match="no whole number"):
        made(torch.zeros((2, 48)), "Q8_0")
    with pytest.raises(ValueError, match="not made"):
        made(torch.zeros((2, 256)), "IQ4_XS")
