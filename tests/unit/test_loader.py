"""Models are found, checked and loaded; what is wrong with one is said with the file's name."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from chatcache.backends.base import ModelLoading, SamplingParams
from chatcache.backends.local.model import files, generation, loader, resolve
from chatcache.backends.local.model.loader import (
    LoadedModel,
    choose_device,
    choose_dtype,
    load_model,
)
from chatcache.backends.local.model.progress import ProgressBar, download
from chatcache.backends.local.model.stores import hub_cache
from chatcache.errors import ChatcacheError, ModelLoadError, NotFoundError, UnavailableError
from tests.models import build_model_dir

WEIGHTS = "model.safetensors"


@pytest.fixture(scope="session")
def template_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_model_dir(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture
def model_dir(template_dir: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(template_dir, tmp_path / "tiny"))


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty Hugging Face cache, and no network."""
    cache = tmp_path / "hub"
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    return cache


def put_in_hub(hub: Path, repo_id: str, model_dir: Path) -> Path:
    """Lay a model out as the hub's client does."""
    folder = hub / f"models--{repo_id.replace('/', '--')}"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text("abc123")
    return Path(shutil.copytree(model_dir, folder / "snapshots" / "abc123"))


# loading


@pytest.fixture(scope="module")
def loaded(template_dir: Path) -> LoadedModel:
    return load_model(str(template_dir))


def test_a_model_directory_is_loaded(loaded: LoadedModel, template_dir: Path) -> None:
    assert loaded.architecture == "Qwen3ForCausalLM"
    assert loaded.path == template_dir
    assert loaded.dtype is loaded.model.dtype is torch.float32
    assert (loaded.num_layers, loaded.max_context_tokens) == (2, 4096)
    assert loaded.num_parameters == files.count_parameters(template_dir)
    assert not loaded.model.training
    assert not any(parameter.requires_grad for parameter in loaded.model.parameters())
    assert loaded.end_token_ids == {loaded.tokenizer.convert_tokens_to_ids("<|im_end|>")}


def test_the_model_answers(loaded: LoadedModel) -> None:
    with torch.inference_mode():
        ids = torch.tensor([[1, 2, 3]])
        assert loaded.model(input_ids=ids, logits_to_keep=1).logits.shape[:2] == (1, 1)


def test_loading_is_told_step_by_step(template_dir: Path) -> None:
    told: list[ModelLoading] = []
    load_model(str(template_dir), progress=told.append)
    weights = [event for event in told if event.stage == "loading weights"]
    assert weights[-1].done == weights[-1].total > 0
    assert [event.done for event in weights] == sorted(event.done for event in weights)


def test_other_weights_of_the_same_shape_are_another_model(
    loaded: LoadedModel, tmp_path: Path
) -> None:
    other = load_model(str(build_model_dir(tmp_path / "other", seed=1)))
    same = load_model(str(build_model_dir(tmp_path / "same")))
    assert other.weights_id != loaded.weights_id == same.weights_id
    assert other.parameters_id != loaded.parameters_id == same.parameters_id
    assert other.config_id == loaded.config_id
    assert other.namespace_fields() != loaded.namespace_fields()


def test_the_namespace_says_what_it_runs_on(loaded: LoadedModel) -> None:
    fields = loaded.namespace_fields()
    assert fields["dtype"] == "float32"
    assert fields["adapter"] == "none"
    assert {name for name in fields if name.startswith("soft.")} >= {"soft.torch", "soft.device"}
    assert all(isinstance(value, str) for value in fields.values())


def test_a_model_in_another_dtype(template_dir: Path) -> None:
    assert load_model(str(template_dir), dtype="bfloat16").dtype is torch.bfloat16


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, SamplingParams(temperature=0.0)),
        ({"do_sample": False, "temperature": 0.6}, SamplingParams(temperature=0.0)),
        (
            {"do_sample": True, "temperature": 0.6, "top_k": 20, "top_p": 0.9},
            SamplingParams(temperature=0.6, top_k=20, top_p=0.9),
        ),
        (
            {"repetition_penalty": 1.1, "max_new_tokens": 9},
            SamplingParams(temperature=0.0, repetition_penalty=1.1, max_new_tokens=9),
        ),
        (
            {"do_sample": True, "temperature": "hot", "top_p": 2.0, "repetition_penalty": 0},
            SamplingParams(),
        ),
    ],
)
def test_sampling_defaults_are_the_publishers(
    given: dict[str, Any], expected: SamplingParams
) -> None:
    assert generation.sampling_defaults(SimpleNamespace(**given)) == expected


