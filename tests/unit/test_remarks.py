"""What somebody should know of a model is said before it answers, wherever it answers."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest

from chatcache import cli, compose
from chatcache.backends.base import ModelInfo
from chatcache.backends.local.model import loader, remarks
from chatcache.formatting import model_name
from chatcache.frontend import reports
from chatcache.frontend.model_choice import ModelChoice
from tests.fakes import FakeBackend
from tests.models import build_model_dir
from tests.talks import Engine
from tests.toymodel import fake_model_info

REMARK = "It was not made for chats."


def info_of(model: Path, **settings: str) -> ModelInfo:
    engine = Engine(model, model.parent, **settings)
    engine.close()
    return engine.runner.info


def remarks_of(model: Path, **settings: str) -> tuple[str, ...]:
    return info_of(model, **settings).remarks


def test_a_model_without_a_template_says_so(tmp_path: Path) -> None:
    (remark,) = remarks_of(build_model_dir(tmp_path / "base", chat_template=None))
    assert "no chat template" in remark
    assert "plain format" in remark
    assert remarks_of(build_model_dir(tmp_path / "chat")) == ()


@pytest.mark.parametrize("stored", ["bfloat16", "float16"])
def test_another_dtype_than_it_was_saved_in_is_said(
    stored: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = build_model_dir(tmp_path / "model")
    config = model / "config.json"
    config.write_text(config.read_text().replace('"float32"', f'"{stored}"'))
    info = info_of(model)
    assert info.remarks == ()  # it is small
    assert f"float32 (saved in {stored})" in reports.model(info)
    # A large model, on a CPU that is slow with bfloat16, and on one that is quick.
    for module in (loader, remarks):
        monkeypatch.setattr(module, "SMALL_MODEL_PARAMETERS", 0)
    monkeypatch.setattr(loader, "has_fast_bfloat16", lambda: False)
    (remark,) = remarks_of(model)
    assert f"saved in {stored} and runs in float32, which takes twice the memory" in remark
    assert remarks_of(model, dtype="float32") == ()
    monkeypatch.setattr(loader, "has_fast_bfloat16", lambda: True)
    quick = remarks_of(model)
    assert all("runs in bfloat16" in remark and "twice" not in remark for remark in quick)
    assert len(quick) == (stored == "float16")


@pytest.fixture
def backend(monkeypatch: pytest.MonkeyPatch) -> FakeBackend:
    backend = FakeBackend(info=replace(fake_model_info(), remarks=(REMARK,)))
    monkeypatch.setattr(compose, "open_backend", lambda settings, model=None, **options: backend)
    monkeypatch.setattr(sys, "stdin", None)
    return backend


def test_the_shell_says_it_unless_it_is_quiet(
    backend: FakeBackend, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["ask", "hi", "--new"]) == 0
    captured = capsys.readouterr()
    assert REMARK in captured.err
    assert REMARK not in captured.out


def test_a_chat_says_it_once_and_reports_it_always(backend: FakeBackend) -> None:
    choice = ModelChoice(None)  # type: ignore[arg-type]
    assert choice.remarks(backend.info) == (REMARK,)
    assert choice.remarks(backend.info) == ()
    assert REMARK in reports.model(backend.info)


@pytest.mark.parametrize(
    ("model", "shown"),
    [
        ("builtin", "builtin"),
        ("Qwen/Qwen3-0.6B", "Qwen/Qwen3-0.6B"),
        ("box:org/model/one", "box:org/model/one"),
        ("https://host/a/b", "https://host/a/b"),
        ("/home/me/models/Qwen3-0.6B", "Qwen3-0.6B"),
        ("/home/me/models/Qwen3-0.6B/", "Qwen3-0.6B"),
        ("~/models/tiny", "tiny"),
        ("./tiny", "tiny"),
        ("../models/tiny", "tiny"),
        ("models/of/mine", "mine"),
        ("/x/hub/models--Qwen--Qwen3-0.6B/snapshots/abc123", "Qwen/Qwen3-0.6B"),
        ("/", "/"),
        ("/home/me/odd\n\x1b[2Jname", "odd [2Jname"),
    ],
)
def test_a_directory_is_called_by_its_own_name(model: str, shown: str) -> None:
    assert model_name(model) == shown
