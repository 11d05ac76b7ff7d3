"""Where the name of a model stands, it says that its weights are quantised."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from chatcache.backends.local.engine.settings import EngineSettings
from chatcache.cli import main
from chatcache.config import load_settings
from chatcache.formatting import model_label


@pytest.mark.parametrize(
    ("model", "quantization", "label"),
    [
        ("builtin", "", "builtin"),
        ("builtin", "4bit", "builtin · 4bit"),
        ("/models/Qwen3-0.6B", "8bit", "Qwen3-0.6B · 8bit"),
        ("a/b-Q4_K_M.gguf", "Q4_K_M", "b-Q4_K_M"),
    ],
)
def test_the_label_of_a_model(model: str, quantization: str, label: str) -> None:
    assert model_label(model, quantization) == label


def test_another_form_is_another_engine() -> None:
    keys = {
        EngineSettings("builtin", Path("/c"), Path("/l"), quantize=form).key({})
        for form in ("none", "4bit", "8bit")
    }
    assert len(keys) == 3


def test_option_before_environment_before_file(tmp_path: Path) -> None:
    config = tmp_path / "config.toml"
    config.write_text('[model]\nquantize = "8bit"\n')
    places = {"paths.config_file": str(config), "paths.data_dir": str(tmp_path)}
    assert load_settings(places, {}).config.model.quantize == "8bit"
    environ = {"CHATCACHE_QUANTIZE": "4bit"}
    assert load_settings(places, environ).config.model.quantize == "4bit"
    given = places | {"model.quantize": "none"}
    assert load_settings(given, environ).config.model.quantize == "none"


def test_a_session_and_its_segments_say_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    places = ["--data-dir", str(tmp_path / "data"), "--cache-dir", str(tmp_path / "cache")]
    ask = ["ask", "hi", "--session", "s", "--quantize", "4bit", "--no-engine"]
    assert main([*ask, "--no-stdin", "--json", *places]) == 0
    said = json.loads(capsys.readouterr().out)
    assert (said["model"], said["model_approximate"]) == ("builtin", "4bit")
    assert main(["sessions", "list", *places]) == 0
    assert "builtin · 4bit" in capsys.readouterr().out
    assert main(["sessions", "show", "s", "--json", *places]) == 0
    question, answer = json.loads(capsys.readouterr().out)["messages"]
    assert (question["model_approximate"], answer["model_approximate"]) == (None, "4bit")
    assert main(["sessions", "export", "s", "--markdown", *places]) == 0
    assert "builtin · 4bit" in capsys.readouterr().out
    assert main(["cache", "stats", *places]) == 0
    shown = capsys.readouterr().out
    assert "builtin 4bit" in shown
    assert "quantised      1 model" in shown
