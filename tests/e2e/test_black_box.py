"""The main job by command: real processes, a real (tiny, random) model, real files.

Every `ask` is a process of its own that starts an engine of its own. Since that takes seconds, what
several tests begin with is asked once, and each of them goes on in a copy of that home.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import live_in
from tests.models import build_model_dir

QUESTIONS = ("What is the answer?", "Is it there? Why?", "One, two, three.")
SYSTEM = "You are a helpful assistant. " * 8
ANSWER_TOKENS = "12"
Ask = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two models of equal shape, tokenizer and config; only the weights differ."""
    root = tmp_path_factory.mktemp("models")
    return build_model_dir(root / "one", seed=1), build_model_dir(root / "two", seed=2)


def run(*arguments: str, code: int = 0) -> str:
    command = [sys.executable, "-m", "chatcache", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout if code == 0 else done.stderr


def run_json(*arguments: str) -> dict[str, Any]:
    answer: dict[str, Any] = json.loads(run(*arguments, "--json"))
    return answer


def ask_model(model: Path, session: str, text: str, *options: str) -> dict[str, Any]:
    """The answer as JSON, whose figures agree with each other."""
    fixed = ("--model", str(model), "--max-new-tokens", ANSWER_TOKENS, "--temperature", "0")
    answer = run_json("ask", text, "--session", session, *fixed, *options)
    usage, details = answer["usage"], answer["usage"]["prompt_tokens_details"]
    assert details["cached_tokens"] == details["cached_ram_tokens"] + details["cached_disk_tokens"]
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
    assert answer["cache"]["diverged_at"] == details["cached_tokens"]
    return answer


@pytest.fixture
def ask(models: tuple[Path, Path]) -> Ask:
    def ask(session: str, text: str, *options: str, model: Path = models[0]) -> dict[str, Any]:
        return ask_model(model, session, text, *options)

    return ask


@dataclass(frozen=True)
class Begun:
    """A home in which session `a` has these answers."""

    home: Path
    answers: tuple[dict[str, Any], ...]

    def copy_to(self, home: Path) -> tuple[dict[str, Any], ...]:
        """Have another home be like this one; returns the answers."""
        shutil.copytree(self.home, home, dirs_exist_ok=True)
        return self.answers


def begin(home: Path, model: Path, *questions: str, system: str | None = None) -> Begun:
    options = () if system is None else ("--system", system)
    with pytest.MonkeyPatch.context() as monkeypatch:
        live_in(home, monkeypatch)
        return Begun(home, tuple(ask_model(model, "a", text, *options) for text in questions))


@pytest.fixture(scope="module")
def two_turns(models: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Begun:
    return begin(tmp_path_factory.mktemp("two-turns"), models[0], *QUESTIONS[:2])


@pytest.fixture(scope="module")
def with_system(models: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Begun:
    return begin(tmp_path_factory.mktemp("system"), models[0], QUESTIONS[0], system=SYSTEM)


def cached(answer: dict[str, Any]) -> int:
    return int(answer["usage"]["prompt_tokens_details"]["cached_tokens"])


def segments() -> list[Path]:
    return sorted(Path(os.environ["CHATCACHE_CACHE_DIR"]).rglob("*.safetensors"))


def test_three_turns_in_three_processes(ask: Ask, two_turns: Begun, home: Path) -> None:
    first, second = two_turns.copy_to(home)
    third = ask("a", QUESTIONS[2])
    assert first["cache"]["reason"] == "cold_start"
    assert cached(first) == 0
    for before, after in ((first, second), (second, third)):
        assert cached(after) == before["usage"]["total_tokens"]
        assert after["usage"]["prompt_tokens_details"]["cached_ram_tokens"] == 0
        assert after["cache"]["outcome"] == "hit"
        assert after["cache"]["reason"] == "new_user_turn"
    for turn, warm in ((1, second), (2, third)):
        run("fork", "a", "--at", str(turn), "--name", f"cold-{turn}")
        cold = ask(f"cold-{turn}", QUESTIONS[turn], "--no-cache")
        assert (cold["text"], cold["cache"]["reason"], cached(cold)) == (
            warm["text"],
            "disabled",
            0,
        )


def test_a_fork_reuses_exactly_its_turns_and_leaves_the_original_alone(
    ask: Ask, two_turns: Begun, home: Path
) -> None:
    first, _ = two_turns.copy_to(home)
    before = run_json("sessions", "show", "a")
    forked = run_json("fork", "a", "--at", "1", "--name", "b")
    assert forked["kv_bytes_written"] == 0
    assert forked["shared_tokens"] == first["usage"]["total_tokens"]
    assert forked["cost"]["disk_tokens"] == first["usage"]["total_tokens"]
    files = segments()
    after = ask("b", QUESTIONS[2])
    assert cached(after) == first["usage"]["total_tokens"]
    original = run_json("sessions", "show", "a")
    was, now = before.pop("kv"), original.pop("kv")
    assert original == before
    # What the fork shares is owned no longer; nothing of it is added or lost.
    assert was["bytes_shared"] == 0 < now["bytes_shared"]
    assert sum(now.values()) == sum(was.values())
    assert set(files) <= set(segments())


def test_a_system_prompt_is_shared(ask: Ask, with_system: Begun, home: Path) -> None:
    with_system.copy_to(home)
    second = ask("b", QUESTIONS[1], "--system", SYSTEM)
    assert cached(second) > 40
    assert second["cache"]["outcome"] == "hit"


def test_without_the_cache_directory_only_speed_is_lost(
    ask: Ask, two_turns: Begun, home: Path
) -> None:
    _, expected = two_turns.copy_to(home)
    run("fork", "a", "--at", "1", "--name", "b")
    run("cache", "clear")
    assert segments() == []
    again = ask("b", QUESTIONS[1])
    assert (cached(again), again["text"]) == (0, expected["text"])
    assert again["cache"]["reason"] == "evicted"


@pytest.mark.parametrize(
    ("harm", "reason"), [("delete", "evicted"), ("truncate", "corrupt"), ("flip", "corrupt")]
)
def test_a_harmed_segment_costs_time_only(
    ask: Ask, two_turns: Begun, home: Path, harm: str, reason: str
) -> None:
    _, expected = two_turns.copy_to(home)
    run("fork", "a", "--at", "1", "--name", "b")
    victim = next(path for path in segments() if not path.name.startswith("0-"))
    content = bytearray(victim.read_bytes())
    if harm == "delete":
        victim.unlink()
    elif harm == "truncate":
        victim.write_bytes(content[:-100])
    else:
        content[-1] ^= 1
        victim.write_bytes(content)
    answer = ask("b", QUESTIONS[1])
    assert answer["text"] == expected["text"]
    assert answer["cache"]["reason"] == reason
    assert answer["cache"]["outcome"] in ("partial", "miss")
    assert run_json("cache", "verify")["damaged"] == []


def test_other_weights_of_the_same_shape_reuse_nothing(
    ask: Ask, models: tuple[Path, Path], two_turns: Begun, home: Path
) -> None:
    two_turns.copy_to(home)
    other = ask("a", QUESTIONS[2], model=models[1])
    assert cached(other) == 0
    assert other["cache"]["reason"] == "model_changed"
    assert "weights" in other["cache"]["detail"]


def test_a_prompt_longer_than_the_context_names_both_numbers(ask: Ask) -> None:
    model = build_model_dir(Path(os.environ["CHATCACHE_DATA_DIR"]).parent / "short",
                            max_position_embeddings=32)  # fmt: skip
    problem = run("ask", "word " * 100, "--model", str(model), code=4)
    assert "32" in problem
    assert "chatcache ask --new" in problem


def test_a_broken_model_directory_names_the_file(models: tuple[Path, Path], tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert "config.json" in run("ask", "hello", "--model", str(tmp_path / "empty"), code=4)
    broken = build_model_dir(tmp_path / "broken")
    weights = broken / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    assert "model.safetensors" in run("ask", "hello", "--model", str(broken), code=4)


def test_deleting_a_session_deletes_what_only_it_had_read(
    ask: Ask, with_system: Begun, home: Path
) -> None:
    with_system.copy_to(home)
    run("fork", "a", "--name", "b")
    ask("a", QUESTIONS[1])
    kept = segments()
    ask("b", QUESTIONS[2])
    assert set(segments()) > set(kept)
    run("sessions", "delete", "b", "--yes")
    assert segments() == kept
    run("sessions", "delete", "a", "--yes")
    assert segments() == []
