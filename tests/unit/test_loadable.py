"""A model that cannot be loaded says what it is and what then, the same wherever it is met."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from chatcache import cli
from chatcache.backends.local.model import loadable, resolve, shelf
from chatcache.backends.local.model.families import CAUSAL_FAMILIES
from chatcache.backends.local.model.loadable import check_adapter, obstacle
from chatcache.backends.local.model.loader import load_model
from chatcache.errors import ModelLoadError, NotFoundError
from tests.models import build_model_dir

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 11422654\n"
VISION = {"vision_config": {"hidden_size": 8}, "text_config": {"model_type": "llama"}}
Change = Callable[[Path], object]


def write(name: str, content: str | bytes) -> Change:
    def change(path: Path) -> None:
        (path / name).write_bytes(content.encode() if isinstance(content, str) else content)

    return change


def remove(*names: str) -> Change:
    def change(path: Path) -> None:
        for name in names:
            (path / name).unlink()

    return change


def rename(name: str, other: str) -> Change:
    return lambda path: (path / name).rename(path / other)


def settings(replace_all: bool = False, **fields: Any) -> Change:
    """Change the config."""

    def change(path: Path) -> None:
        file = path / "config.json"
        config = {} if replace_all else json.loads(file.read_text())
        file.write_text(json.dumps({**config, **fields}))

    return change


def kind(model_type: str, architecture: str, **fields: Any) -> Change:
    return settings(True, model_type=model_type, architectures=[architecture], **fields)


def both(*changes: Change) -> Change:
    return lambda path: [change(path) for change in changes]


def adapter(path: Path) -> None:
    for file in path.iterdir():
        file.unlink()
    base = {"base_model_name_or_path": "Qwen/Qwen3-0.6B", "peft_type": "LORA"}
    (path / "adapter_config.json").write_text(json.dumps(base))
    (path / "adapter_model.safetensors").touch()


def packed(method: str, **fields: Any) -> Change:
    return settings(quantization_config={"quant_method": method, **fields})


# What is changed of a sound model, what is then said of it, and what is advised.
KINDS: dict[str, tuple[Change, str, str]] = {
    "tokenizer is a pointer": (
        write("tokenizer.json", POINTER),
        "tokenizer.json is only a pointer of git LFS",
        "git lfs pull",
    ),
    "weights are a pointer": (
        write("model.safetensors", POINTER),
        "model.safetensors is only a pointer of git LFS",
        "git lfs pull",
    ),
    "config is a pointer": (write("config.json", POINTER), "config.json is only a pointer", "git"),
    "tokenizer is a web page": (
        write("tokenizer.json", "\n<!DOCTYPE html><html>"),
        "tokenizer.json is a web page",
        "as files",
    ),
    "tokenizer is empty": (write("tokenizer.json", ""), "tokenizer.json is not valid", "again"),
    "sentencepiece": (
        both(remove("tokenizer.json"), write("tokenizer.model", b"\n\x0e\n\x05<unk>\x15\0\0\0\0")),
        "tokenizer.model only; reading that needs sentencepiece and protobuf",
        "pip install sentencepiece protobuf",
    ),
    "tiktoken": (
        both(remove("tokenizer.json"), write("tokenizer.model", b"IQ== 0\nIg== 1\n")),
        "tokenizer.model only; reading that needs tiktoken",
        "has tokenizer.json",
    ),
    "tekken": (
        both(remove("tokenizer.json"), write("tekken.json", "{}")),
        "tekken.json only; reading that needs mistral-common",
        "pip install mistral-common",
    ),
    "no tokenizer": (
        both(
            remove("tokenizer.json", "tokenizer_config.json"),
            settings(_name_or_path="Qwen/Qwen3-0.6B"),
        ),
        "no tokenizer",
        "from the model that it was trained from (Qwen/Qwen3-0.6B)",
    ),
    "half a tokenizer": (
        both(remove("tokenizer.json"), write("vocab.json", "{}")),
        "no tokenizer",
        "Copy",
    ),
    "MLX": (
        settings(quantization={"bits": 4, "mode": "mxfp4"}),
        "quantised with MLX (mxfp4",
        "not quantised",
    ),
    "awq": (packed("awq", version="gemv"), "quantised with awq (gemv)", "not quantised"),
    "gptq": (packed("gptq", bits=3), "quantised with gptq (3 bits)", "not quantised"),
    "torchao": (packed("torchao"), "quantised with torchao", "not quantised"),
    "hqq": (packed("hqq"), "quantised with hqq", "not quantised"),
    "compressed": (
        packed("compressed-tensors", format="marlin-24"),
        "with compressed-tensors (marlin-24)",
        "not quantised",
    ),
    "unknown": (packed("quark"), "with quark, which cannot be read", "not quantised"),
    "paligemma": (
        kind("paligemma", "PaliGemmaForConditionalGeneration", **VISION),
        "PaliGemmaForConditionalGeneration (paligemma) reads images",
        "text only",
    ),
    "llava of another kind": (
        kind("llava", "LlavaForConditionalGeneration", text_config={"model_type": "mpt7"}),
        "(llava) reads images",
        "text only",
    ),
    "voxtral": (
        kind("voxtral", "VoxtralForConditionalGeneration", audio_config={}),
        "(voxtral) reads sound",
        "text only",
    ),
    "t5": (
        kind("t5", "T5ForConditionalGeneration", is_encoder_decoder=True),
        "an encoder and a decoder",
        "text only",
    ),
    "bert": (kind("bert", "BertForMaskedLM"), "made for another task", "text only"),
    "embeddings": (
        kind("xlm-roberta", "XLMRobertaModel"),
        "XLMRobertaModel (xlm-roberta) was made for another task",
        "text only",
    ),
    "own code": (
        kind("minidoge", "MiniDogeForCausalLM", auto_map={"AutoConfig": "x.Y"}),
        "its own code, which is not run",
        "text only",
    ),
    "adapter": (
        adapter,
        "an adapter for Qwen/Qwen3-0.6B, not a whole model",
        "--model Qwen/Qwen3-0.6B --adapter",
    ),
    "pickle": (rename("model.safetensors", "pytorch_model.bin"), "as a pickle only", "copy"),
    "publisher's layout": (
        both(remove("model.safetensors"), write("consolidated.safetensors", b"")),
        "in the layout of its publisher only",
        "for transformers",
    ),
    "ONNX": (
        both(remove("model.safetensors"), write("model.onnx", b"")),
        "for ONNX only",
        "for transformers",
    ),
    "shards without an index": (
        rename("model.safetensors", "model-00001-of-00002.safetensors"),
        "without model.safetensors.index.json",
        "again",
    ),
    "diffusers": (
        both(remove("config.json"), write("model_index.json", "{}")),
        "a model that makes images",
        "another",
    ),
}


@pytest.fixture(scope="session")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_model_dir(tmp_path_factory.mktemp("sound") / "tiny")


@pytest.fixture
def model(sound: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(sound, tmp_path / "tiny"))


@pytest.fixture(autouse=True)
def _nothing_else_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loadable, "_is_installed", lambda name: False)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The Hugging Face cache of this process."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    return tmp_path / "hub"


@pytest.mark.parametrize("name", KINDS)
def test_it_is_said_what_it_is_and_what_then(
    name: str, model: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    change, words, advice = KINDS[name]
    assert obstacle(model) is None
    change(model)
    found = obstacle(model)
    assert found is not None
    assert words in found.problem
    assert advice in found.advice
    assert str(model) in found.problem
    # Everybody who asks is told the same.
    with pytest.raises(ModelLoadError) as caught:
        load_model(str(model))
    assert (caught.value.message, caught.value.hint) == (found.problem, found.advice)
    row = shelf.at_hand(str(model))
    assert (row.problem, row.advice) == (found.problem, found.advice)
    assert cli.main(["models", "show", str(model)]) == 4
    assert found.problem in capsys.readouterr().err
    monkeypatch.setenv("CHATCACHE_MODEL", str(model))
    assert cli.main(["models", "list", "--json"]) == 0
    listed = {row["model"]: row for row in json.loads(capsys.readouterr().out)["models"]}
    assert listed[str(model)]["problem"] == found.problem
    assert listed[str(model)]["advice"] == found.advice
    monkeypatch.setattr("sys.stdin", None)
    assert cli.main(["ask", "hi", "--no-save"]) == 4


def test_what_is_installed_is_tried(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loadable, "_is_installed", lambda name: True)
    for name in ("awq", "torchao", "sentencepiece", "tekken"):
        copy = Path(shutil.copytree(model, model.with_name(name)))
        KINDS[name][0](copy)
        assert obstacle(copy) is None


def test_families_are_those_of_the_library() -> None:
    assert set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES) == CAUSAL_FAMILIES


# directories around a model


def as_cached(hub: Path, repo_id: str, model: Path, ref: str = "main") -> Path:
    folder = hub / f"models--{repo_id.replace('/', '--')}"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / ref).write_text("abc123")
    shutil.copytree(model, folder / "snapshots" / "abc123")
    return folder


@pytest.mark.parametrize("ref", ["main", "v2"])
def test_a_folder_of_the_hub_cache_is_the_model_in_it(
    ref: str, model: Path, tmp_path: Path
) -> None:
    folder = as_cached(tmp_path / "copied", "me/tiny", model, ref)
    assert load_model(str(folder)).path == folder / "snapshots" / "abc123"


def test_a_folder_of_the_hub_cache_without_a_model(model: Path, tmp_path: Path) -> None:
    folder = as_cached(tmp_path / "copied", "me/tiny", model)
    shutil.rmtree(folder / "snapshots" / "abc123")
    with pytest.raises(ModelLoadError, match="no whole download"):
        load_model(str(folder))


def test_the_name_of_such_a_folder_is_no_name(hub: Path) -> None:
    with pytest.raises(NotFoundError) as caught:
        resolve.resolve_model("models--Qwen--Qwen3-0.6B")
    assert "'Qwen/Qwen3-0.6B'" in caught.value.hint


def test_a_directory_of_models_names_them(model: Path) -> None:
    found = obstacle(model.parent)
    assert found is not None
    assert str(model) in found.advice


def test_a_file_of_a_model_names_its_directory(model: Path) -> None:
    with pytest.raises(ModelLoadError) as caught:
        resolve.resolve_model(str(model / "model.safetensors"))
    assert str(model) in caught.value.hint


def test_what_no_download_mends_is_not_downloaded_again(
    hub: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    folder = as_cached(hub, "me/tiny", model)
    KINDS["hqq"][0](folder / "snapshots" / "abc123")
    with pytest.raises(ModelLoadError, match="quantised with hqq"):
        resolve.resolve_model("me/tiny")
    assert "quantised with hqq" in shelf.at_hand("me/tiny").problem


@pytest.mark.parametrize("content", ["", "{", "[]", "\0", "[" * 90_000, '{"model_type": 7}'])
@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "generation_config.json"])
def test_nonsense_is_an_obstacle_and_no_accident(name: str, content: str, model: Path) -> None:
    write(name, content)(model)
    found = obstacle(model)
    assert (found is None) == (name != "config.json" and content.startswith('{"'))


def test_a_large_tokenizer_that_was_cut_short_is_an_obstacle(model: Path) -> None:
    path = model / "tokenizer.json"
    text = path.read_text()
    path.write_text(text.replace("{", "{" + " " * 100_000, 1))
    assert obstacle(model) is None
    path.write_text(path.read_text()[:-40])
    found = obstacle(model)
    assert found is not None
    assert "tokenizer.json is not valid JSON" in str(found)


# adapters, and names that lead nowhere


def test_an_adapter_that_is_a_pointer_or_a_model_says_so(model: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError) as caught:
        check_adapter(model)
    assert f"--model {model}" in caught.value.hint
    directory = tmp_path / "adapter"
    directory.mkdir()
    write("adapter_config.json", "{}")(directory)
    write("adapter_model.safetensors", POINTER)(directory)
    with pytest.raises(ModelLoadError, match="only a pointer of git LFS"):
        check_adapter(directory)


@pytest.mark.parametrize("name", ["x" * 5000, "/x/" + "y" * 300 + "/z", "./\0", "a/b/c/d"])
def test_no_name_of_a_model_is_an_accident(name: str, hub: Path) -> None:
    with pytest.raises((ModelLoadError, NotFoundError)):
        resolve.resolve_model(name)
    assert shelf.at_hand(name).problem


def test_a_directory_that_may_not_be_read_says_so(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: Path) -> bool:
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "is_file", refuse)  # root may read everything
    found = obstacle(model)
    assert found is not None
    assert "cannot be read: Permission denied" in found.problem
    assert "permissions" in found.advice
