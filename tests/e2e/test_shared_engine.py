"""Many front ends at once on one model: one engine, and everybody is answered as if alone."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from chatcache.bench.processes import Terminal, chat_command
from tests.e2e.test_black_box import run, run_json
from tests.models import build_model_dir

QUESTIONS = ("What is the answer?", "Is it there?", "One, two, three.", "And the rest?")
SECONDS = 120.0
GREEDY = ("--temperature", "0", "--max-new-tokens", "12")


@pytest.fixture(autouse=True)
def runtime(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Engines of this test alone, which stay until it is over."""
    directory = tempfile.mkdtemp(prefix="cce-")
    monkeypatch.setenv("XDG_RUNTIME_DIR", directory)
    monkeypatch.setenv("CHATCACHE_KEEP_ALIVE", "10m")
    yield Path(directory) / "chatcache"
    run("engine", "stop", "--all")
    shutil.rmtree(directory)


@pytest.fixture
def model(tmp_path: Path) -> str:
    return str(build_model_dir(tmp_path / "model", seed=1))


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.2)


def answers(session: str) -> list[str]:
    messages = run_json("sessions", "show", session)["messages"]
    return [message["text"] for message in messages if message["role"] == "assistant"]


def test_two_terminals_and_four_commands_share_one_engine(
    model: str, home: Path, tmp_path: Path
) -> None:
    (home / "config.toml").write_text("[sampling]\ntemperature = 0.0\nmax_new_tokens = 12\n")
    alone = {
        question: run_json(
            *("ask", question, "--no-save", "--new", "--no-engine", "--model", model),
            *("--cache-dir", str(tmp_path / "alone"), *GREEDY),
        )["text"]
        for question in QUESTIONS
    }
    environment = {**os.environ, "TERM": "xterm-256color"}
    terminals = [
        Terminal(chat_command("--model", model, session), environment)
        for session in (run_json("ask", "Hello.", "--session", name, "--model", model)["session"]
                        for name in ("left", "right"))
    ]  # fmt: skip
    try:
        for terminal in terminals:
            assert terminal.until(lambda words: "· cpu" in words, SECONDS)
        for terminal, question in zip(terminals, QUESTIONS, strict=False):
            terminal.write(question)
            terminal.write("\r")
        asked = [
            subprocess.Popen(
                chat_command("ask", question, "--session", f"s{number}", "--model", model, *GREEDY),
                stdout=subprocess.PIPE,
                text=True,
            )
            for number, question in enumerate(QUESTIONS)
        ]
        told = [process.communicate(timeout=SECONDS)[0].strip() for process in asked]
        assert [process.returncode for process in asked] == [0] * 4
        assert told == [alone[question].strip() for question in QUESTIONS]
        wait_until(lambda: len(answers("left")) == len(answers("right")) == 2)
        (engine,) = run_json("engine", "list")["engines"]
        assert engine["front_ends"] == ["terminal", "terminal"]
        assert engine["model"] == model
    finally:
        for terminal in terminals:
            terminal.close()
    # What each chat has read is on disk, and is reused by an engine that is not this one.
    assert run_json("engine", "stop", model)["stopped"] == 1
    for number in range(len(QUESTIONS)):
        answer = run_json(*("ask", "Go on.", "--session", f"s{number}", "--model", model, *GREEDY))
        assert answer["cache"]["reason"] == "new_user_turn"
        assert answer["usage"]["prompt_tokens_details"]["cached_disk_tokens"] > 0
    assert run_json("cache", "verify")["damaged"] == []


def test_what_a_command_tells_of_its_engine(model: str) -> None:
    ask = ("ask", "Hello.", "--session", "s", "--model", model, *GREEDY)
    own = run_json(*ask, "--no-engine")["engine"]
    assert (own["resident"], own["started"]) == (False, True)
    assert run_json("engine", "list")["engines"] == []
    first, second = run_json(*ask)["engine"], run_json(*ask)["engine"]
    assert (first["resident"], first["started"]) == (True, True)
    assert (second["resident"], second["started"]) == (True, False)
    assert first["load_ms"] > second["load_ms"]
    (engine,) = run_json("engine", "list")["engines"]
    (used,) = run_json("cache", "stats")["engines"]
    held = {"ram": engine["ram"], "vram": None, "pinned_bytes": None}
    assert used == {"model": model, "pid": engine["pid"], **held}
    assert 0 < engine["ram"]["bytes"] <= engine["ram"]["budget_bytes"]


def test_what_was_deleted_is_not_reused_from_memory(model: str) -> None:
    ask = ("ask", "Hello, how are you today?", "--session", "s", "--model", model, *GREEDY)
    run_json(*ask)
    assert run_json(*ask)["usage"]["prompt_tokens_details"]["cached_ram_tokens"] > 0
    run_json("cache", "clear")
    assert run_json(*ask)["usage"]["prompt_tokens_details"]["cached_tokens"] == 0


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("engine", "stop", "--all"), 0, ""),
        (("engine", "stop"), 0, ""),
        (("engine", "stop", "no-such-model"), 3, "No engine of 'no-such-model'"),
        (("engine", "stop", "builtin", "--all"), 2, "say different things"),
        (("engine",), 2, "needs a word"),
    ],
)
def test_ending_what_is_not_there(words: tuple[str, ...], code: int, said: str) -> None:
    assert said in run(*words, code=code)


def test_a_setting_that_means_nothing_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CHATCACHE_KEEP_ALIVE", "soon")
    assert 'must be "5m", "1h", "0", "forever" or "none"' in run("ask", "hi", code=2)
    monkeypatch.setenv("CHATCACHE_KEEP_ALIVE", "10m")


def test_relative_paths_mean_the_same_engine(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_json("ask", "Hello.", "--session", "s", "--model", model, *GREEDY)
    monkeypatch.chdir(tmp_path)
    answer = run_json("ask", "Hello.", "--session", "s", "--model", "./model", *GREEDY)
    assert answer["engine"]["started"] is False
