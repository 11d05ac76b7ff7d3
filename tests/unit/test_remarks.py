"""What somebody should know of a model is said before it answers, wherever it answers."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from chatcache import cli, compose
from chatcache.backends.local.model import loader
from chatcache.backends.local.model.loader import load_model
from chatcache.backends.local.model.remarks import remarks
from chatcache.frontend import reports
from chatcache.frontend.model_choice import ModelChoice
from tests.fakes import FakeBackend
from tests.models import build_model_dir
from tests.talks import Engine
from tests.toymodel import fake_model_info

REMARK = "It was not made for chats."


def test_a_model_without_a_template_says_so(tmp_path: Path) -> None:
    model = build_model_dir(tmp_path / "base", chat_template=None)
    engine = Engine(model, tmp_path)
    engine.close()
    (remark,) = engine.runner.info.remarks
    assert "no chat template" in remark
    assert "plain format" in remark
    assert load_model(str(build_model_dir(tmp_path / "chat"))).remarks == ()


def test_another_dtype_than_it_was_saved_in_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = build_model_dir(tmp_path / "model")
    config = model / "config.json"
    config.write_text(config.read_text().replace('"float32"', '"bfloat16"'))
    (remark,) = load_model(str(model)).remarks
    assert "saved in bfloat16 and runs in float32, which takes twice the memory" in remark
    assert load_model(str(model), dtype="float32").remarks == ()
    # A large model on a CPU that is slow with bfloat16.
    monkeypatch.setattr(loader, "SMALL_MODEL_PARAMETERS", 0)
    monkeypatch.setattr(loader, "has_fast_bfloat16", lambda: False)
    assert "runs in float32" in load_model(str(model)).remarks[0]
    monkeypatch.setattr(loader, "has_fast_bfloat16", lambda: True)
    assert load_model(str(model)).remarks == ()


def test_memory_is_mentioned_where_it_grows() -> None:
    def words(stored: torch.dtype, dtype: torch.dtype) -> str:
        return " ".join(remarks("m", stored, dtype, has_template=True, is_chosen=False))

    assert "twice" in words(torch.float16, torch.float32)
    assert words(torch.float16, torch.bfloat16).startswith("m was saved in float16 and runs in")
    assert "twice" not in words(torch.float16, torch.bfloat16)


@pytest.fixture
def backend(monkeypatch: pytest.MonkeyPatch) -> FakeBackend:
    backend = FakeBackend(info=replace(fake_model_info(), remarks=(REMARK,)))
    monkeypatch.setattr(compose, "open_backend", lambda settings, model=None: backend)
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
