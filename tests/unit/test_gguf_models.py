"""GGUF files as models: the logits are those of the same weights unpacked, for every architecture
and every type of tensor; what the file says of its tokenizer holds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from chatcache.backends.local.model.capturing import takes_static_step
from chatcache.backends.local.model.gguf import derived
from chatcache.backends.local.model.gguf.derived import derived_directory, open_model
from chatcache.backends.local.model.gguf.loading import load_gguf
from chatcache.backends.local.model.gguf.types import READ_AS_Q8_0, TENSOR_TYPES
from chatcache.backends.local.model.loader import LoadedModel, load_config, load_model
from chatcache.backends.local.model.outlook import ENGINE_BYTES, outlook
from chatcache.backends.local.packed.blocks import KINDS
from chatcache.backends.local.packed.modules import BlockEmbedding, BlockExperts, BlockLinear
from chatcache.backends.local.study.perplexity import weight_bytes
from chatcache.errors import ModelLoadError, UnavailableError
from tests.gguf_files import UINT32, small_header
from tests.gguf_models import FAMILIES, MIXTURES, write_mixture, write_model

IDS = torch.tensor([[256, 10, 200, 33, 7, 91, 5, 5, 64, 128, 250, 11, 12]])
# The activations of a product are rounded to 16 bits where weights are multiplied as they lie.
TOLERANCE = 2e-3


def loaded(path: Path, cache_dir: Path | None = None) -> LoadedModel:
    return load_model(str(path), device="cpu", dtype="float32", cache_dir=cache_dir)


@torch.inference_mode()
def logits(model: Any, ids: torch.Tensor) -> torch.Tensor:
    found: torch.Tensor = model(ids).logits[0].float()
    return found


def difference(model: Any, expected: Any, ids: torch.Tensor = IDS) -> float:
    """The largest difference of logits, as a part of the largest logit."""
    wanted = logits(expected, ids)
    return float((logits(model, ids) - wanted).abs().max() / wanted.abs().max())


@pytest.mark.parametrize(
    ("architecture", "is_tied"),
    # Gemma 2 has no output layer of its own.
    [(name, tied) for name in FAMILIES for tied in (True, False) if tied or name != "gemma2"],
)
def test_logits_are_those_of_the_unpacked_weights(
    tmp_path: Path, architecture: str, is_tied: bool
) -> None:
    path = tmp_path / "model.gguf"
    expected = write_model(path, architecture, "Q8_0", is_tied=is_tied)
    found = loaded(path)
    assert difference(found.model, expected) < TOLERANCE
    assert difference(found.model, expected, IDS[:, :3]) < TOLERANCE  # few rows: another kernel
    assert found.quantization == "Q8_0"
    assert found.namespace_fields()["weights_form"] != "exact"
    kinds = [type(module) for module in found.model.modules()]
    assert torch.nn.Linear not in kinds
    assert BlockLinear in kinds
    assert BlockEmbedding in kinds


@pytest.mark.parametrize(
    "kind",
    [
        *("F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"),
        *("Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL", "IQ4_XS"),
    ],
)
def test_every_type_of_tensor_gives_its_weights(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "model.gguf"
    expected = write_model(path, "llama", kind)
    found = loaded(path)
    assert difference(found.model, expected) < TOLERANCE
    assert difference(found.model, expected, IDS[:, :3]) < TOLERANCE
    assert found.notes == ()


@pytest.mark.parametrize("kind", ["IQ3_S", "IQ2_XS"])
def test_a_type_that_nothing_multiplies_becomes_another_and_that_is_said(
    tmp_path: Path, kind: str
) -> None:
    path = tmp_path / "model.gguf"
    expected = write_model(path, "qwen3", kind)
    found = loaded(path)
    assert difference(found.model, expected) < 0.05  # Q8_0 rounds once more
    assert any(kind in note and "Q8_0" in note for note in found.notes)


@pytest.mark.parametrize("family", MIXTURES)
def test_experts_stay_packed_and_give_what_unpacked_ones_give(tmp_path: Path, family: str) -> None:
    path = tmp_path / "model.gguf"
    kind = "MXFP4" if family == "gpt_oss" else "Q4_K"
    expected = write_mixture(path, family, experts=(kind, kind, "Q8_0"))
    found = loaded(path)
    assert difference(found.model, expected) < TOLERANCE
    assert difference(found.model, expected, IDS[:, :3]) < TOLERANCE
    assert found.architecture == type(expected).__name__
    assert found.namespace_fields()["weights_form"] != "exact"
    assert not [note for note in found.notes if "unpacked" in note]
    experts = [module for module in found.model.modules() if isinstance(module, BlockExperts)]
    assert [[m.kind.name for m in each.matrices] for each in experts] == [[kind, kind, "Q8_0"]] * 2
    assert all(parameter.dim() < 3 for parameter in found.model.parameters())
    assert not takes_static_step(found.model, found.device)


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16", "Q6_K", "IQ4_XS"])
def test_experts_may_be_of_any_type(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "model.gguf"
    expected = write_mixture(path, "qwen3_moe", kind)
    assert difference(loaded(path).model, expected) < TOLERANCE


def test_heads_may_be_of_another_size_than_the_width_says(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    expected = write_mixture(path, "qwen3_moe", num_attention_heads=8)
    assert difference(loaded(path).model, expected) < TOLERANCE


def test_what_they_need_is_the_size_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    write_mixture(path, "qwen3_moe", experts=("Q4_K", "Q4_K", "Q6_K"))
    found = loaded(path)
    told = outlook("model", path, limits=[])
    assert (found.fit.needs.held, told and told.num_bytes) == (
        0,
        ENGINE_BYTES + found.fit.needs.mapped,
    )
    header = path.stat().st_size - found.fit.needs.mapped
    assert 0 < header < 20_000
    assert weight_bytes(found) == pytest.approx(found.fit.needs.mapped, rel=0.05)


def test_what_becomes_another_type_needs_memory_of_its_own(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    write_mixture(path, "qwen3_moe", experts=("IQ3_S", "Q4_K", "Q4_K"))
    needs = loaded(path).fit.needs
    assert needs.held == 2 * 6 * 256 * 256 * 34 // 32
    assert {kind.name for kind in TENSOR_TYPES.values()} - KINDS.keys() == READ_AS_Q8_0


@pytest.mark.parametrize("family", ["qwen3_moe", "gpt_oss"])
def test_experts_can_be_unpacked(tmp_path: Path, family: str) -> None:
    """As for a device that multiplies no blocks."""
    path = tmp_path / "model.gguf"
    expected = write_mixture(path, family)
    model = open_model(path)
    config = load_config(derived_directory(model, None))
    found, notes = load_gguf(model, config, torch.float32, torch.device("cpu"), is_unpacked=True)
    assert difference(found, expected) < 1e-5
    assert "unpacked" in notes[0]


def test_more_experts_for_a_token_than_there_are_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    write_mixture(path, "mixtral")
    field, of_type = b"llama.expert_used_count", b"\x04\x00\x00\x00"  # an uint32
    before, number = field + of_type, (3).to_bytes(4, "little")
    content = path.read_bytes()
    assert before + number in content
    for wrong in (7, 1 << 31):
        path.write_bytes(content.replace(before + number, before + wrong.to_bytes(4, "little")))
        with pytest.raises(ModelLoadError, match="has 6 experts in a layer, and wants"):
            loaded(path)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (b"blk.1.ffn_up_exps.weight", b"blk.1.ffn_xx_exps.weight", "lacks the experts blk.1.*up"),
        (b"blk.0.ffn_gate_exps.weight", b"blk.0.ffn_gate_0xps.weight", "lacks blk.0.ffn_gate_exps"),
        (b"llama.expert_used_count", b"llama.expert_xxxx_count", "their number for a token"),
    ],
)
def test_experts_that_are_incomplete_are_refused(
    tmp_path: Path, old: bytes, new: bytes, message: str
) -> None:
    path = tmp_path / "model.gguf"
    write_mixture(path, "mixtral")
    content = path.read_bytes()
    path.write_bytes(content.replace(old, new))
    with pytest.raises(ModelLoadError, match=message):
        loaded(path)


def test_experts_of_other_architectures_are_refused(tmp_path: Path) -> None:
    header = small_header().add_field("llama.expert_count", UINT32, 8)
    path = tmp_path / "model.gguf"
    path.write_bytes(header.file_bytes().replace(b"llama", b"qwen2"))
    with pytest.raises(ModelLoadError, match="a mixture of experts in the architecture 'qwen2'"):
        open_model(path)


def test_scaled_positions_are_read(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    rope = {"rope_type": "linear", "factor": 4.0, "rope_theta": 50000.0}
    expected = write_model(path, "llama", "Q8_0", rope_parameters=rope)
    found = loaded(path)
    assert difference(found.model, expected) < TOLERANCE
    assert found.model.config.rope_parameters == rope


def test_what_ends_an_answer_and_the_template_come_from_the_file(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    write_model(path, "qwen3", "Q4_0")
    found = loaded(path)
    assert {256, 258} <= found.end_token_ids
    text = found.tokenizer.apply_chat_template([{"role": "user", "content": "hä"}], tokenize=False)
    assert text == "<|im_start|>user\nhä<|im_end|>\n"
    ids = found.tokenizer(text, add_special_tokens=False)["input_ids"]
    assert (ids[0], ids[-2]) == (257, 258)
    assert found.tokenizer.decode(ids) == text


def test_a_part_that_is_missing_or_foreign_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    write_model(path, "qwen3", "Q8_0")
    content = path.read_bytes()
    path.write_bytes(content.replace(b"blk.1.attn_q_norm.weight", b"blk.1.attn_x_norm.weight"))
    with pytest.raises(ModelLoadError, match=r"lacks 1 tensors.*attn_q_norm"):
        loaded(path)


def test_an_adapter_is_refused_before_anything_is_loaded(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    write_model(path, "qwen3", "Q8_0")
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text("{}")
    (adapter / "adapter_model.safetensors").write_bytes(bytes(8))
    with pytest.raises(UnavailableError, match="cannot be merged into the packed weights"):
        load_model(str(path), adapter=adapter)


# the directory made from the file


def test_the_directory_is_made_once_and_anew_when_it_is_broken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "model.gguf"
    write_model(path, "qwen3", "Q8_0")
    model = open_model(path)
    made = derived_directory(model, tmp_path / "cache")
    assert made.parent == tmp_path / "cache" / "gguf"
    assert made.stat().st_mode & 0o777 == 0o700
    before = (made / "config.json").stat()
    assert derived_directory(model, tmp_path / "cache") == made
    assert (made / "config.json").stat().st_mtime_ns == before.st_mtime_ns
    (made / "tokenizer.json").unlink()
    assert derived_directory(model, tmp_path / "cache") == made
    assert (made / "tokenizer.json").is_file()
    monkeypatch.setattr(derived, "_FORMAT", derived._FORMAT + 1)
    assert derived_directory(model, tmp_path / "cache") != made
    assert not list((tmp_path / "cache" / "gguf").glob(".new-*"))


def test_without_a_place_to_keep_it_the_directory_is_made_all_the_same(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    write_model(path, "qwen3", "Q8_0")
    (tmp_path / "cache").write_text("a file where a directory should be")
    made = derived_directory(open_model(path), tmp_path / "cache")
    assert (made / "tokenizer.json").is_file()
    assert tmp_path not in made.parents
