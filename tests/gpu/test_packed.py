"""Packed weights on a card: the bits of the reference, and steps that are captured."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from chatcache.backends.local.model.attention import install
from chatcache.backends.local.model.gguf.loading import load_gguf
from chatcache.backends.local.model.loader import load_config
from chatcache.backends.local.model.source import open_source
from chatcache.backends.local.packed.blocks import KINDS, BlockMatrix
from chatcache.backends.local.packed.device_computing import unpacked
from chatcache.backends.local.packed.modules import BlockLinear
from chatcache.backends.local.run.forward import Forward
from chatcache.cache.tensors.live_kv import LiveKV
from tests.equivalence.test_static_step import PROMPT, spoken
from tests.gguf_models import write_model
from tests.unit.test_packed_kernels import random_blocks, reference


@pytest.mark.parametrize("name", sorted(KINDS))
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_unpacking_gives_the_bits_of_the_reference(
    name: str, dtype: torch.dtype, card: torch.device
) -> None:
    matrix = random_blocks(name, 13, 512)
    there = BlockMatrix(matrix.kind, matrix.data.to(card), matrix.num_columns)
    assert torch.equal(unpacked(there, dtype).cpu(), reference(matrix).to(dtype))


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
        forward = Forward(model, card)
        live = LiveKV(config.num_hidden_layers, torch.bfloat16, card)
        forward.settle(live)
        assert forward.static is not None
        assert forward.static.num_captured == 1
        said.append(forward(live, PROMPT, 0))
        spoken(forward, live, 12)
    deviation = (said[0] - said[1]).float().abs().max() / said[1].float().std()
    assert deviation <= 0.1
