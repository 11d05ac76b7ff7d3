"""The main job by command: real processes, a real (tiny, random) model, real files.

Every `ask` is a process of its own that starts an engine of its own.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.models import build_model_dir

QUESTIONS = ("What is the answer?", "Is it there? Why?", "One, two, three.")
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


@pytest.fixture
def ask(models: tuple[Path, Path]) -> Ask:
    def ask(session: str, text: str, *options: str, model: Path = models[0]) -> dict[str, Any]:
        fixed = ("--model", str(model), "--max-new-tokens", ANSWER_TOKENS, "--temperature", "0")
        answer = run_json("ask", text, "--session", session, *fixed, *options)
        usage, details = answer["usage"], answer["usage"]["prompt_tokens_details"]
        assert details["cached_tokens"] == (
            details["cached_ram_tokens"] + details["cached_disk_tokens"]
        )
        assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
        assert answer["cache"]["diverged_at"] == details["cached_tokens"]
        return answer

    return ask


def cached(answer: dict[str, Any]) -> int:
    return int(answer["usage"]["prompt_tokens_details"]["cached_tokens"])


def segments() -> list[Path]:
    return sorted(Path(os.environ["CHATCACHE_CACHE_DIR"]).rglob("*.safetensors"))


def test_three_turns_in_three_processes(ask: Ask) -> None:
    first, second, third = (ask("a", text) for text in QUESTIONS)
    cold = [ask("b", text, "--no-cache") for text in QUESTIONS]
    assert [one["text"] for one in (first, second, third)] == [one["text"] for one in cold]
    assert [one["cache"]["reason"] for one in cold] == ["disabled"] * 3
    assert [cached(one) for one in cold] == [0, 0, 0]
    assert first["cache"]["reason"] == "cold_start"
    for before, after in ((first, second), (second, third)):
        assert cached(after) == before["usage"]["total_tokens"]
        assert after["usage"]["prompt_tokens_details"]["cached_ram_tokens"] == 0
        assert after["cache"]["outcome"] == "hit"
        assert after["cache"]["reason"] == "new_user_turn"


def test_a_fork_reuses_exactly_its_turns_and_leaves_the_original_alone(ask: Ask) -> None:
    first = ask("a", QUESTIONS[0])
    ask("a", QUESTIONS[1])
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


def test_a_system_prompt_is_shared(ask: Ask) -> None:
    system = "You are a helpful assistant. " * 8
    ask("a", QUESTIONS[0], "--system", system)
    second = ask("b", QUESTIONS[1], "--system", system)
    assert cached(second) > 40
    assert second["cache"]["outcome"] == "hit"


def test_without_the_cache_directory_only_speed_is_lost(ask: Ask, tmp_path: Path) -> None:
    ask("a", QUESTIONS[0])
    expected = ask("a", QUESTIONS[1])
    run("fork", "a", "--at", "1", "--name", "b")
    run("cache", "clear")
    assert segments() == []
    again = ask("b", QUESTIONS[1])
    assert (cached(again), again["text"]) == (0, expected["text"])
    assert again["cache"]["reason"] == "evicted"


@pytest.mark.parametrize(
    ("harm", "reason"), [("delete", "evicted"), ("truncate", "corrupt"), ("flip", "corrupt")]
)
def test_a_harmed_segment_costs_time_only(ask: Ask, harm: str, reason: str) -> None:
    ask("a", QUESTIONS[0])
    run("fork", "a", "--name", "b")
    expected = ask("a", QUESTIONS[1])
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


def test_other_weights_of_the_same_shape_reuse_nothing(ask: Ask, models: tuple[Path, Path]) -> None:
    ask("a", QUESTIONS[0])
    other = ask("a", QUESTIONS[1], model=models[1])
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


def test_deleting_a_session_deletes_what_only_it_had_read(ask: Ask) -> None:
    system = "You are a helpful assistant. " * 8
    ask("a", QUESTIONS[0], "--system", system)
    run("fork", "a", "--name", "b")
    ask("a", QUESTIONS[1])
    kept = segments()
    ask("b", QUESTIONS[2])
    assert set(segments()) > set(kept)
    run("sessions", "delete", "b", "--yes")
    assert segments() == kept
    run("sessions", "delete", "a", "--yes")
    assert segments() == []
