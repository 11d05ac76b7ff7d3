"""Resumed is never stopped, also on an engine that others use: the bits are the same."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from safetensors import safe_open

from chatcache.backends.base import (
    ChatMessage,
    SamplingParams,
    TurnFinished,
    TurnPlanned,
    TurnRequest,
)
from chatcache.backends.local.engine.client import LocalBackend
from chatcache.backends.local.engine.control import end_engine, running_engines
from chatcache.backends.local.engine.residence import Residence
from chatcache.backends.local.engine.settings import EngineSettings
from chatcache.token_ids import NO_IDS
from tests.models import build_model_dir

GREEDY = SamplingParams(temperature=0.0, max_new_tokens=8)
QUESTIONS = ("What is the answer?", "Is it there? Why?", "One, two, three.")


class Chat:
    """A conversation as the chat service keeps it, on whatever backend each turn is asked of."""

    def __init__(self) -> None:
        self.messages: list[ChatMessage] = [ChatMessage("system", "You are a helpful assistant.")]
        self.journal = NO_IDS
        self.reused: list[int] = []

    def ask(self, backend: LocalBackend, text: str) -> None:
        self.messages.append(ChatMessage("user", text))
        number = len(self.messages)
        request = TurnRequest(f"t{number}", tuple(self.messages), self.journal, sampling=GREEDY)
        planned, *_, last = backend.ask(request)
        assert isinstance(planned, TurnPlanned)
        assert isinstance(last, TurnFinished), last
        self.reused.append(planned.cached_ram_tokens + planned.cached_disk_tokens)
        self.journal = self.journal[: planned.keep] + planned.new_ids + last.result.answer_ids
        self.messages.append(ChatMessage("assistant", last.result.text))


@pytest.fixture
def residence() -> Iterator[Residence]:
    directory = Path(tempfile.mkdtemp(prefix="cce-")) / "engines"
    yield Residence(directory, 600.0)
    for engine in running_engines(directory):
        assert end_engine(engine, "the test is over")
    shutil.rmtree(directory.parent)


def segments(cache_dir: Path) -> dict[str, dict[str, bytes]]:
    """The bytes of all tensors, by file and name."""
    found: dict[str, dict[str, bytes]] = {}
    for path in cache_dir.rglob("*.safetensors"):
        with safe_open(path, "np") as file:
            found[path.name] = {name: file.get_tensor(name).tobytes() for name in file.keys()}  # noqa: SIM118
    return found


def test_with_anothers_turn_in_between_and_after_a_new_engine(
    tmp_path: Path, residence: Residence
) -> None:
    model = str(build_model_dir(tmp_path / "model"))

    def backend(cache: str, residence: Residence | None) -> LocalBackend:
        log = tmp_path / "engine.log"
        return LocalBackend(EngineSettings(model, tmp_path / cache, log, num_threads=1), residence)

    never_stopped = Chat()
    own = backend("own", None)
    for question in QUESTIONS:
        never_stopped.ask(own, question)
    own.close()

    resumed, other = Chat(), Chat()
    first, second = backend("shared", residence), backend("shared", residence)
    resumed.ask(first, QUESTIONS[0])
    other.ask(second, "Another chat begins here, and it is longer than the first one was.")
    first.close()
    third = backend("shared", residence)  # the same engine, another front end
    resumed.ask(third, QUESTIONS[1])
    other.ask(second, "And goes on.")
    second.close()
    third.close()
    (engine,) = running_engines(residence.directory)
    assert end_engine(engine, "the next one reads from disk")
    fourth = backend("shared", residence)
    resumed.ask(fourth, QUESTIONS[2])
    fourth.close()
    (engine,) = running_engines(residence.directory)
    assert end_engine(engine, "all is written")

    assert resumed.journal == never_stopped.journal
    assert resumed.messages == never_stopped.messages
    assert resumed.reused == never_stopped.reused
    expected, found = segments(tmp_path / "own"), segments(tmp_path / "shared")
    assert expected
    assert {name: found[name] for name in expected} == expected
