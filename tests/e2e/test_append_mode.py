"""Append mode with loaded models whose templates rewrite what was read: reuse, reason, words."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from chatcache import cli
from tests.models import build_model_dir
from tests.talks import Engine, Talk
from tests.templates import BY_NAME

LONG = "What is the answer? " + "The key and the value of every token are kept. " * 6
Run = Callable[..., str]


def model_with(shape: str, place: Path) -> Path:
    return build_model_dir(place / shape, tokenizer=BY_NAME[shape].tokenizer())


@pytest.mark.parametrize("shape", ["qwq", "r1"])
def test_nothing_that_was_read_is_computed_again(tmp_path: Path, shape: str) -> None:
    engine = Engine(model_with(shape, tmp_path), tmp_path)
    canonical, append = Talk(), Talk(options={"history_mode": "append"})
    for talk in (canonical, append):
        talk.say(engine, LONG)
    lost = canonical.say(engine, "And then?")
    assert lost.cache.reason in ("template_rewrote_history", "not_cuttable")
    assert lost.usage.cached_tokens < len(append.journal)
    before = len(append.journal)
    kept = append.say(engine, "And then?")
    engine.close()
    assert kept.usage.cached_tokens == before
    assert (kept.cache.outcome, kept.cache.reason) == ("hit", "new_user_turn")
    assert "append mode keeps" in kept.cache.detail
    assert "the template would write differently now" in kept.cache.detail


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.setattr("sys.stdin", io.StringIO())

    def run_words(*words: str) -> str:
        capsys.readouterr()
        assert cli.main(list(words)) == 0
        return capsys.readouterr().out

    return run_words


def test_the_mode_of_a_session_reaches_the_model(run: Run, tmp_path: Path) -> None:
    """Each command in a process of its own, as far as the model is concerned."""
    options = ("--model", str(model_with("qwq", tmp_path)), "--temperature", "0")

    def ask(words: str, *more: str) -> dict[str, Any]:
        told = run("ask", words, *options, "--max-new-tokens", "8", "--json", *more)
        answer: dict[str, Any] = json.loads(told)
        return answer

    first = ask(LONG, "--session", "a")
    run("fork", "a", "--name", "b")
    assert "append" in run("sessions", "mode", "a", "append")
    read = first["usage"]["total_tokens"]
    append, canonical = (ask("And then?", "--session", name) for name in "ab")
    assert append["usage"]["prompt_tokens_details"]["cached_tokens"] == read
    assert append["cache"]["reason"] == "new_user_turn"
    assert "append mode" in append["cache"]["detail"]
    assert canonical["usage"]["prompt_tokens_details"]["cached_tokens"] < read
    assert canonical["cache"]["reason"] == "template_rewrote_history"
    assert json.loads(run("sessions", "show", "a", "--json"))["history_mode"] == "append"
