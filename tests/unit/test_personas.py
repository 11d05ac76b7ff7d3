"""Personas in config.toml, and the sampling that is in force."""

from __future__ import annotations

from pathlib import Path

import pytest

from chatcache.backends.base import SamplingParams
from chatcache.config import load_settings
from chatcache.configfile import default_text, set_value
from chatcache.errors import UsageError
from chatcache.frontend.sampling import UNTOUCHED, Sampling
from chatcache.personas import Persona


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "config.toml"
    path.write_text(text)
    return path


def test_personas_are_read_with_their_sampling(tmp_path: Path) -> None:
    path = written(tmp_path, '[personas.tutor]\nsystem = " Ask. "\ntemperature = 1\ntop_k = 5\n')
    config = load_settings({"paths.config_file": path}).config
    tutor = Persona("tutor", "Ask.", {"temperature": 1.0, "top_k": 5})
    assert config.personas == {"tutor": tutor}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[personas.x]\ntemperature = 1\n", "personas.x has no system prompt"),
        ('[personas.x]\nsystem = "a"\ntemprature = 1\n', "no setting 'temprature'"),
        ('[personas.x]\nsystem = "a"\ntop_p = 2\n', "personas.x.top_p must be above 0"),
        ("[personas]\nx = 1\n", "personas.x is no section"),
    ],
)
def test_a_persona_that_is_wrong_is_named(tmp_path: Path, text: str, message: str) -> None:
    path = written(tmp_path, text)
    with pytest.raises(UsageError) as raised:
        load_settings({"paths.config_file": path})
    assert message in raised.value.message
    assert str(path) in raised.value.message


def test_the_commented_file_shows_a_persona_that_works(tmp_path: Path) -> None:
    lines = default_text().splitlines()
    start = lines.index("# [personas.tutor]")
    path = written(tmp_path, "\n".join(line.removeprefix("# ") for line in lines[start:]))
    assert "tutor" in load_settings({"paths.config_file": path}).config.personas


def test_setting_a_persona_with_config_set_says_how(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="written in the file"):
        set_value(tmp_path / "config.toml", "personas.x.system", "Hello")


def test_who_set_a_parameter_is_known() -> None:
    tutor = Persona("tutor", "Ask.", {"temperature": 0.3, "think": False})
    sampling = Sampling(SamplingParams(top_k=3), None, {"top_k": "option"}).with_persona(tutor)
    sampling = sampling.changed("seed", "7")
    rows = {name: (value, origin) for name, value, origin in sampling.rows()}
    assert rows["temperature"] == ("0.3", "persona tutor")
    assert rows["think"] == ("off", "persona tutor")
    assert rows["top_k"] == ("3", "option")
    assert rows["seed"] == ("7", "/set")
    assert rows["top_p"] == ("default", "the model's own settings")
    assert UNTOUCHED in sampling.report()
    other = sampling.with_persona(Persona("plain", "Hello.", {}))
    assert other.params == SamplingParams(top_k=3, seed=7)
    assert other.think is None
