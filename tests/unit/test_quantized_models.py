"""Models whose weights are quantised: what is kept of them, and what goes wrong."""

from __future__ import annotations

import multiprocessing
import os
import resource
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

from chatcache.assets import adapter_dir
from chatcache.backends.base import ModelLoading
from chatcache.backends.local.model.loader import LoadedModel, load_model
from chatcache.backends.local.packed.modules import BlockEmbedding, BlockExperts, BlockLinear
from chatcache.cache.book.namespace import EXACT, namespace_id
from chatcache.cache.files.quantized import UNUSED_DAYS, QuantizedModels
from chatcache.cache.inspect import CacheInspector
from chatcache.errors import UnavailableError
from tests.models import build_model_dir

SHAPE: dict[str, Any] = {
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "num_hidden_layers": 2,
}
IDS = torch.arange(3, 43)[None]


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_model_dir(tmp_path_factory.mktemp("model"), **SHAPE)


def load(model: Path | str, cache_dir: Path | None, form: str = "4bit", **more: Any) -> LoadedModel:
    return load_model(str(model), quantize=form, cache_dir=cache_dir, **more)


def logits(loaded: LoadedModel) -> torch.Tensor:
    with torch.inference_mode():
        found: torch.Tensor = loaded.model(IDS, use_cache=False).logits[0]
    return found


def kept_file(cache_dir: Path) -> Path:
    (file,) = cache_dir.glob("quantized/*/model.safetensors")
    return file


@pytest.mark.parametrize(("form", "tolerance"), [("8bit", 0.06), ("4bit", 0.5)])
def test_it_computes_about_what_the_exact_model_computes(
    model_dir: Path, tmp_path: Path, form: str, tolerance: float
) -> None:
    exact = logits(load_model(str(model_dir)))
    found = logits(load(model_dir, tmp_path, form))
    distance = float((found - exact).norm() / exact.norm())
    assert 0 < distance < tolerance


def test_the_second_load_maps_what_the_first_has_kept(model_dir: Path, tmp_path: Path) -> None:
    told: list[ModelLoading] = []
    first = load(model_dir, tmp_path, progress=told.append)
    stages = [event for event in told if event.stage.startswith("quantising")]
    assert stages[-1].done == stages[-1].total > 0
    stamp = kept_file(tmp_path).stat().st_mtime_ns
    told.clear()
    second = load(model_dir, tmp_path, progress=told.append)
    assert not [event for event in told if event.stage.startswith("quantising")]
    assert kept_file(tmp_path).stat().st_mtime_ns == stamp
    assert torch.equal(logits(first), logits(second))
    assert first.namespace_fields() == second.namespace_fields()
    assert first.notes == second.notes


def test_the_file_is_plain_safetensors_for_its_owner_alone(model_dir: Path, tmp_path: Path) -> None:
    load(model_dir, tmp_path)
    file = kept_file(tmp_path)
    assert file.stat().st_mode & 0o777 == 0o600
    assert [folder.stat().st_mode & 0o777 for folder in file.parents][:2] == [0o700, 0o700]
    with safe_open(file, "pt") as opened:
        metadata = opened.metadata()
        assert (metadata["format"], metadata["form"]) == ("chatcache-quantized", "4bit")
        assert opened.get_tensor("model.layers.0.mlp.up_proj.weight").dtype is torch.uint8


def test_which_matrices_get_which_blocks(model_dir: Path, tmp_path: Path) -> None:
    model = load(model_dir, tmp_path).model
    layer = model.model.layers[0]
    assert layer.mlp.up_proj.kind.name == "Q4_K"
    assert layer.self_attn.v_proj.kind.name == "Q6_K"
    assert isinstance(model.model.embed_tokens, BlockEmbedding)
    assert isinstance(model.lm_head, BlockLinear)
    assert model.lm_head.kind.name == model.model.embed_tokens.kind.name == "Q6_K"
    everything = load(model_dir, tmp_path, "8bit").model
    linears = [m for m in everything.modules() if isinstance(m, BlockLinear)]
    assert {linear.kind.name for linear in linears} == {"Q8_0"}


