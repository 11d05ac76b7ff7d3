"""Kernels of packed weights against the reference of the `gguf` package, kind by kind."""

from __future__ import annotations

from typing import Any

import gguf
import numpy as np
import pytest
import torch

from chatcache.backends.local.packed.blocks import KINDS, BlockMatrix
from chatcache.backends.local.packed.computing import max_few, unpacked
from chatcache.backends.local.packed.kernels import PRODUCT_KINDS
from chatcache.backends.local.packed.modules import BlockEmbedding, BlockLinear

KNOWN = sorted(name for name, kind in KINDS.items() if kind.ggml_type in PRODUCT_KINDS)


def random_blocks(name: str, num_rows: int, num_columns: int, seed: int = 0) -> BlockMatrix:
    """Blocks of any bytes, with scales that are numbers."""
    kind, random = KINDS[name], np.random.default_rng(seed)
    data = random.integers(0, 256, (num_rows, kind.row_bytes(num_columns)), dtype=np.uint8)
    blocks = data.reshape(num_rows, -1, kind.num_bytes)
    halves = {"Q4_1": (0, 2), "Q5_1": (0, 2), "Q4_K": (0, 2), "Q5_K": (0, 2), "Q6_K": (208,)}
    halves |= {"Q2_K": (80, 82), "Q3_K": (108,), "TQ1_0": (52,), "TQ2_0": (64,)}
    if name in ("F32", "F16", "BF16"):
        wide = random.standard_normal((num_rows, num_columns)).astype(np.float32)
        data = gguf.quantize(wide, gguf.GGMLQuantizationType[name]).view(np.uint8)
    elif name == "MXFP4":  # a power of two: the smallest ones, which are denormal, among them
        blocks[:, :, 0] = random.choice([0, 1, 2, 100, 120, 127], blocks.shape[:2])
    else:
        for offset in halves.get(name, (0,)):
            scales = (random.random(blocks.shape[:2]) * 0.01).astype(np.float16)
            blocks[:, :, offset : offset + 2] = scales.view(np.uint8).reshape(*scales.shape, 2)
    return BlockMatrix(kind, torch.from_numpy(data.reshape(num_rows, -1)), num_columns)


def reference(matrix: BlockMatrix) -> torch.Tensor:
    kind = gguf.GGMLQuantizationType[matrix.kind.name]
    weights: Any = gguf.dequantize(matrix.data.numpy(), kind)
    return torch.from_numpy(weights.astype(np.float32)).view(matrix.num_rows, matrix.num_columns)


@pytest.mark.parametrize("name", KNOWN)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_unpacking_gives_the_bits_of_the_reference(name: str, dtype: torch.dtype) -> None:
    matrix = random_blocks(name, 13, 512)
    assert torch.equal(unpacked(matrix, dtype), reference(matrix).to(dtype))


@pytest.mark.parametrize("name", KNOWN)
@pytest.mark.parametrize("num_rows", [1, 3, 8, 16, 17, 40])
@pytest.mark.parametrize("outlier", [1.0, 50.0])
def test_products_are_those_of_the_unpacked_weights(
    name: str, num_rows: int, outlier: float
) -> None:
    """Activations are rounded to 15 bits of the largest in their group, and no other error is made:
    half a unit each, times the weight, at most."""
    matrix = random_blocks(name, 37, 768)
    weights = reference(matrix).double()
    states = torch.randn((2, num_rows, 768), generator=torch.Generator().manual_seed(1))
    states[:, :, 5] *= outlier  # a channel that is far larger than the others, as models have them
    expected = states.double() @ weights.T
    groups = states.view(2, num_rows, 3, 256).double().abs().amax(-1) / 16383 / 2
    bound = groups @ weights.abs().view(37, 3, 256).sum(-1).T
    float_error = 1e-6 * (states.double().abs() @ weights.abs().T)
    got = BlockLinear(matrix)(states)
    assert got.shape == expected.shape
    assert ((got - expected).abs() <= bound + float_error).all()


@pytest.mark.parametrize("name", KNOWN)
def test_a_row_gives_the_same_bits_alone_and_among_others(name: str) -> None:
    layer = BlockLinear(random_blocks(name, 37, 768))
    most = max_few(KINDS[name])
    states = torch.randn((most, 768), generator=torch.Generator().manual_seed(3))
    alone = torch.cat([layer(row[None]) for row in states])
    for num_rows in (2, 3, 5, 7, most):
        assert torch.equal(layer(states[:num_rows]), alone[:num_rows])


@pytest.mark.parametrize("name", KNOWN)
@pytest.mark.parametrize("num_blocks", [1, 2, 3, 5, 6, 7])
def test_a_row_may_have_any_number_of_blocks(name: str, num_blocks: int) -> None:
    num_columns = num_blocks * max(KINDS[name].num_weights, 32)
    matrix = random_blocks(name, 3, num_columns)
    states = torch.randn((1, num_columns), generator=torch.Generator().manual_seed(4))
    expected = states.double() @ reference(matrix).double().T
    torch.testing.assert_close(
        BlockLinear(matrix)(states).double(), expected, rtol=2e-3, atol=2e-3 * expected.abs().max()
    )


@pytest.mark.parametrize("name", KNOWN)
def test_products_do_not_depend_on_the_number_of_threads(name: str) -> None:
    matrix = random_blocks(name, 61, 512)
    states = torch.randn((1, 512), generator=torch.Generator().manual_seed(2))
    before = torch.get_num_threads()
    results = []
    try:
        for num_threads in (1, 2, 3, 7):
            torch.set_num_threads(num_threads)
            results.append(BlockLinear(matrix)(states))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(result, results[0]) for result in results)


@pytest.mark.parametrize("name", KNOWN)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_numbers_that_are_not_finite_are_not_hidden(name: str, value: float) -> None:
    states = torch.ones((1, 512))
    states[0, 300] = value
    assert not torch.isfinite(BlockLinear(random_blocks(name, 8, 512))(states)).any()


def test_zeros_give_zeros_and_a_bias_is_added() -> None:
    bias = torch.arange(9.0)
    assert torch.equal(
        BlockLinear(random_blocks("Q4_K", 9, 256), bias)(torch.zeros(1, 256))[0], bias
    )


@pytest.mark.parametrize("name", KNOWN)
def test_an_embedding_gives_the_rows(name: str) -> None:
    matrix = random_blocks(name, 30, 256)
    ids = torch.tensor([[3, 29, 3]])
    expected = reference(matrix)[ids]
    assert torch.equal(BlockEmbedding(matrix, torch.float32)(ids), expected)
    assert torch.equal(BlockEmbedding(matrix, torch.bfloat16)(ids), expected.bfloat16())
