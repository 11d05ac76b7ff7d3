"""Weights that other programs saved in few bits are those of the model that they were made of."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from chatcache.backends.local.model.loadable import obstacle
from chatcache.backends.local.model.loader import load_model
from chatcache.backends.local.model.needs import count_weights, directory_needs
from chatcache.backends.local.model.remarks import remarks
from chatcache.errors import ModelLoadError
from tests import packers
from tests.models import build_model_dir

IDS = torch.tensor([[5, 17, 200, 31, 8, 99, 3, 250]])


def method(name: str, **settings: Any) -> dict[str, Any]:
    return {"quantization_config": {"quant_method": name, **settings}}


def compressed(kind: str, **weights: Any) -> dict[str, Any]:
    return method(
        "compressed-tensors", format=kind, config_groups={"group_0": {"weights": weights}}
    )


FORMS: dict[str, tuple[Callable[..., Any], dict[str, Any]]] = {
    "gptq, 4 bits": (packers.gptq(4), method("gptq", bits=4, group_size=32)),
    "gptq, 8 bits, in the order of importance": (
        packers.gptq(8, is_shuffled=True),
        method("gptq", bits=8, group_size=32, desc_act=True),
    ),
    "gptq, second version, 2 bits": (
        packers.gptq(2, "gptq_v2"),
        method("gptq", bits=2, checkpoint_format="gptq_v2"),
    ),
    "awq": (packers.awq, method("awq", bits=4, version="gemm", zero_point=True)),
    "bitsandbytes, 4 bits": (
        packers.bitsandbytes_4bit(is_nested=False),
        method("bitsandbytes", load_in_4bit=True, bnb_4bit_quant_type="nf4"),
    ),
    "bitsandbytes, 4 bits, twice": (
        packers.bitsandbytes_4bit(is_nested=True),
        method("bitsandbytes", load_in_4bit=True, bnb_4bit_use_double_quant=True),
    ),
    "bitsandbytes, 8 bits": (packers.bitsandbytes_8bit, method("bitsandbytes", load_in_8bit=True)),
    "fp8 in blocks": (packers.fp8(48), method("fp8", weight_block_size=[48, 48])),
    "fp8, one scale": (packers.fp8(-1), method("fp8", weight_block_size=None)),
    "fp8 of fbgemm": (packers.fp8(0, "weight_scale"), method("fbgemm_fp8")),
    "fp8 of modelopt": (packers.fp8(-1, "weight_scale"), method("modelopt", quant_algo="FP8")),
    "nvfp4 of modelopt": (packers.nvfp4("modelopt"), method("modelopt", quant_algo="NVFP4")),
    "compressed-tensors, 4 bits": (
        packers.compressed(4, is_symmetric=True),
        compressed("pack-quantized", num_bits=4, group_size=32),
    ),
    "compressed-tensors, 4 bits with zeros": (
        packers.compressed(4, is_symmetric=False),
        compressed("pack-quantized", num_bits=4, group_size=32, symmetric=False),
    ),
    "compressed-tensors, fp8": (
        packers.fp8(0, "weight_scale"),
        compressed("float-quantized", num_bits=8, type="float"),
    ),
    "compressed-tensors, 8 bits": (packers.int8_rows, compressed("int-quantized", num_bits=8)),
    "compressed-tensors, nvfp4": (
        packers.nvfp4("compressed"),
        compressed("nvfp4-pack-quantized", num_bits=4, type="float"),
    ),
    "MLX, 4 bits": (
        packers.mlx(4),
        {
            "quantization": {"group_size": 32, "bits": 4},
            "quantization_config": {"group_size": 32, "bits": 4},
        },
    ),
    "MLX, 3 bits, across words": (packers.mlx(3), {"quantization": {"group_size": 32, "bits": 3}}),
    "MLX, 6 bits": (packers.mlx(6), {"quantization": {"group_size": 32, "bits": 6}}),
}


@pytest.mark.parametrize("name", FORMS)
def test_logits_are_those_of_the_unpacked_model(name: str, tmp_path: Path) -> None:
    pack, config = FORMS[name]
    plain, path = build_model_dir(tmp_path / "plain"), build_model_dir(tmp_path / "packed")
    num_weights = count_weights(plain)
    values = packers.repack(path, pack, config, with_embedding=name.startswith("MLX"))
    save_file(values, plain / "model.safetensors", {"format": "pt"})
    original = AutoModelForCausalLM.from_pretrained(plain, dtype=torch.float32)
    assert obstacle(path) is None
    loaded = load_model(str(path), device="cpu")
    with torch.no_grad():
        expected, logits = original(IDS).logits, loaded.model(IDS).logits
    assert torch.allclose(logits, expected, atol=1e-4), (logits - expected).abs().max()
    assert loaded.num_parameters == sum(each.numel() for each in original.parameters())
    assert num_weights <= directory_needs(path, "float32").weights // 4 < 1.3 * num_weights
    (note,) = (text for text in remarks(loaded, is_dtype_chosen=False) if "few bits" in text)
    assert "float32" in note


def test_a_layout_that_is_not_as_it_says_names_the_tensor(tmp_path: Path) -> None:
    path = build_model_dir(tmp_path / "model")
    packers.repack(path, packers.gptq(4), method("gptq", bits=4))
    file = path / "model.safetensors"
    tensors = load_file(file)
    name = next(name for name in tensors if name.endswith("qzeros"))
    tensors[name] = tensors[name][:, :1].contiguous()
    save_file(tensors, file, {"format": "pt"})
    with pytest.raises(ModelLoadError, match="is not laid out as gptq"):
        load_model(str(path))


@pytest.mark.parametrize(
    ("config", "words", "advice"),
    [
        (
            method("gptq", bits=3),
            r"gptq \(3 bits\), which needs gptqmodel",
            "pip install gptqmodel",
        ),
        (method("awq", bits=4, version="gemv"), r"awq \(gemv, 4 bits\)", "pip install gptqmodel"),
        (method("torchao"), "torchao, which needs torchao", "pip install torchao"),
        (method("hqq"), "hqq, which needs hqq", "not quantised"),
        (method("something new"), "something new, which cannot be read", "not quantised"),
        (
            compressed("marlin-24", num_bits=4),
            "marlin-24, 4 bits",
            "pip install compressed-tensors",
        ),
        ({"quantization": {"bits": 4, "mode": "mxfp4"}}, r"MLX \(mxfp4", "not quantised"),
    ],
)
def test_what_cannot_be_unpacked_names_the_way_out(
    config: dict[str, Any], words: str, advice: str, tmp_path: Path
) -> None:
    path = build_model_dir(tmp_path / "model")
    file = path / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | config))
    with pytest.raises(ModelLoadError, match=words) as caught:
        load_model(str(path))
    assert advice in caught.value.hint


def test_the_experts_of_gpt_oss_in_mxfp4_are_unpacked(tmp_path: Path) -> None:
    sizes = {
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "layer_types": ["full_attention"] * 2,
    }
    path = build_model_dir(tmp_path / "packed", "gpt_oss", **sizes)
    plain = build_model_dir(tmp_path / "plain", "gpt_oss", **sizes)
    file = path / "model.safetensors"
    tensors = load_file(file)
    values = dict(tensors)
    for name in [name for name in tensors if name.endswith(("gate_up_proj", "down_proj"))]:
        weight = tensors.pop(name)  # [experts, in, out]; the blocks go along the inputs
        blocks, scales, value = packers.mxfp4(weight.transpose(1, 2))
        tensors[f"{name}_blocks"], tensors[f"{name}_scales"] = blocks, scales
        values[name] = value.transpose(1, 2).contiguous()
    save_file(tensors, file, {"format": "pt"})
    save_file(values, plain / "model.safetensors", {"format": "pt"})
    config = path / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | method("mxfp4")))
    assert obstacle(path) is None
    loaded, original = load_model(str(path), device="cpu"), load_model(str(plain), device="cpu")
    with torch.no_grad():
        expected, logits = original.model(IDS).logits, loaded.model(IDS).logits
    assert loaded.dtype == torch.float32
    assert torch.allclose(logits, expected, atol=1e-4), (logits - expected).abs().max()


def test_few_bits_of_others_can_become_few_bits_of_ours(tmp_path: Path) -> None:
    path = build_model_dir(tmp_path / "model", hidden_size=256)
    packers.repack(path, packers.gptq(4), method("gptq", bits=4, group_size=32))
    exact = load_model(str(path), device="cpu")
    loaded = load_model(str(path), device="cpu", quantize="8bit", cache_dir=tmp_path / "cache")
    with torch.no_grad():
        expected, logits = exact.model(IDS).logits, loaded.model(IDS).logits
    assert torch.nn.functional.cosine_similarity(logits, expected, dim=-1).min() > 0.99
    assert not any("few bits" in text for text in remarks(loaded, is_dtype_chosen=False))
