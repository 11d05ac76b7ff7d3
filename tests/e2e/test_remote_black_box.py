"""Servers by command: real processes on one side, a server that speaks HTTP on the other."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from chatcache import compose
from chatcache.backends.switching import SwitchingBackend
from chatcache.chat.views import AnswerSaved, ChatEvent
from chatcache.config import load_settings
from tests.fake_server import FakeServer, Raw, Status, Stream

KEY = "sk-secret-0123456789"


def run(*arguments: str, code: int = 0) -> str:
    command = [sys.executable, "-m", "chatcache", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    assert KEY not in done.stdout + done.stderr
    return done.stdout if code == 0 else done.stderr


def run_json(*arguments: str) -> dict[str, Any]:
    answer: dict[str, Any] = json.loads(run(*arguments, "--json"))
    return answer


@pytest.fixture
def server(home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeServer]:
    """A server, and a profile `prof` of it with a key and prices."""
    monkeypatch.setenv("PROF_KEY", KEY)
    with FakeServer(models=[{"id": "m", "max_model_len": 4096}, {"id": "org/n:7b"}]) as server:
        (home / "config.toml").write_text(
            f'[remote.prof]\nbase_url = "{server.base_url}"\napi_key_env = "PROF_KEY"\n'
            "prices = { input = 1.0, cached_input = 0.5, output = 2.0 }\n"
        )
        yield server


def test_turns_of_a_session_a_fork_and_what_is_shown_of_them(server: FakeServer) -> None:
    first = run_json("ask", "one", "--session", "a", "--model", "prof:m", "--system", "Be brief.")
    second = run_json("ask", "two", "--session", "a", "--model", "prof:org/n:7b")
    assert (first["model"], first["backend"]) == ("prof:m", "remote")
    assert second["model"] == "prof:org/n:7b"
    assert second["text"] == "You said: two"
    assert second["usage"] == {
        "prompt_tokens": 11,
        "completion_tokens": 3,
        "total_tokens": 14,
        "prompt_tokens_details": {
            "cached_tokens": 5,
            "cached_ram_tokens": None,
            "cached_disk_tokens": None,
        },
    }
    assert {name: second["cache"][name] for name in ("outcome", "reason", "diverged_at")} == {
        "outcome": "off",
        "reason": "remote",
        "diverged_at": 5,
    }
    assert second["cache"]["saved_ms"] is second["timings"]["prefill_ms"] is None
    assert second["cost"] == {"currency": "USD", "total": 14.5e-6, "saved": 2.5e-6}
    forked = run_json("fork", "a", "--at", "1", "--name", "b", "--prompt", "else",
                      "--model", "prof:m")  # fmt: skip
    assert forked["text"] == "You said: else"
    assert forked["fork"]["cost"] is None
    texts = [one["content"] for one in server.chats[-1].body["messages"]]
    assert texts == ["Be brief.", "one", "You said: one", "else"]
    assert {one.headers["Authorization"] for one in server.asked} == {f"Bearer {KEY}"}
    shown = run_json("sessions", "show", "a")
    assert [one["model"] for one in shown["messages"] if one["role"] == "assistant"] == [
        "prof:m",
        "prof:org/n:7b",
    ]
    assert shown["kv"] == {"ram_tokens": 0, "disk_tokens": 0, "bytes_shared": 0, "bytes_owned": 0}
    hits = run_json("cache", "stats")["hits"]
    assert set(hits.values()) == {0}  # what a server reused is not ours
    stored = b"".join(one.read_bytes() for one in Path(os.environ["CHATCACHE_DATA_DIR"]).iterdir()
                      if one.is_file())  # fmt: skip
    assert KEY.encode() not in stored


def test_a_chat_goes_from_here_to_a_server_and_back(server: FakeServer) -> None:
    """What the local model had read is still there, and is reused in front of the new turns."""
    settings = load_settings()
    with compose.opened_service(settings, can_switch=True) as service:
        backend = service.backend
        assert isinstance(backend, SwitchingBackend)
        session = service.create_session("a").session_id
        first = last_of(service.send(session, "My name is Theo."))
        backend.switch("prof:m")
        between = last_of(service.send(session, "And I have a dog."))
        texts = [one["content"] for one in server.chats[-1].body["messages"]]
        assert texts == ["My name is Theo.", first.result.text, "And I have a dog."]
        backend.switch("builtin")
        back = last_of(service.send(session, "What is my name?"))
    assert [one.backend for one in (first, between, back)] == ["local", "remote", "local"]
    read = first.result.usage
    assert back.result.usage.cached_tokens == read.prompt_tokens + read.completion_tokens
    assert (back.result.cache.outcome, back.result.cache.reason) == ("hit", "new_user_turn")


def last_of(events: Iterator[ChatEvent]) -> AnswerSaved:
    last = list(events)[-1]
    assert isinstance(last, AnswerSaved)
    return last


def test_a_server_that_tells_nothing_has_null_for_everything(server: FakeServer) -> None:
    server.style = "bare"
    answer = run_json("ask", "one", "--new", "--model", "prof:m")
    assert set(answer["usage"].pop("prompt_tokens_details").values()) == {None}
    assert set(answer["usage"].values()) == {None}
    assert answer["cache"]["diverged_at"] is None
    assert answer["cost"] == {"currency": "USD", "total": None, "saved": None}


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (["--model", "porf:m"], 3, "Did you mean 'prof'?"),
        (["--model", "http://127.0.0.1:1/v1"], 2, "is the address of a server"),
        (["--model", "prof:"], 2, "It has m, org/n:7b. Say prof:NAME"),
        (["--model", "prof:m", "--adapter", "pirate"], 2, "An adapter cannot be put"),
        (["--model", "prof:m", "--config", "/nowhere/at/all"], 3, "no settings file"),
    ],
)
def test_names_that_are_wrong(server: FakeServer, words: list[str], code: int, says: str) -> None:
    assert says in run("ask", "hello", *words, code=code)


def test_a_server_that_refuses_is_said_and_the_question_is_kept(server: FakeServer) -> None:
    server.plan(Status(404, {"error": {"message": "model 'mm' not found"}}))
    assert "has no model 'mm'" in run("ask", "one", "--session", "a", "--model", "prof:mm", code=3)
    answer = run_json("ask", "two", "--session", "a", "--model", "prof:m")
    assert server.chats[-1].body["messages"] == [{"role": "user", "content": "one\n\ntwo"}]
    assert answer["turn"] == 2


def test_a_server_elsewhere_is_not_asked_offline(server: FakeServer, home: Path) -> None:
    with (home / "config.toml").open("a") as file:
        file.write('[remote.far]\nbase_url = "https://api.example.invalid/v1"\n')
    told = run("ask", "hello", "--model", "far:m", "--offline", code=4)
    assert "the network is switched off" in told
    assert run_json("ask", "hello", "--model", "prof:m", "--offline")["backend"] == "remote"


def test_an_interrupted_answer_is_kept(server: FakeServer) -> None:
    server.plan(Stream("one two three four", gate=threading.Event(), gate_at=2))
    command = [sys.executable, "-m", "chatcache", "ask", "go", "--session", "a", "--model"]
    with subprocess.Popen(
        [*command, "prof:m"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as p:
        assert p.stdout is not None
        assert p.stdout.read(8) == b"one two "
        p.send_signal(signal.SIGINT)
        assert p.wait(60) == 130
    shown = run_json("sessions", "show", "a")["messages"][-1]
    assert (shown["text"], shown["finish_reason"]) == ("one two ", "stopped")


def test_a_provider_that_wants_its_reasoning_back_is_asked_twice_once(server: FakeServer) -> None:
    """Each turn is a process of its own: what was learned is kept between them."""

    def judge(body: Mapping[str, Any]) -> Status | Stream | None:
        told = [said for said in body["messages"] if said["role"] == "assistant"]
        if all(said.get("reasoning_content") for said in told):
            return Stream("Yes.", reasoning="hm")
        message = "The `reasoning_content` in the thinking mode must be handed back."
        return Status(400, {"error": {"message": message}})

    server.judge = judge
    for number in range(3):
        answer = run_json("ask", f"turn {number}", "--session", "a", "--model", "prof:m")
        assert (answer["text"], answer["reasoning"]) == ("Yes.", "hm")
    assert len(server.chats) == 4


def test_thoughts_are_neither_shown_nor_sent_back(server: FakeServer) -> None:
    server.plan(Stream("hm, let me see\n</think>\n\nYes."), Stream("so\n</think>\n\nNo."))
    first = run_json("ask", "one", "--session", "a", "--model", "prof:m")
    assert (first["text"], first["reasoning"]) == ("Yes.", "hm, let me see")
    assert run("ask", "two", "--session", "a", "--model", "prof:m") == "No.\n"
    sent = [said["content"] for said in server.chats[-1].body["messages"]]
    assert sent == ["one", "Yes.", "two"]


def test_a_chat_that_is_cut_in_silence_is_said_once(server: FakeServer) -> None:
    told = []
    for number, num_tokens in enumerate((1160, 2321, 3482, 4096, 4096, 4096)):
        usage = {"prompt_tokens": num_tokens, "completion_tokens": 1}
        server.plan(Stream(["Yes.", {"choices": [], "usage": usage}], has_usage=False))
        words = ["ask", f"{number}: {'some words ' * 420}", "--session", "a", "--model", "prof:m"]
        done = subprocess.run(
            [sys.executable, "-m", "chatcache", *words], capture_output=True, text=True, timeout=120
        )
        assert (done.returncode, done.stdout) == (0, "Yes.\n")
        told.append("OLLAMA_CONTEXT_LENGTH" in done.stderr)
    assert sum(told) == 1


def test_the_environment_does_not_matter_on_this_machine(
    server: FakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ALL_PROXY", "socks5://127.0.0.1:9")
    monkeypatch.setenv("HTTP_PROXY", "nonsense://[")
    monkeypatch.setenv("SSL_CERT_FILE", "/no/such.pem")
    assert run("ask", "hi", "--new", "--model", "prof:m") == "You said: hi\n"


@pytest.mark.parametrize(
    ("environ", "says"),
    [
        ({"ALL_PROXY": "socks5://127.0.0.1:9"}, "The proxy of $ALL_PROXY (127.0.0.1:9)"),
        ({"ALL_PROXY": "socks4://127.0.0.1:9"}, "$ALL_PROXY names a proxy of the kind socks4://"),
        ({"SSL_CERT_FILE": "/no/such.pem"}, "$SSL_CERT_FILE names /no/such.pem"),
    ],
)
def test_the_environment_is_named_where_it_matters(
    server: FakeServer,
    home: Path,
    monkeypatch: pytest.MonkeyPatch,
    environ: dict[str, str],
    says: str,
) -> None:
    with (home / "config.toml").open("a") as file:
        file.write('[remote.far]\nbase_url = "https://api.example.invalid/v1"\n')
    for name, value in {**environ, "HF_HUB_OFFLINE": "0"}.items():
        monkeypatch.setenv(name, value)
    assert says in run("ask", "hi", "--new", "--model", "far:m", code=4)


@pytest.mark.parametrize(
    "body", [b"event: error\ndata: null\n\n", b"event: error\n\ndata: [DONE]\n\n"]
)
def test_a_stream_that_fails_is_no_bug_of_this_program(server: FakeServer, body: bytes) -> None:
    server.plan(Raw([b'data: {"choices": [{"delta": {"content": "Half"}}]}\n\n', body]))
    told = run("ask", "hi", "--session", "a", "--model", "prof:m", code=4)
    assert "broke the answer off with an error" in told
    shown = run_json("sessions", "show", "a")["messages"][-1]
    assert (shown["text"], shown["finish_reason"]) == ("Half", "stopped")
