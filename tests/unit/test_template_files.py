"""What the files of a model tell of its chat template, without running it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from chatcache import cli
from chatcache.backends.local.model.resolve import changes_by_itself, read_template
from tests.templates import SHAPES


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("{{ strftime_now('%d %b %Y') }}", "the date"),
        ('{{ strftime_now( "%H:%M") }}', "the time"),
        ("{{ strftime_now(format) }}", "the date or the time"),
        ("{{ range(9) | random }}", "something random"),
        ("{{ messages }} at random", None),
    ],
)
def test_what_a_template_writes_by_itself(source: str, words: str | None) -> None:
    assert changes_by_itself(source) == words


def test_the_dated_shapes_are_found() -> None:
    dated = {shape.name for shape in SHAPES if changes_by_itself(shape.template or "")}
    assert dated == {"llama3.2", "gpt-oss"}


@pytest.mark.parametrize(
    "stored", ["one", [{"name": "tool"}, {"name": "default", "template": "one"}]]
)
def test_a_template_in_the_settings_of_the_tokenizer(tmp_path: Path, stored: object) -> None:
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": stored}))
    assert read_template(tmp_path) == "one"
    (tmp_path / "chat_template.jinja").write_text("two")
    assert read_template(tmp_path) == "two"


@pytest.mark.parametrize(
    "content",
    ["", "[]", "{}", "[" * 100_000, '{"chat_template": 5}', '{"chat_template": [1]}'],
)
def test_files_that_tell_nothing(tmp_path: Path, content: str) -> None:
    assert read_template(tmp_path) is None
    (tmp_path / "tokenizer_config.json").write_text(content)
    assert read_template(tmp_path) is None


def test_doctor_notes_a_template_that_changes_by_itself(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("chatcache.doctor.machine.DEVICE_PROBE", "print('cpu')")
    (tmp_path / "chat_template.jinja").write_text("{{ strftime_now('%d %b %Y') }}")
    cli.main(["doctor", "--json", "--model", str(tmp_path)])
    findings = {one["subject"]: one for one in json.loads(capsys.readouterr().out)["findings"]}
    found = findings["chat template"]
    assert found["status"] == "note"
    assert "writes the date" in found["detail"]
    assert "models probe" in found["advice"]