def test_rows_that_are_no_super_blocks_get_smaller_blocks(tmp_path: Path) -> None:
    model = build_model_dir(tmp_path / "model", **{**SHAPE, "hidden_size": 160})
    layer = load(model, tmp_path / "cache").model.model.layers[0]
    assert (layer.mlp.up_proj.kind.name, layer.mlp.down_proj.kind.name) == ("Q4_1", "Q4_K")


def test_tied_weights_are_kept_once(tmp_path: Path) -> None:
    model = build_model_dir(tmp_path / "model", tie_word_embeddings=True, **SHAPE)
    loaded = load(model, tmp_path / "cache")
    assert loaded.model.lm_head.matrix.data.data_ptr() == (
        loaded.model.model.embed_tokens.matrix.data.data_ptr()
    )
    assert loaded.num_parameters == load_model(str(model)).num_parameters
    with safe_open(kept_file(tmp_path / "cache"), "pt") as opened:
        assert "lm_head.weight" not in list(opened.keys())


def test_no_form_of_a_model_shares_a_namespace_with_another(
    model_dir: Path, tmp_path: Path
) -> None:
    exact = load_model(str(model_dir), cache_dir=tmp_path)
    fields = [exact, *(load(model_dir, tmp_path, form) for form in ("4bit", "8bit"))]
    assert len({namespace_id(found.namespace_fields()) for found in fields}) == 3
    assert [found.quantization for found in fields] == ["", "4bit", "8bit"]
    assert "weights_form" not in exact.namespace_fields()
    assert exact.weights_form == EXACT
    assert load(model_dir, tmp_path, "none").namespace_fields() == exact.namespace_fields()


def damage(file: Path, how: str) -> None:
    content = bytearray(file.read_bytes())
    if how == "a flipped bit":
        content[-1000] ^= 4
    elif how == "cut off":
        del content[-5000:]
    elif how == "longer":
        content += b"\0" * 64
    elif how == "header":
        content[8] = ord("[")
    elif how == "length":
        content[:8] = (1 << 62).to_bytes(8, "little")
    elif how == "empty":
        content.clear()
    elif how == "of other weights":
        content = content.replace(b'"form": "4bit"', b'"form": "3bit"')
    file.write_bytes(content)


@pytest.mark.parametrize(
    "how",
    ["a flipped bit", "cut off", "longer", "header", "length", "empty", "of other weights"],
)
def test_a_damaged_file_is_made_anew(model_dir: Path, tmp_path: Path, how: str) -> None:
    expected = logits(load(model_dir, tmp_path))
    damage(kept_file(tmp_path), how)
    again = load(model_dir, tmp_path)
    assert torch.equal(logits(again), expected)
    assert "was damaged" in again.notes[0]
    assert load(model_dir, tmp_path).notes == ()


