"""Packed weights on a card: the bits of the reference, kernels, and steps that are captured."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from chatcache.backends.local.model.attention import install
from chatcache.backends.local.model.gguf.loading import load_gguf
from chatcache.backends.local.model.loader import load_config
from chatcache.backends.local.model.source import open_source
from chatcache.backends.local.packed import device_ready
from chatcache.backends.local.packed.blocks import KINDS, BlockMatrix
from chatcache.backends.local.packed.device_computing import FEW_ROWS, product, unpacked
from chatcache.backends.local.packed.device_layout import LAYOUTS, split
from chatcache.backends.local.packed.modules import BlockLinear
from chatcache.backends.local.run.forward import Forward
from chatcache.backends.local.run.graphs import CudaGraphs
from chatcache.cache.tensors.live_kv import LiveKV
from tests.equivalence.test_static_step import PROMPT, spoken
from tests.gguf_models import write_model
from tests.unit.test_packed_kernels import random_blocks, reference

IS_PRETENDED = "CHATCACHE_PRETENDED_GPU" in os.environ
needs_kernels = pytest.mark.skipif(IS_PRETENDED, reason="a pretended card runs no kernels")


@pytest.mark.parametrize("name", sorted(KINDS))
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_unpacking_gives_the_bits_of_the_reference(
    name: str, dtype: torch.dtype, card: torch.device
) -> None:
    there = _on(card, matrix := random_blocks(name, 13, 512))
    assert torch.equal(unpacked(there, dtype).cpu(), reference(matrix).to(dtype))


def _on(card: torch.device, matrix: BlockMatrix) -> BlockMatrix:
    return BlockMatrix(matrix.kind, matrix.data.to(card), matrix.num_columns)


@needs_kernels
@pytest.mark.parametrize("name", sorted(LAYOUTS))
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_kernels_are_trusted(name: str, dtype: torch.dtype, card: torch.device) -> None:
    for num_columns in (256, 2560, 4096):
        matrix = _on(card, random_blocks(name, 37, num_columns))
        assert device_ready.why_not(matrix, dtype) == ""


@needs_kernels
@pytest.mark.parametrize("name", sorted(LAYOUTS))
@pytest.mark.parametrize("num_rows", [1, 2, 5, 16, 17, 100])
def test_products_are_those_of_the_unpacked_weights(
    name: str, num_rows: int, card: torch.device
) -> None:
    matrix = random_blocks(name, 1027, 1280)
    rows = torch.randn((num_rows, 1280), generator=torch.Generator().manual_seed(1))
    weights, wide = reference(matrix).double().T, rows.double()
    found = product(rows.to(card), split(_on(card, matrix))).cpu().double()
    bound = 1e-5 * (wide.abs() @ weights.abs())
    assert ((found - wide @ weights).abs() <= bound).all()


@needs_kernels
@pytest.mark.parametrize("name", sorted(LAYOUTS))
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_row_gives_the_same_bits_alone_and_among_others(
    name: str, dtype: torch.dtype, card: torch.device
) -> None:
    matrix = split(_on(card, random_blocks(name, 129, 2560)))
    generator = torch.Generator().manual_seed(3)
    rows = torch.randn((FEW_ROWS, 2560), generator=generator).to(card, dtype)
    alone = torch.cat([product(row[None], matrix) for row in rows])
    for num_rows in (2, 3, 8, 9, FEW_ROWS):
        assert torch.equal(product(rows[:num_rows], matrix), alone[:num_rows])


@needs_kernels
@pytest.mark.parametrize("num_rows", [1, 16, 64])
def test_a_graph_holds_products(num_rows: int, card: torch.device) -> None:
    matrix = split(_on(card, random_blocks("Q4_K", 512, 1024)))
    rows = torch.zeros((num_rows, 1024), dtype=torch.bfloat16, device=card)
    output = torch.zeros((num_rows, 512), dtype=torch.bfloat16, device=card)
    replay = CudaGraphs(card).capture(lambda: output.copy_(product(rows, matrix)) and None)
    rows.copy_(torch.randn((num_rows, 1024), generator=torch.Generator().manual_seed(4)))
    replay()
    assert torch.equal(output, product(rows, matrix))


def test_a_file_in_4_bits_is_read_and_captured(card: torch.device, tmp_path: Path) -> None:
    write_model(tmp_path / "model.gguf", "qwen3", "Q4_0")
    source = open_source("m", tmp_path / "model.gguf", tmp_path / "cache")
    assert source.gguf is not None
    config = load_config(source.directory)
    said = []
    for is_unpacked in (False, True):
        model, _ = load_gguf(source.gguf, config, torch.bfloat16, card, is_unpacked=is_unpacked)
        assert any(isinstance(part, BlockLinear) for part in model.modules()) != is_unpacked
        install(model, card)
        assert device_ready.get_ready(model) == (not is_unpacked and not IS_PRETENDED)
        assert bool(device_ready.remarks(model)) == (not is_unpacked and IS_PRETENDED)
        forward = Forward(model, card)
        live = LiveKV(config.num_hidden_layers, torch.bfloat16, card)
        forward.settle(live)
        assert forward.static is not None
        assert forward.static.num_captured == 1
        said.append(forward(live, PROMPT, 0))
        spoken(forward, live, 12)
    deviation = (said[0] - said[1]).float().abs().max() / said[1].float().std()
    assert deviation <= 0.1
