"""Packed weights as a GPU computes with them, on the CPU: torch alone, kind by kind."""

from __future__ import annotations

import copy
from typing import Any

import gguf
import pytest
import torch

from chatcache.backends.local.model import memory_check
from chatcache.backends.local.model.gguf.loading import load_gguf
from chatcache.backends.local.model.loader import load_config
from chatcache.backends.local.model.memory_check import MemoryCheck
from chatcache.backends.local.model.quantized import packing_of
from chatcache.backends.local.model.source import ModelSource, open_source
from chatcache.backends.local.packed import device_computing, modules
from chatcache.backends.local.packed.blocks import KINDS, BlockMatrix
from chatcache.backends.local.packed.blocks import is_packed as is_packed_model
from chatcache.backends.local.packed.device_computing import UNPACKERS, product, unpacked
from chatcache.backends.local.packed.install import replace_with_blocks
from chatcache.backends.local.packed.known import UnknownStepError, size_of
from chatcache.backends.local.run.forward import Forward
from chatcache.cache.tensors.buckets import BucketLayer
from chatcache.cache.tensors.live_kv import LiveKV
from chatcache.errors import UnavailableError
from chatcache.machine import MemoryLimit
from tests.equivalence.families import CAPTURED, family_model
from tests.gguf_models import write_model
from tests.recorded_calls import RecordedCalls
from tests.unit.test_packed_kernels import random_blocks, reference


@pytest.mark.parametrize("name", sorted(KINDS))
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_unpacking_gives_the_bits_of_the_reference(name: str, dtype: torch.dtype) -> None:
    matrix = random_blocks(name, 13, 512)
    assert torch.equal(unpacked(matrix, dtype), reference(matrix).to(dtype))


def test_every_kind_is_known() -> None:
    assert set(UNPACKERS) | {"F32", "F16", "BF16"} == set(KINDS)


@pytest.mark.parametrize("part_weights", [1, 1 << 23])
def test_products_are_those_of_the_unpacked_weights(
    part_weights: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device_computing, "_PART_WEIGHTS", part_weights)
    matrix = random_blocks("Q4_K", 21, 512)
    rows = torch.randn((3, 512), generator=torch.Generator().manual_seed(1))
    expected = rows.double() @ reference(matrix).double().T
    torch.testing.assert_close(product(rows, matrix).double(), expected, atol=1e-4, rtol=1e-4)


def with_blocks(model: Any, form: str) -> None:
    """Put the weights of all linear layers into blocks, and the same weights back where they were
    in a copy: both models then have the same numbers."""
    for name, module in list(model.named_modules()):
        if type(module) is torch.nn.Linear or type(module) is torch.nn.Embedding:
            kind = gguf.GGMLQuantizationType[form]
            blocks = torch.from_numpy(gguf.quantize(module.weight.detach().numpy(), kind))
            matrix = BlockMatrix(KINDS[form], blocks, module.weight.shape[1])
            replace_with_blocks(model, name, matrix, torch.float32)


@pytest.mark.parametrize("form", ["Q8_0", "Q4_0"])
def test_a_packed_model_has_the_bits_of_an_unpacked_one_and_is_captured(form: str) -> None:
    plain = family_model(CAPTURED + "qwen3", tie_word_embeddings=False)
    packed = copy.deepcopy(plain)
    with_blocks(packed, form)
    modules.compute_plainly(packed)
    for name, module in packed.named_modules():
        if isinstance(module, modules.BlockLinear | modules.BlockEmbedding):
            weights = unpacked(module.matrix, torch.float32)
            plain.get_submodule(name).weight.data.copy_(weights)
    ids = torch.tensor([[3, 14, 15, 92, 65]])
    with torch.inference_mode():
        assert torch.equal(packed(input_ids=ids).logits, plain(input_ids=ids).logits)
    graphs, cpu = RecordedCalls(), torch.device("cpu")
    forward = Forward(packed, cpu, graphs=graphs)
    num_layers = packed.config.num_hidden_layers
    forward.settle(LiveKV(num_layers, torch.float32, cpu, new_layer=BucketLayer))
    assert forward.static is not None
    assert graphs.num_captured == 1


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> ModelSource:
    directory = tmp_path_factory.mktemp("gguf")
    write_model(directory / "model.gguf", "qwen3", "Q4_0")
    return open_source("m", directory / "model.gguf", directory / "cache")


@pytest.mark.parametrize(("share", "is_packed"), [(3.0, False), (0.8, True)])
def test_a_file_stays_packed_on_a_gpu_without_room_for_more(
    source: ModelSource, share: float, is_packed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The share is that of the unpacked weights for which the card has room."""
    card, bfloat16 = torch.device("cuda"), torch.bfloat16
    context = source._needs(bfloat16, card, is_packed=True)
    beside = context.bytes_per_token * context.max_tokens
    room = int(share * 2 * source.num_parameters) + beside
    limit = MemoryLimit("the GPU (a small one)", room, room)
    monkeypatch.setattr(memory_check, "_gpu_limits", lambda device: [limit])
    memory = MemoryCheck(limits=lambda: [])
    assert source.stays_packed(bfloat16, card, memory) == is_packed
    assert source.look(bfloat16, card, memory, None).verdict == "fits"
    assert source.stays_packed(bfloat16, torch.device("cpu"), memory)
    assert not source.stays_packed(bfloat16, torch.device("mps"), memory)


@pytest.mark.parametrize("is_unpacked", [False, True])
def test_a_file_can_be_loaded_either_way(source: ModelSource, is_unpacked: bool) -> None:
    assert source.gguf is not None
    config, cpu = load_config(source.directory), torch.device("cpu")
    model, said = load_gguf(source.gguf, config, torch.float32, cpu, is_unpacked=is_unpacked)
    assert is_packed_model(model) != is_unpacked
    assert any("unpacked" in text for text in said) == is_unpacked


def test_weights_are_quantised_for_a_cuda_device_too() -> None:
    assert packing_of("4bit", torch.device("cuda")) == "4bit"
    with pytest.raises(UnavailableError, match="mps"):
        packing_of("4bit", torch.device("mps"))


def test_a_packed_layer_elsewhere_takes_no_step_of_the_processor() -> None:
    layer = modules.BlockLinear(random_blocks("Q8_0", 16, 64))
    assert size_of(layer) == (16, 64)
    with pytest.raises(UnknownStepError):
        size_of(layer.to("meta"))
