"""A model in fewer bits by its name, and which forms of a model there are."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from chatcache.assets import pocket_dir
from chatcache.backends.local.model.files import weight_files
from chatcache.backends.local.model.identity import NO_ADAPTER, REMEMBERED, weights_id
from chatcache.backends.local.model.quantized_form import QuantizedForm
from chatcache.backends.local.model.shelf import at_hand
from chatcache.cache.files.quantized import FILE, QuantizedModels
from chatcache.compose import open_backend
from chatcache.config import Settings, load_settings
from chatcache.errors import NotFoundError, UnavailableError, UsageError
from chatcache.frontend.form_shelf import FormShelf
from chatcache.model_form import named_form
from chatcache.remotes import remote_model
from tests.gguf_files import small_header


@pytest.mark.parametrize(
    ("name", "model", "form"),
    [
        ("builtin", "builtin", ""),
        ("builtin:4bit", "builtin", "4bit"),
        ("Qwen/Qwen3-0.6B:8bit", "Qwen/Qwen3-0.6B", "8bit"),
        ("Qwen/Qwen3-0.6B:4BIT", "Qwen/Qwen3-0.6B", "4bit"),
        ("/models/qwen:exact", "/models/qwen", "exact"),
        ("unsloth/Qwen3-0.6B-GGUF:Q4_K_M", "unsloth/Qwen3-0.6B-GGUF:Q4_K_M", ""),
        ("ollama:mine:4bit", "ollama:mine:4bit", ""),  # a tag that somebody gave
        ("box:4bit", "box:4bit", ""),  # the model of a server
        (":4bit", ":4bit", ""),
    ],
)
def test_what_a_name_says(name: str, model: str, form: str) -> None:
    assert named_form(name, {"box"}) == (model, form)


def test_a_directory_of_that_name_is_itself(tmp_path: Path) -> None:
    (tmp_path / "mine:4bit").mkdir()
    assert named_form(str(tmp_path / "mine:4bit")).form == ""


def settings(tmp_path: Path, environ: dict[str, str] | None = None, **options: str) -> Settings:
    names = {name.replace("_", ".", 1): value for name, value in options.items()}
    places = {"CHATCACHE_CONFIG": str(tmp_path / "config.toml")}
    return load_settings(
        {**names, "paths.cache_dir": str(tmp_path), "paths.data_dir": str(tmp_path)},
        places | (environ or {}),
    )


def test_the_name_of_the_model_sets_the_bits_of_its_weights(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text('[model]\ndefault = "builtin:4bit"\n')
    found = settings(tmp_path)
    assert (found.config.model.default, found.config.model.quantize) == ("builtin", "4bit")
    assert found.origins["model.quantize"] == found.origins["model.default"]
    # What is said closer by goes before it.
    assert settings(tmp_path, model_quantize="none").config.model.quantize == "none"
    environ = {"CHATCACHE_QUANTIZE": "8bit"}
    assert settings(tmp_path, environ).config.model.quantize == "8bit"
    named = settings(tmp_path, environ, model_default="builtin:4bit").config.model
    assert named.quantize == "4bit"


def test_another_number_of_bits_is_no_server() -> None:
    with pytest.raises(NotFoundError, match="not loaded in 5bit") as raised:
        remote_model("builtin:5bit", {})
    assert "4bit and 8bit" in raised.value.hint


def test_two_options_that_contradict_each_other_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--quantize says 8bit"):
        settings(tmp_path, model_default="builtin:4bit", model_quantize="8bit")
    same = settings(tmp_path, model_default="builtin:4bit", model_quantize="4bit")
    assert same.config.model.quantize == "4bit"


def test_a_switch_by_name_starts_an_engine_in_that_form(tmp_path: Path) -> None:
    usual = settings(tmp_path, model_quantize="8bit")
    wanted = {"builtin": "8bit", "builtin:4bit": "4bit", "builtin:exact": "none"}
    for name, quantize in wanted.items():
        backend = open_backend(usual, name)
        assert backend._settings.model == "builtin"  # type: ignore[attr-defined]
        assert backend._settings.quantize == quantize  # type: ignore[attr-defined]
        backend.close()


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return Path(shutil.copytree(pocket_dir(), tmp_path / "pocket"))


def make(directory: Path, cache_dir: Path, form: str, num_bytes: int) -> None:
    """What a load leaves behind that has made this form of a model."""
    digest = weights_id(weight_files(directory), cache_dir / REMEMBERED)
    folder = QuantizedModels(cache_dir).folder(QuantizedForm(form, digest, NO_ADAPTER).key)
    folder.mkdir(parents=True)
    (folder / FILE).write_bytes(bytes(num_bytes))


def test_the_forms_of_a_model_say_what_they_need(tmp_path: Path, directory: Path) -> None:
    shelf = FormShelf(tmp_path / "cache")
    exact, eight, four = shelf.forms(str(directory))
    assert exact.name == str(directory)
    assert (eight.name, four.name) == (f"{directory}:8bit", f"{directory}:4bit")
    assert [form.is_made for form in (exact, eight, four)] == [True, False, False]
    assert exact.num_bytes > 0 == four.num_bytes
    assert four.seconds is None
    needed = [form.room.num_bytes for form in (exact, eight, four) if form.room is not None]
    assert needed == sorted(set(needed), reverse=True)
    assert len(needed) == 3


def test_what_was_made_is_known_and_listed_behind_its_model(
    tmp_path: Path, directory: Path
) -> None:
    cache_dir = tmp_path / "cache"
    make(directory, cache_dir, "4bit", 77)
    QuantizedModels(cache_dir).note_speed("8bit", 1e6)
    shelf = FormShelf(cache_dir)
    _, eight, four = shelf.forms(str(directory))
    assert (four.is_made, four.num_bytes) == (True, 77)
    assert eight.seconds == pytest.approx(7.3, rel=0.1)  # 7.3 M parameters
    rows = shelf.with_made([at_hand(str(directory)), at_hand("builtin")])
    assert [(row.name, row.quantization, row.num_bytes) for row in rows[:2]] == [
        (str(directory), "", at_hand(str(directory)).num_bytes),
        (f"{directory}:4bit", "4bit", 77),
    ]
    # Weights that were written anew are others.
    (directory / "model.safetensors").touch()
    assert len(shelf.with_made([at_hand(str(directory))])) == 1


def test_a_form_that_is_usual_needs_no_word(tmp_path: Path, directory: Path) -> None:
    shelf = FormShelf(tmp_path / "cache", quantize="4bit")
    assert [form.name.removeprefix(str(directory)) for form in shelf.forms(str(directory))] == [
        ":exact",
        ":8bit",
        "",
    ]


def test_a_file_of_few_bits_has_no_other_forms(tmp_path: Path) -> None:
    file = tmp_path / "small.gguf"
    file.write_bytes(small_header().file_bytes())
    with pytest.raises(UnavailableError, match="used as its file has it"):
        FormShelf(tmp_path).forms(str(file))
