"""A real language model from a GGUF file, by several names: it answers, and it is one engine."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from chatcache.backends.local.model.stores import package
from tests.e2e.test_black_box import run, run_json

pytestmark = pytest.mark.skipif(not package.is_installed(), reason=f"needs `{package.COMMAND}`")
GREEDY = ("--temperature", "0", "--max-new-tokens", "12")


@pytest.fixture(autouse=True)
def runtime(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Engines of this test alone, which stay until it is over."""
    directory = tempfile.mkdtemp(prefix="ccg-")
    monkeypatch.setenv("XDG_RUNTIME_DIR", directory)
    monkeypatch.setenv("CHATCACHE_KEEP_ALIVE", "10m")
    yield
    run("engine", "stop", "--all")
    shutil.rmtree(directory)


def test_one_file_by_three_names_is_one_engine(home: Path, tmp_path: Path) -> None:
    file = package.find()
    digest = hashlib.sha256(str(file).encode()).hexdigest()
    blob = home / "ollama" / "blobs" / f"sha256-{digest}"
    manifest = home / "ollama/manifests/registry.ollama.ai/library/smol/135m"
    for path in (blob, manifest):
        path.parent.mkdir(parents=True)
    blob.symlink_to(file)
    layer = {
        "mediaType": "application/vnd.ollama.image.model",
        "digest": f"sha256:{digest}",
        "size": file.stat().st_size,
    }
    manifest.write_text(json.dumps({"layers": [layer]}))
    (tmp_path / "smol.gguf").symlink_to(file)

    def ask(model: str) -> tuple[str, bool]:
        words = ("ask", "What is the capital of France?", "--new", "--model", model, *GREEDY)
        answer = run_json(*words)
        return answer["text"], answer["engine"]["started"]

    text, is_started = ask("smollm2")
    assert "Paris" in text
    assert is_started
    for model in ("ollama:smol:135m", os.path.relpath(tmp_path / "smol.gguf")):
        assert ask(model) == (text, False)
    (engine,) = run_json("engine", "list")["engines"]
    assert engine["model"] == "smollm2"
    (row,) = [row for row in run_json("models", "list")["models"] if row["engines"]]
    assert (row["model"], row["place"], row["quantization"]) == ("smollm2", "package", "Q4_1")
    assert run_json("engine", "stop", "ollama:smol:135m")["stopped"] == 1


def test_a_probe_reads_the_file(home: Path) -> None:
    probe = run_json("models", "probe", "smollm2")
    assert probe["parameters"] == 134_515_008
    assert probe["cut"] == "any_token"
    assert probe["path"] == str(package.find())
