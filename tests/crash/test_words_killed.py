"""A process that is killed at any moment: every word that was said to be saved is there."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from chatcache.chat.service import ChatService
from chatcache.chat.store import SessionStore
from chatcache.config import DATABASE_NAME

ROOT = Path(__file__).parents[2]
NUM_KILLS = 20

TALKER = """
import sys
from pathlib import Path
from chatcache.chat.service import ChatService
from chatcache.chat.store import SessionStore
from chatcache.chat.views import AnswerSaved, UserMessageSaved
from tests.fakes import FakeBackend

path, first, name = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
backend = FakeBackend(lambda request: "Words " * 30, starts_ready=True)
backend.start()
service = ChatService(SessionStore(path), backend)
found = [one for one in service.list_sessions() if one.name == name]
session = (found[0] if found else service.create_session(name, "Be kind.")).session_id
print("ready", flush=True)
for number in range(first, first + 100_000):
    for event in service.send(session, f"message {number}."):
        if isinstance(event, UserMessageSaved):
            print(f"saved {number}", flush=True)
        elif isinstance(event, AnswerSaved):
            print(f"answered {number}", flush=True)
"""

HANGING = """
import sys
from pathlib import Path
from chatcache.chat.service import ChatService
from chatcache.chat.store import SessionStore
from chatcache.chat.views import ChatEvent
from chatcache.backends.base import TextDelta
from tests.fakes import FakeBackend

backend = FakeBackend(["One two three."], starts_ready=True)
backend.gate("delta:2")
backend.start()
service = ChatService(SessionStore(Path(sys.argv[1])), backend)
from chatcache.chat import answer_keeper
answer_keeper.PARTIAL_SECONDS = 0.0
for event in service.send(service.create_session("a").session_id, "go"):
    if isinstance(event, TextDelta):
        print(event.text, flush=True)
"""


def start(code: str, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def number_of(text: str) -> int:
    return int(text.removeprefix("message ").removesuffix("."))


def kill(process: subprocess.Popen[str]) -> list[str]:
    """End it as a power button would; returns the lines it had still printed."""
    process.send_signal(signal.SIGKILL)
    rest, _ = process.communicate()
    return [line.strip() for line in rest.splitlines(keepends=True) if line.endswith("\n")]


@pytest.mark.skipif(sys.platform == "win32", reason="SIGKILL")
def test_no_shown_message_is_lost_in_twenty_kills(tmp_path: Path) -> None:
    path = tmp_path / "data" / DATABASE_NAME
    chance = random.Random(20)
    saved: set[int] = set()
    answered: set[int] = set()
    for round_number in range(NUM_KILLS):
        process = start(TALKER, str(path), str(round_number * 100_000), "talk")
        assert process.stdout is not None
        # The moment is counted in lines and then blurred, so that it hits anything in between.
        lines = [process.stdout.readline().strip() for _ in range(1 + chance.randrange(8))]
        threading.Event().wait(chance.random() * 0.01)
        for line in [*lines, *kill(process)]:
            word, _, number = line.partition(" ")
            if word == "saved":
                saved.add(int(number))
            elif word == "answered":
                answered.add(int(number))
        service = ChatService(SessionStore(path), None)
        assert service.verify() == []
        messages = service.transcript(service.find_session("talk").session_id)
        kept = {number_of(m.text) for m in messages if m.role == "user"}
        assert saved <= kept
        by_turn = {m.turn: m for m in messages if m.role == "assistant"}
        whole = {
            number_of(m.text)
            for m in messages
            if m.role == "user"
            and m.turn in by_turn
            and by_turn[m.turn].finish_reason == "stop"
            and by_turn[m.turn].text == "Words " * 30
        }
        assert answered <= whole
        service.close()
    assert saved


@pytest.mark.skipif(sys.platform == "win32", reason="SIGKILL")
def test_a_cut_off_answer_is_found_at_the_next_start(tmp_path: Path) -> None:
    path = tmp_path / "data" / DATABASE_NAME
    process = start(HANGING, str(path))
    assert process.stdout is not None
    assert [process.stdout.readline().strip() for _ in range(2)] == ["One", "two"]
    # Another process that looks in meanwhile leaves the answer in the making alone.
    onlooker = ChatService(SessionStore(path), None)
    session = onlooker.find_session("a").session_id
    assert [m.text for m in onlooker.transcript(session)] == ["go"]
    onlooker.close()
    kill(process)
    service = ChatService(SessionStore(path), None)
    question, answer = service.transcript(session)
    assert question.text == "go"
    assert (answer.text, answer.finish_reason, answer.model) == ("One two ", "stopped", "fake")
    assert answer.result_json is None
    assert service.verify() == []
    service.close()
    service = ChatService(SessionStore(path), None)
    assert len(service.transcript(session)) == 2
    service.close()


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_ctrl_c_keeps_the_answer_with_its_token_ids(tmp_path: Path) -> None:
    path = tmp_path / "data" / DATABASE_NAME
    process = start(HANGING, str(path))
    assert process.stdout is not None
    assert [process.stdout.readline().strip() for _ in range(2)] == ["One", "two"]
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert "KeyboardInterrupt" in errors
    service = ChatService(SessionStore(path), None)
    session = service.find_session("a").session_id
    answer = service.transcript(session)[-1]
    assert (answer.text, answer.finish_reason) == ("One two ", "stopped")
    assert answer.result_json is not None
    journal = service.session_journal(session)
    assert journal is not None
    assert len(journal.ids) == answer.num_tokens
    service.close()


def test_processes_that_start_together_share_one_database(tmp_path: Path) -> None:
    path = tmp_path / "data" / DATABASE_NAME
    names = ["one", "two", "three"]
    processes = [start(TALKER, str(path), "0", name) for name in names]
    for process in processes:
        assert process.stdout is not None
        lines = [process.stdout.readline().strip() for _ in range(5)]
        assert lines[-1] == "answered 1"
    for process in processes:
        kill(process)
    service = ChatService(SessionStore(path), None)
    assert service.verify() == []
    assert sorted(one.name for one in service.list_sessions()) == sorted(names)
    service.close()


def test_processes_in_one_session_lose_no_words(tmp_path: Path) -> None:
    path = tmp_path / "data" / DATABASE_NAME
    store = SessionStore(path)
    store.create("shared")
    store.close()
    first, second = (start(TALKER, str(path), base, "shared") for base in ("0", "100000"))
    saved: set[int] = set()
    for process in (first, second):
        assert process.stdout is not None
        lines = [process.stdout.readline().split() for _ in range(1 + 2 * 20)]
        saved |= {int(line[1]) for line in lines if line[0] == "saved"}
    for process in (first, second):
        for line in kill(process):
            if line.startswith("saved "):
                saved.add(int(line.split()[1]))
    service = ChatService(SessionStore(path), None)
    assert service.verify() == []
    sessions = service.list_sessions()
    kept = {
        number_of(message.text)
        for session in sessions
        for message in service.transcript(session.session_id)
        if message.role == "user"
    }
    assert saved <= kept
    assert {"shared", "shared (other window)"} <= {one.name for one in sessions}
    service.close()
