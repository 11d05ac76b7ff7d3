"""Checkpoints in other forms: the part for text of a model that also sees, and the like."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForImageTextToText

from chatcache.backends.local.model.families import SEEING_FAMILIES
from chatcache.backends.local.model.loadable import obstacle
from chatcache.backends.local.model.loader import load_model
from chatcache.backends.local.model.needs import directory_needs
from chatcache.backends.local.model.remarks import remarks
from chatcache.backends.local.model.resolve import read_template
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