@pytest.fixture
def small_files() -> Iterator[None]:
    """Files may not grow beyond 100 kB, as on a disk that is full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_without_room_on_the_disk_it_runs_from_memory(
    model_dir: Path, tmp_path: Path, small_files: None
) -> None:
    loaded = load(model_dir, tmp_path)
    assert "could not be kept" in loaded.notes[0]
    assert not list(tmp_path.glob("quantized/**/*"))
    assert torch.equal(logits(loaded), logits(load(model_dir, None)))


def test_a_place_that_is_no_directory_costs_time_alone(model_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "quantized").write_text("in the way")
    loaded = load(model_dir, tmp_path)
    assert loaded.quantization == "4bit"
    assert "could not be kept" in loaded.notes[-1]


def _load_elsewhere(model: str, cache_dir: str, barrier: Any) -> None:
    barrier.wait(120)
    load_model(model, quantize="4bit", cache_dir=Path(cache_dir))


def test_two_processes_may_make_the_same(model_dir: Path, tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(2)
    arguments = (str(model_dir), str(tmp_path), barrier)
    both = [context.Process(target=_load_elsewhere, args=arguments) for _ in range(2)]
    for process in both:
        process.start()
    for process in both:
        process.join(240)
    assert [process.exitcode for process in both] == [0, 0]
    assert {path.name for path in kept_file(tmp_path).parent.iterdir()} == {
        "model.safetensors",
        "used",
    }
    assert load(model_dir, tmp_path).notes == ()


def test_who_writes_into_the_kept_file_is_noticed(model_dir: Path, tmp_path: Path) -> None:
    loaded = load(model_dir, tmp_path)
    loaded.check_files()
    load(model_dir, tmp_path).check_files()
    loaded.check_files()  # another one that loads it changes nothing
    with kept_file(tmp_path).open("r+b") as file:
        file.write(b"x")
    with pytest.raises(UnavailableError, match="was written to"):
        loaded.check_files()


def test_what_nobody_used_for_long_goes_with_the_next_load(model_dir: Path, tmp_path: Path) -> None:
    load(model_dir, tmp_path, "8bit")
    old = kept_file(tmp_path).parent
    long_ago = time.time() - (UNUSED_DAYS + 1) * 86400
    os.utime(old / "used", (long_ago, long_ago))
    load(model_dir, tmp_path)
    assert not old.exists()
    assert kept_file(tmp_path).parent != old


def test_they_are_counted_and_cleared_with_the_cache(model_dir: Path, tmp_path: Path) -> None:
    for form in ("4bit", "8bit"):
        load(model_dir, tmp_path, form)
    shelf = QuantizedModels(tmp_path)
    assert shelf.use().num_models == 2
    inspector = CacheInspector(tmp_path, 1 << 20, 1 << 20)
    inspector.collect_garbage()
    assert shelf.use().num_models == 2
    removed = inspector.clear()
    assert removed.num_files == 4
    assert shelf.use().num_models == shelf.use().num_bytes == 0
    assert not list(tmp_path.glob("quantized/*"))


def test_an_adapter_is_merged_first(tmp_path: Path) -> None:
    pytest.importorskip("peft")
    plain = load("builtin", tmp_path)
    pirate = load("builtin", tmp_path, adapter=adapter_dir("pirate"))
    exact = load_model("builtin", adapter=adapter_dir("pirate"))
    distance = (logits(pirate) - logits(exact)).norm() / logits(exact).norm()
    assert float(distance) < 0.3
    assert not torch.equal(logits(pirate), logits(plain))
    assert len(list(tmp_path.glob("quantized/*"))) == 2


def test_a_model_without_linear_layers_is_refused(tmp_path: Path) -> None:
    model = build_model_dir(tmp_path / "model", "gpt2", n_embd=128)
    with pytest.raises(UnavailableError, match="no linear layers that can be quantised"):
        load(model, tmp_path / "cache")
    assert not list(tmp_path.glob("cache/quantized/*/*"))


@pytest.mark.parametrize(
    ("family", "is_known"), [("qwen3_moe", True), ("granitemoe", True), ("gpt_oss", False)]
)
def test_experts_are_quantised_where_they_lie_one_behind_the_other(
    tmp_path: Path, family: str, is_known: bool
) -> None:
    # All are chosen: where rounding chooses others, other weights answer.
    experts = {"num_local_experts": 4, "num_experts": 4, "num_experts_per_tok": 4}
    experts["moe_intermediate_size"] = 256
    sizes = SHAPE | experts | ({"intermediate_size": 256} if family != "qwen3_moe" else {})
    model = build_model_dir(tmp_path / "model", family, **sizes)
    exact = load_model(str(model), dtype="float32")
    for form in ("8bit", "8bit", "4bit"):  # made, then kept
        found = load(model, tmp_path / "cache", form)
        kinds = [type(module) for module in found.model.modules()]
        assert (BlockExperts in kinds) == is_known
        assert any("stay as they were saved" in note for note in found.notes) != is_known
        distance = (logits(found) - logits(exact)).norm() / logits(exact).norm()
        assert float(distance) < (0.4 if form == "8bit" else 1.0)  # of others it is 1.4


def test_weights_that_are_no_numbers_stay_as_they_are(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    model = build_model_dir(tmp_path / "model", **SHAPE)
    tensors = load_file(model / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight"][3, 3] = float("nan")
    save_file(tensors, model / "model.safetensors", {"format": "pt"})
    layer = load(model, tmp_path / "cache").model.model.layers[1]
    assert isinstance(layer.mlp.up_proj, torch.nn.Linear)
    assert isinstance(layer.mlp.gate_proj, BlockLinear)
