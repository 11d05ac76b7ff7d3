"""Checkpoints in other forms: the part for text of a model that also sees, and the like."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForImageTextToText

from chatcache import compose
from chatcache.backends.local.model import shelf
from chatcache.backends.local.model.bases import ADAPTER_WEIGHTS
from chatcache.backends.local.model.families import SEEING_FAMILIES
from chatcache.backends.local.model.loadable import obstacle
from chatcache.backends.local.model.loader import load_model
from chatcache.backends.local.model.needs import directory_needs
from chatcache.backends.local.model.remarks import remarks
from chatcache.backends.local.model.resolve import read_template
from chatcache.backends.local.study.probe import probe_model
from chatcache.config import load_settings
from chatcache.errors import ModelLoadError
from tests.models import CHATML_TEMPLATE, build_model_dir, build_tokenizer

IDS = torch.tensor([[5, 17, 200, 31, 8, 99, 3, 250]])
SIZES = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def seeing_config(family: str, vocab_size: int) -> Any:
    """A tiny one: the sizes of the text are ours, those of the rest as small as they can be."""
    whole = AutoConfig.for_model(family)
    text = whole.text_config.to_dict() | SIZES | {"vocab_size": vocab_size}
    for name, value in (
        ("head_dim", 16),
        ("layer_types", None),
        ("num_experts", 4),
        ("num_experts_per_tok", 2),
        ("moe_intermediate_size", 32),
    ):
        if name in text:
            text[name] = value
    if family.startswith(("qwen2", "qwen3")):
        mrope = {"rope_type": "default", "rope_theta": 10_000.0, "mrope_section": [4, 2, 2]}
        text["rope_parameters"] = mrope
    fields: dict[str, Any] = {"text_config": text, "image_token_id": 7, "video_token_id": 6}
    if (vision := getattr(whole, "vision_config", None)) is not None:
        small = vision.to_dict()
        for name in small:
            if name in VISION:
                small[name] = VISION[name]
            elif name == "layer_types":
                small[name] = None
        fields["vision_config"] = small
    return AutoConfig.for_model(family, **fields)


VISION = {
    "hidden_size": 32,
    "embed_dim": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "depth": 1,
    "num_attention_heads": 2,
    "num_heads": 2,
    "image_size": 28,
    "patch_size": 14,
    "out_hidden_size": 64,
    "head_dim": 16,
    "deepstack_visual_indexes": [0],
    "fullatt_block_indexes": [0],
}


@pytest.mark.parametrize("family", sorted(SEEING_FAMILIES))
def test_the_part_for_text_reads_text_as_the_whole_does(family: str, tmp_path: Path) -> None:
    tokenizer = build_tokenizer()
    config = seeing_config(family, len(tokenizer))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        whole = AutoModelForImageTextToText.from_config(config).float().eval()
        for name, parameter in whole.named_parameters():
            if parameter.dim() == 2 and "vision" not in name:
                torch.nn.init.normal_(parameter, std=0.2)
    whole.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    assert obstacle(tmp_path) is None
    loaded = load_model(str(tmp_path), device="cpu", dtype="float32")
    with torch.no_grad():
        expected, logits = whole(input_ids=IDS).logits, loaded.model(IDS).logits
    assert torch.allclose(logits, expected, atol=1e-3), (logits - expected).abs().max()
    assert "vision" not in "".join(name for name, _ in loaded.model.named_parameters())
    needed = directory_needs(tmp_path, "float16").held // 2
    assert needed == sum(each.numel() for each in loaded.model.parameters())
    assert any("sees no images" in text for text in remarks(loaded, is_dtype_chosen=True))


def test_the_template_of_a_model_that_sees_may_lie_beside_its_processor(tmp_path: Path) -> None:
    path = build_model_dir(tmp_path / "model", chat_template=None)
    (path / "chat_template.json").write_text(json.dumps({"chat_template": CHATML_TEMPLATE}))
    assert load_model(str(path)).tokenizer.chat_template == CHATML_TEMPLATE
    assert read_template(path) == CHATML_TEMPLATE


# the model that another one was made from


def cached(hub: Path, name: str, model: Path) -> Path:
    """Put a model into the Hugging Face cache."""
    folder = hub / f"models--{name.replace('/', '--')}"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text("abc123")
    return Path(shutil.copytree(model, folder / "snapshots" / "abc123"))


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


def without_tokenizer(path: Path) -> Path:
    for file in path.glob("*token*"):
        file.unlink()
    for name in ("chat_template.jinja", "special_tokens_map.json"):
        (path / name).unlink(missing_ok=True)
    return path


@pytest.mark.parametrize("said_in", ["config", "card", "card, a list"])
def test_a_fine_tune_without_tokenizer_gets_that_of_its_base(
    said_in: str, tmp_path: Path, hub: Path
) -> None:
    base = build_model_dir(tmp_path / "base")
    home = cached(hub, "me/base", base)
    tuned = without_tokenizer(build_model_dir(tmp_path / "tuned", seed=1))
    if said_in == "config":
        file = tuned / "config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | {"_name_or_path": "me/base"}))
    else:
        of_base = "base_model:\n- me/base" if "list" in said_in else 'base_model: "me/base"'
        (tuned / "README.md").write_text(f"---\nlicense: mit\n{of_base}\ntags: [x]\n---\n# Tuned\n")
    assert obstacle(tuned) is None
    loaded = load_model(str(tuned), cache_dir=tmp_path / "cache")
    assert loaded.tokenizer.chat_template == CHATML_TEMPLATE
    assert loaded.tokenizer_id == load_model(str(base)).tokenizer_id
    (note,) = (text for text in remarks(loaded, is_dtype_chosen=True) if "tokenizer" in text)
    assert str(home) in note


def test_a_tokenizer_of_another_size_is_not_lent(tmp_path: Path, hub: Path) -> None:
    cached(hub, "me/base", build_model_dir(tmp_path / "base", vocab_size=390))
    tuned = without_tokenizer(build_model_dir(tmp_path / "tuned"))
    (tuned / "README.md").write_text("---\nbase_model: me/base\n---\n")
    found = obstacle(tuned)
    assert found is not None
    assert "has no tokenizer" in found.problem
    assert "(me/base)" in found.advice


@pytest.mark.parametrize(
    "prefix", ["base_model.model.", "module.", "_orig_mod.", "module._orig_mod."]
)
def test_what_a_wrapper_left_in_front_of_the_names_is_taken_off(
    prefix: str, tmp_path: Path
) -> None:
    plain, wrapped = build_model_dir(tmp_path / "plain"), build_model_dir(tmp_path / "wrapped")
    file = wrapped / "model.safetensors"
    tensors = load_file(file)
    save_file({f"{prefix}{name}": each for name, each in tensors.items()}, file, {"format": "pt"})
    with torch.no_grad():
        expected = load_model(str(plain)).model(IDS).logits
        assert torch.equal(load_model(str(wrapped)).model(IDS).logits, expected)


def test_an_adapter_that_is_not_merged_says_so(tmp_path: Path) -> None:
    path = build_model_dir(tmp_path / "model")
    file = path / "model.safetensors"
    name = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.default.weight"
    save_file({**load_file(file), name: torch.zeros(4, 64)}, file, {"format": "pt"})
    found = obstacle(path)
    assert found is not None
    assert "an adapter that is not merged" in found.problem


def adapter(path: Path, base: str) -> Path:
    path.mkdir()
    told = {"base_model_name_or_path": base, "peft_type": "LORA"}
    (path / "adapter_config.json").write_text(json.dumps(told))
    save_file({"base_model.model.x.lora_A.weight": torch.zeros(1)}, path / ADAPTER_WEIGHTS)
    return path


def test_an_adapter_given_as_a_model_is_put_on_its_base(tmp_path: Path, hub: Path) -> None:
    base = build_model_dir(tmp_path / "base")
    places = {"paths.data_dir": str(tmp_path / "data"), "paths.cache_dir": str(tmp_path / "c")}
    for number, name in enumerate((str(base), "me/on-the-hub")):
        path = adapter(tmp_path / f"adapter{number}", name)
        settings = load_settings({**places, "model.default": str(path)}, {})
        engine = compose.engine_settings(settings)
        assert (engine.model, engine.adapter) == (name, path)
    compose.check_model(load_settings({**places, "model.default": str(tmp_path / "adapter0")}, {}))


def test_an_adapter_whose_base_is_nowhere_names_the_command(tmp_path: Path, hub: Path) -> None:
    path = adapter(tmp_path / "adapter", "/root/somebody/elses/model")
    settings = load_settings({"paths.data_dir": str(tmp_path), "model.default": str(path)}, {})
    with pytest.raises(ModelLoadError, match="an adapter for /root/somebody/elses/model") as caught:
        compose.check_model(settings)
    assert f"--adapter {path}" in caught.value.hint


def in_parts(path: Path) -> Path:
    """Split the weights of a model into two files, without an index."""
    file = path / "model.safetensors"
    tensors = list(load_file(file).items())
    for number, half in enumerate((tensors[:9], tensors[9:]), 1):
        part = path / f"model-{number:05}-of-00002.safetensors"
        save_file(dict(half), part, {"format": "pt"})
    file.unlink()
    return path


def test_parts_without_an_index_are_loaded_if_all_are_there(tmp_path: Path) -> None:
    plain, parted = build_model_dir(tmp_path / "plain"), in_parts(build_model_dir(tmp_path / "b"))
    assert obstacle(parted) is None
    with torch.no_grad():
        expected = load_model(str(plain)).model(IDS).logits
        assert torch.equal(load_model(str(parted)).model(IDS).logits, expected)
    (parted / "model-00002-of-00002.safetensors").unlink()
    found = obstacle(parted)
    assert found is not None
    assert "weight files without" in found.problem


def test_lists_and_the_probe_know_the_part_for_text(tmp_path: Path) -> None:
    tokenizer = build_tokenizer()
    config = seeing_config("qwen2_5_vl", len(tokenizer))
    AutoModelForImageTextToText.from_config(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    assert "any token" in shelf.at_hand(str(tmp_path)).reuse
    probe = probe_model(str(tmp_path))
    assert probe.cut.kind == "any_token"
    assert probe.kv_bytes_per_token == 2 * 2 * 2 * 16 * 4