def test_all_end_tokens_count(model_dir: Path) -> None:
    (model_dir / "generation_config.json").write_text(json.dumps({"eos_token_id": [400, 401]}))
    ends = load_model(str(model_dir)).end_token_ids
    assert {400, 401, 402} <= ends
    (model_dir / "generation_config.json").write_text(json.dumps({"eos_token_id": "</s>"}))
    assert 402 in load_model(str(model_dir)).end_token_ids


# names


def test_the_builtin_model_is_found() -> None:
    assert (Path(resolve.resolve_model("builtin")) / "config.json").is_file()


def test_a_hub_model_in_the_cache_is_found(hub: Path, template_dir: Path) -> None:
    snapshot = put_in_hub(hub, "someone/tiny", template_dir)
    assert resolve.resolve_model("someone/tiny") == snapshot
    assert hub_cache.repositories() == ["someone/tiny"]


def test_an_unfinished_download_is_no_model(hub: Path, template_dir: Path) -> None:
    (put_in_hub(hub, "someone/tiny", template_dir) / WEIGHTS).unlink()
    with pytest.raises(ModelLoadError, match=r"model\.safetensors is missing"):
        resolve.resolve_model("someone/tiny", is_offline=True)


def test_a_hub_model_that_is_not_here_is_to_be_downloaded(
    hub: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    assert resolve.resolve_model("someone/tiny") == "someone/tiny"
    with pytest.raises(UnavailableError, match="network is switched off"):
        resolve.resolve_model("someone/tiny", is_offline=True)


def test_a_download_without_a_network_is_unavailable(hub: Path) -> None:
    with pytest.raises(UnavailableError, match="cannot be downloaded"):
        download("someone/tiny", lambda event: None)


@pytest.mark.parametrize(
    ("name", "kind", "words"),
    [
        ("buildin", NotFoundError, "no model 'buildin'"),
        ("no such thing", NotFoundError, "no model"),
        ("/no/such/dir", ModelLoadError, "/no/such/dir does not exist"),
        ("./nope", ModelLoadError, "nope does not exist"),
        (__file__, ModelLoadError, "is a file"),
    ],
)
def test_a_name_that_means_nothing(
    hub: Path, name: str, kind: type[ChatcacheError], words: str
) -> None:
    with pytest.raises(kind, match=words) as caught:
        resolve.resolve_model(name)
    assert type(caught.value) is kind
    assert caught.value.hint


def test_a_misspelt_name_names_the_nearest(hub: Path) -> None:
    with pytest.raises(NotFoundError) as caught:
        resolve.resolve_model("buildin")
    assert "'builtin'" in caught.value.hint


# broken directories


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def shard(path: Path) -> None:
    """Two files and an index, as large models have them."""
    tensors = load_file(path / WEIGHTS)
    names = sorted(tensors)
    parts = {"model-00001-of-00002.safetensors": names[::2]}
    parts["model-00002-of-00002.safetensors"] = names[1::2]
    for file, part in parts.items():
        save_file({name: tensors[name] for name in part}, path / file, {"format": "pt"})
    index = {name: file for file, part in parts.items() for name in part}
    content = {"metadata": {"total_size": 0}, "weight_map": index}
    (path / "model.safetensors.index.json").write_text(json.dumps(content))
    (path / WEIGHTS).unlink()


def break_shard(path: Path, break_file: Callable[[Path], None]) -> None:
    shard(path)
    break_file(path / "model-00002-of-00002.safetensors")


def without_files(path: Path, index: dict[str, object]) -> None:
    shard(path)
    (path / "model.safetensors.index.json").write_text(json.dumps(index))


def reconfigure(path: Path, **values: object) -> None:
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(config | values))


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "no config": (lambda path: (path / "config.json").unlink(), r"config\.json is missing"),
    "config is no JSON": (
        lambda path: (path / "config.json").write_text("{"),
        r"config\.json is not valid JSON",
    ),
    "config is a list": (
        lambda path: (path / "config.json").write_text("[]"),
        r"config\.json is not a JSON object",
    ),
    "no model type": (
        lambda path: (path / "config.json").write_text("{}"),
        r"config\.json does not say its model_type",
    ),
    "unknown model type": (
        lambda path: (path / "config.json").write_text('{"model_type": "nonsense"}'),
        r"config\.json describes no model",
    ),
    "no weights": (lambda path: (path / WEIGHTS).unlink(), r"model\.safetensors is missing"),
    "pickles only": (
        lambda path: (path / WEIGHTS).rename(path / "pytorch_model.bin"),
        "as a pickle only",
    ),
    "generation config is no JSON": (
        lambda path: (path / "generation_config.json").write_text("{"),
        r"generation_config\.json is not valid JSON",
    ),
    "truncated weights": (
        lambda path: truncate(path / WEIGHTS),
        r"model\.safetensors is truncated: it has [\d,]+ bytes instead of",
    ),
    "trailing bytes": (
        lambda path: (path / WEIGHTS).open("ab").write(b"x"),
        r"model\.safetensors has 1 bytes too many",
    ),
    "empty weights": (
        lambda path: (path / WEIGHTS).write_bytes(b""),
        r"model\.safetensors is not a whole",
    ),
    "header is no JSON": (
        lambda path: (path / WEIGHTS).write_bytes((4).to_bytes(8, "little") + b"oops"),
        r"model\.safetensors has a broken safetensors header",
    ),
    "header is a list": (
        lambda path: (path / WEIGHTS).write_bytes((2).to_bytes(8, "little") + b"[]"),
        r"model\.safetensors has a broken safetensors header",
    ),
    "header without tensors": (
        lambda path: (path / WEIGHTS).write_bytes((9).to_bytes(8, "little") + b'{"a": []}'),
        r"model\.safetensors has a broken safetensors header",
    ),
    "header nested by the thousand": (
        lambda path: (path / WEIGHTS).write_bytes((90_000).to_bytes(8, "little") + b"[" * 90_000),
        r"model\.safetensors has a broken safetensors header",
    ),
    "index without files": (
        lambda path: without_files(path, {"weight_map": ["a"]}),
        r"index\.json does not say which file has which weights",
    ),
    "index of numbers": (
        lambda path: without_files(path, {"weight_map": {"x": [1]}}),
        r"index\.json does not say which file has which weights",
    ),
    "truncated shard": (
        lambda path: break_shard(path, truncate),
        r"model-00002-of-00002\.safetensors is truncated",
    ),
    "missing shard": (
        lambda path: break_shard(path, Path.unlink),
        r"lacks weight files: model-00002-of-00002\.safetensors",
    ),
    "no tokenizer": (
        lambda path: (path / "tokenizer.json").unlink(),
        r"tokenizer\.json is missing",
    ),
    "broken tokenizer": (
        lambda path: (path / "tokenizer.json").write_text("{}"),
        "tokenizer in .* cannot be loaded",
    ),
    "a size that is none": (
        lambda path: reconfigure(path, hidden_size="64"),
        r"config\.json describes no model .*'hidden_size': .*expected int",
    ),
    "a dtype that is none": (
        lambda path: reconfigure(path, dtype="float7"),
        r"config\.json describes no model",
    ),
    "weights of another shape": (
        lambda path: save_file({"x": torch.zeros(1)}, path / WEIGHTS, {"format": "pt"}),
        "lack .* tensors",
    ),
    "config of another size": (
        lambda path: reconfigure(path, intermediate_size=48),
        "have other shapes than config.json says",
    ),
    "unknown kind of positions": (
        lambda path: reconfigure(
            path, rope_parameters={"rope_type": "newer", "factor": 2.0, "rope_theta": 10000.0}
        ),
        r"config\.json names 'newer', which this version of transformers does not know",
    ),
}


