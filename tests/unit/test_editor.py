"""The user's own editor: which one is started, and what is said when it does not work."""

from __future__ import annotations

from pathlib import Path

import pytest

from chatcache.errors import ChatcacheError
from chatcache.frontend.editor import edit_file, edit_text


def an_editor(path: Path, script: str) -> str:
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o700)
    return str(path)


@pytest.fixture(autouse=True)
def _no_editor(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("VISUAL", "EDITOR"):
        monkeypatch.delenv(name, raising=False)


def test_what_was_saved_comes_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDITOR", an_editor(tmp_path / "ed", 'printf "%s edited\\n" "$1" > "$2"'))
    monkeypatch.setenv("VISUAL", f"{tmp_path / 'ed'} text")
    assert edit_text("before") == "text edited"


def test_without_a_choice_a_usual_one_is_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ChatcacheError, match="There is no editor"):
        edit_file(tmp_path / "file")
    an_editor(tmp_path / "vi", 'echo vi > "$1"')
    edit_file(tmp_path / "file")
    assert (tmp_path / "file").read_text() == "vi\n"


@pytest.mark.parametrize(
    ("command", "words"),
    [("/no/such/editor", "cannot be started"), ("false", "ended with 1"), ("'", "is no command")],
)
def test_an_editor_that_does_not_work_is_named(
    command: str, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VISUAL", command)
    with pytest.raises(ChatcacheError, match=words):
        edit_text("text")


def test_what_is_no_text_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VISUAL", an_editor(tmp_path / "ed", 'printf "\\377" > "$1"'))
    with pytest.raises(ChatcacheError, match="left no text"):
        edit_text("text")
