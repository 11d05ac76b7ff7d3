"""`chatcache lens`: text, JSON and pictures, with a backend that needs no model."""

from __future__ import annotations

import json
import sys
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from chatcache import cli, compose
from chatcache.backends.questions import DescribeTokens, TokenPiece, TokenPieces
from chatcache.errors import NotFoundError
from chatcache.frontend.lens.views import VIEW_NAMES
from chatcache.token_ids import TokenIds
from tests.fakes import FakeBackend

Run = Callable[..., tuple[int, str, str]]


def tell_tokens(question: DescribeTokens) -> TokenPieces:
    distinct = dict.fromkeys(question.ids)
    return TokenPieces(tuple(TokenPiece(number, f"t{number}") for number in distinct), question.ids)


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[FakeBackend]:
    """The backends that commands have opened."""
    backends: list[FakeBackend] = []
    kept: list[TokenIds] = []  # what one engine wrote, the next one finds on disk

    def open_backend(settings: Any, **options: Any) -> FakeBackend:
        backend = FakeBackend(model=settings.config.model.default)
        backend.study_answers[DescribeTokens] = tell_tokens
        for earlier in backends:
            kept.extend(earlier.ram_journals)
        backend.disk_journals += kept
        backends.append(backend)
        return backend

    monkeypatch.setattr(compose, "open_backend", open_backend)
    monkeypatch.setattr(sys, "stdin", None)
    return backends


@pytest.fixture
def run(made: list[FakeBackend], capsys: pytest.CaptureFixture[str]) -> Run:
    def run_command(*words: str) -> tuple[int, str, str]:
        code = cli.main(words)
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run_command


@pytest.fixture
def usage(run: Run, made: list[FakeBackend]) -> dict[str, Any]:
    """What `ask --json` told of the second turn of the chat `tides`."""
    run("ask", "one", "--session", "tides")
    _, out, _ = run("ask", "two", "--session", "tides", "--json")
    made.clear()
    told: dict[str, Any] = json.loads(out)["usage"]
    return told


def test_the_first_view_needs_no_model(
    run: Run, made: list[FakeBackend], usage: dict[str, Any]
) -> None:
    code, out, err = run("lens")
    assert (code, err) == (0, "")
    assert f"of its {usage['prompt_tokens']} prompt tokens" in " ".join(out.split())
    assert all(len(line) <= 80 for line in out.splitlines())
    assert made == []


def test_json_is_one_object_with_the_counts_of_usage(run: Run, usage: dict[str, Any]) -> None:
    code, out, err = run("lens", "tides", "--json")
    assert (code, err, out.count("\n")) == (0, "", 1)
    found = json.loads(out)
    assert list(found) == ["session_id", "session", "turn", "views"]
    assert (found["session"], found["turn"]) == ("tides", 2)
    assert tuple(found["views"]) == VIEW_NAMES
    last = found["views"]["turns"]["turns"][-1]
    details = usage["prompt_tokens_details"]
    for name in ("cached_tokens", "cached_ram_tokens", "cached_disk_tokens"):
        assert last[name] == details[name], name
    assert last["computed_tokens"] == usage["prompt_tokens"] - details["cached_tokens"]
    assert last["completion_tokens"] == usage["completion_tokens"]
    assert found["views"]["tokens"]["prompt_tokens"] == usage["prompt_tokens"]
    assert sum(found["views"]["tokens"]["counts"].values()) == usage["total_tokens"]


def test_one_view_has_one_key(run: Run, usage: dict[str, Any]) -> None:
    found = json.loads(run("lens", "tides", "--view", "turns", "--turn", "1", "--json")[1])
    assert list(found["views"]) == ["turns"]
    assert found["turn"] == found["views"]["turns"]["turn"] == 1


def test_a_view_that_asks_a_model_loads_the_one_of_the_chat(
    run: Run, made: list[FakeBackend], usage: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compose, "check_model", lambda settings: None)
    run("ask", "three", "--session", "tides", "--model", "fake-two")
    made.clear()
    code, out, err = run("lens", "--view", "tokens", "--quiet")
    assert (code, err) == (0, "")
    assert "│" in out
    assert [(backend.info.model, backend.is_closed) for backend in made] == [("fake-two", True)]
    made.clear()
    code, out, _ = run("lens", "--view", "tokens", "--no-load")
    assert code == 0
    assert "#" in out  # ids alone
    assert made == []


def test_a_model_that_is_gone_leaves_what_the_disk_knows(
    run: Run, made: list[FakeBackend], usage: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def is_gone(settings: Any) -> None:
        raise NotFoundError("There is no model 'builtin'.", "Put it back.")

    monkeypatch.setattr(compose, "check_model", is_gone)
    code, out, err = run("lens", "--view", "tokens")
    assert (code, out) == (3, "")
    assert "--no-load shows what the disk knows" in err
    code, out, err = run("lens", "--json")
    assert code == 0
    assert tuple(json.loads(out)["views"]) == VIEW_NAMES
    assert "There is no model 'builtin'. What the disk knows is shown." in err
    assert made == []


def test_pictures_are_written_once(run: Run, usage: dict[str, Any], tmp_path: Path) -> None:
    pytest.importorskip("PIL")
    pictures = tmp_path / "a.svg", tmp_path / "a.png"
    assert run("lens", "--svg", str(pictures[0]), "--png", str(pictures[1])) == (0, "", "")
    assert ElementTree.parse(pictures[0]).getroot().tag.endswith("svg")
    assert pictures[1].read_bytes().startswith(b"\x89PNG")
    before = pictures[0].read_bytes()
    code, _, err = run("lens", "--svg", str(pictures[0]))
    assert code == 2
    assert "is there already" in err
    assert pictures[0].read_bytes() == before


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        (["--view", "tokns"], 2, "'tokens'"),
        (["--turn", "9"], 3, "turns 1 to 2"),
        (["--turn", "0"], 2, "--turn"),
        (["--width", "4"], 2, "--width"),
        (["--view", "tokens", "--token", "999", "--no-load"], 2, "tokens 0 to 39"),
        (["tide"], 3, "tides"),
        (["--svg", "no/such/place.svg"], 2, "cannot be written"),
        (["--layer", "x"], 2, "--layer"),
    ],
)
def test_wrong_use_is_told(
    run: Run, usage: dict[str, Any], words: list[str], code: int, told: str
) -> None:
    done = run("lens", *words)
    assert done[:2] == (code, "")
    assert told in done[2]


def test_without_any_session_there_is_nothing_to_see(run: Run) -> None:
    code, out, err = run("lens")
    assert (code, out) == (3, "")
    assert "There is no session yet." in err