@pytest.mark.filterwarnings("ignore")  # libraries warn about what they meet on the way
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_broken_directory_is_refused_with_the_file_named(model_dir: Path, damage: str) -> None:
    break_it, words = DAMAGES[damage]
    break_it(model_dir)
    with pytest.raises(ModelLoadError, match=words) as caught:
        load_model(str(model_dir))
    assert caught.value.hint


def test_a_sharded_model_is_loaded(model_dir: Path, loaded: LoadedModel) -> None:
    shard(model_dir)
    sharded = load_model(str(model_dir))
    assert sharded.parameters_id == loaded.parameters_id


# adapters


@pytest.mark.parametrize(
    "missing", ["directory", "adapter_config.json", "adapter_model.safetensors"]
)
def test_an_adapter_that_is_not_one(template_dir: Path, tmp_path: Path, missing: str) -> None:
    adapter = tmp_path / "adapter"
    if missing != "directory":
        adapter.mkdir()
        for name in {"adapter_config.json", "adapter_model.safetensors"} - {missing}:
            (adapter / name).touch()
    with pytest.raises(
        ModelLoadError, match="does not exist" if missing == "directory" else missing
    ):
        load_model(str(template_dir), adapter=adapter)


def test_an_adapter_needs_peft(
    template_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        (tmp_path / name).touch()
    with pytest.raises(UnavailableError, match="peft"):
        load_model(str(template_dir), adapter=tmp_path)


# device and dtype


def test_the_device_is_what_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(loader, "_has_mps", lambda: False)
    assert choose_device("auto") == torch.device("cpu")
    with pytest.raises(UnavailableError, match="no device 'cuda'"):
        choose_device("cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    assert choose_device("auto") == torch.device("cuda", 0)
    assert choose_device("cuda:1") == torch.device("cuda", 1)


@pytest.mark.parametrize(
    ("wanted", "stored", "device", "millions", "is_fast", "expected"),
    [
        ("auto", torch.bfloat16, "cpu", 7, True, torch.float32),
        ("auto", torch.bfloat16, "cpu", 600, True, torch.bfloat16),
        ("auto", torch.bfloat16, "cpu", 600, False, torch.float32),
        ("auto", torch.float16, "cpu", 600, True, torch.bfloat16),
        ("auto", torch.float16, "cuda", 600, True, torch.float16),
        ("auto", torch.float32, "cuda", 600, True, torch.float32),
        ("auto", None, "cuda", 600, True, torch.float32),
        ("float16", torch.bfloat16, "cpu", 7, True, torch.float16),
    ],
)
def test_the_dtype_fits_the_machine(
    wanted: str,
    stored: torch.dtype | None,
    device: str,
    millions: int,
    is_fast: bool,
    expected: torch.dtype,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(loader, "has_fast_bfloat16", lambda: is_fast)
    config = SimpleNamespace(dtype=stored, get_text_config=lambda: SimpleNamespace(dtype=stored))
    assert choose_dtype(wanted, config, torch.device(device), millions * 10**6) is expected


def test_a_quantised_model_brings_its_own_dtype() -> None:
    config = SimpleNamespace(quantization_config={"bits": 4})
    assert choose_dtype("auto", config, torch.device("cpu"), 10**9) == "auto"


# progress


def test_a_bar_tells_each_percent_once() -> None:
    told: list[ModelLoading] = []
    assert list(ProgressBar(told.append, (range(1000),), {"desc": "Loading weights"})) == list(
        range(1000)
    )
    assert len(told) == 101
    assert told[-1] == ModelLoading("loading weights", 1000, 1000)


def test_a_bar_takes_all_that_tqdm_takes() -> None:
    told: list[ModelLoading] = []
    with ProgressBar(told.append, (), {"total": 2}) as bar:
        bar.set_postfix(size="1 GB")
        bar.update(2)
        bar.close()
    assert told == [ModelLoading("loading", 2, 2)]


def test_finding_a_model_needs_no_torch(template_dir: Path) -> None:
    script = (
        "import sys\n"
        "from pathlib import Path\n"
        "from chatcache.backends.local.model import resolve\n"
        "resolve.check_model_dir(resolve.resolve_model(sys.argv[1]))\n"
        "sys.exit(any(name in sys.modules for name in ('torch', 'transformers')))\n"
    )
    root = Path(__file__).parents[2]
    subprocess.run([sys.executable, "-c", script, str(template_dir)], check=True, cwd=root)
