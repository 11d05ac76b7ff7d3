"""The shell: exit codes, streams, and JSON, with a backend that needs no model."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from chatcache import cli, compose
from chatcache.backends.base import CacheEvent, ModelInfo
from chatcache.chat.service import ChatService
from chatcache.chat.tasks import TurnTask
from chatcache.config import DATABASE_NAME
from chatcache.errors import ModelLoadError
from tests.fakes import FakeBackend, fake_model_info

Run = Callable[..., tuple[int, str, str]]


class StandardInput(io.TextIOWrapper):
    """Bytes that are piped in."""

    def __init__(self, content: bytes = b"") -> None:
        super().__init__(io.BytesIO(content), encoding="utf-8")


@pytest.fixture
def backends(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[FakeBackend]]:
    """The backends that commands open, in order; put one there to have it used next."""
    prepared: list[FakeBackend] = []
    opened: list[FakeBackend] = []

    def open_backend(settings: Any, **options: Any) -> FakeBackend:
        backend = prepared.pop(0) if prepared else FakeBackend(model=settings.config.model.default)
        if opened:  # what an engine wrote, the next one finds on disk
            backend.disk_journals += opened[-1].disk_journals + opened[-1].ram_journals
        opened.append(backend)
        return backend

    monkeypatch.setattr(compose, "open_backend", open_backend)
    yield prepared
    assert all(backend.is_closed for backend in opened)


@pytest.fixture
def run(
    backends: list[FakeBackend],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Run:
    """Run a command in this process; returns exit code, stdout, stderr."""

    def run_command(*words: str, piped: bytes = b"") -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "stdin", StandardInput(piped))
        code = cli.main(words)
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run_command


def run_json(run: Run, *words: str) -> dict[str, Any]:
    code, out, err = run(*words, "--json")
    assert (code, err) == (0, "")
    assert out.count("\n") == 1
    parsed: dict[str, Any] = json.loads(out)
    return parsed


def run_process(*words: str, **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "chatcache", *words], capture_output=True, text=True, **options
    )


# Asking


def test_an_answer_is_data_and_nothing_else_is(run: Run) -> None:
    assert run("ask", "hello") == (0, "You said: hello\n", "")


def test_ask_json_is_the_object_of_the_interface(run: Run) -> None:
    first = run_json(run, "ask", "hello", "--session", "a")
    assert list(first) == [
        "session_id",
        "session",
        "turn",
        "node_id",
        "model",
        "model_approximate",
        "backend",
        "text",
        "reasoning",
        "finish_reason",
        "usage",
        "timings",
        "cache",
        "engine",
    ]
    second = run_json(run, "ask", "again", "--session", "a")
    assert (second["session_id"], second["session"], second["turn"]) == (
        first["session_id"],
        "a",
        2,
    )
    details = second["usage"]["prompt_tokens_details"]
    assert details["cached_disk_tokens"] == first["usage"]["total_tokens"]
    assert details["cached_tokens"] == details["cached_ram_tokens"] + details["cached_disk_tokens"]
    assert second["cache"]["outcome"] == "hit"
    assert second["cache"]["reason"] == "new_user_turn"


def test_without_a_session_the_last_one_goes_on(run: Run) -> None:
    run("ask", "one", "--session", "a")
    run("ask", "two", "--session", "b")
    assert run_json(run, "ask", "three")["session"] == "b"
    assert run_json(run, "ask", "four", "--new")["turn"] == 1


def test_a_session_is_found_by_id_and_an_unknown_id_is_not_made(run: Run) -> None:
    session_id = run_json(run, "ask", "one", "--session", "a")["session_id"]
    assert run_json(run, "ask", "two", "--session", session_id[:7])["turn"] == 2
    code, out, err = run("ask", "three", "--session", "s_0123")
    assert (code, out) == (3, "")
    assert "There is no session 's_0123'" in err


def test_prompt_files_and_standard_input_are_put_together(run: Run, tmp_path: Path) -> None:
    odd = tmp_path / "odd \x1b[31m\nname.txt"
    odd.write_text("has ```` fences\n")
    code, out, _ = run("ask", "Compare.", "--file", str(odd), piped=b"from a pipe\n")
    assert code == 0
    assert out.startswith("You said: File odd [31m name.txt:\n`````\nhas ```` fences\n`````")
    assert out.endswith("\n\nCompare.\n\nfrom a pipe\n\n"[:-1])
    assert "\x1b" not in out


def test_a_dash_reads_standard_input(run: Run) -> None:
    assert run("ask", "-", piped="grüße".encode())[1] == "You said: grüße\n"


def test_bytes_that_are_no_text_are_replaced_and_told(run: Run) -> None:
    code, out, err = run("ask", "-", piped=b"\xef\xbb\xbfa\xff\xfeb")
    assert (code, out) == (0, "You said: a\ufffd\ufffdb\n")
    assert err == "chatcache: Standard input is not UTF-8: 2 characters replaced.\n"
    assert run("ask", "-", "--quiet", piped=b"\xff")[2] == ""


def test_a_prompt_of_two_megabytes_arrives(run: Run, backends: list[FakeBackend]) -> None:
    backend = FakeBackend(answers=["read"], prefill_chunk=1 << 20)
    backends.append(backend)
    assert run("ask", "-", piped=b"word " * 400_000)[:2] == (0, "read\n")
    assert len(backend.requests[0].messages[-1].text) == 2_000_000


@pytest.mark.parametrize("prompt", [["ask"], ["ask", ""], ["ask", " \n"], ["ask", "-"]])
def test_an_empty_prompt_is_wrong_use(run: Run, prompt: list[str]) -> None:
    code, out, err = run(*prompt, "--json")
    assert (code, out) == (2, "")
    assert err.startswith("chatcache: The prompt is empty.")


def test_a_file_that_is_not_there(run: Run, tmp_path: Path) -> None:
    code, _, err = run("ask", "x", "--file", str(tmp_path / "no"))
    assert (code, "cannot be read: No such file" in err) == (3, True)
    code, _, err = run("ask", "x", "--file", str(tmp_path))
    assert (code, "is a directory" in err) == (2, True)


def test_a_system_prompt_from_text_and_file(
    run: Run, backends: list[FakeBackend], tmp_path: Path
) -> None:
    (tmp_path / "system.txt").write_text("Be brief.\n")
    first, second, third = FakeBackend(), FakeBackend(), FakeBackend()
    backends += [first, second, third]
    run("ask", "one", "--session", "a", "--system", f"@{tmp_path / 'system.txt'}")
    run("ask", "two", "--session", "a", "--system", "Be brief.")
    run("ask", "three", "--session", "a", "--system", "Be long.")
    systems = [backend.requests[0].messages[0].text for backend in (first, second, third)]
    assert systems == ["Be brief.", "Be brief.", "Be long."]
    assert second.requests[0].previous is None or second.requests[0].previous.cause is None
    assert third.requests[0].previous is not None
    assert third.requests[0].previous.cause == "system_prompt_changed"


def test_options_reach_the_backend(run: Run, backends: list[FakeBackend]) -> None:
    backend = FakeBackend()
    backends.append(backend)
    options = "--temperature 0 --top-p 0.5 --top-k 3 --min-p 0.1 --repetition-penalty 1.5 --seed 7"
    run("ask", "x", *options.split(), "--max-new-tokens", "4", "--no-think", "--no-cache")
    request = backend.requests[0]
    sampling = request.sampling
    assert (sampling.temperature, sampling.top_p, sampling.top_k) == (0.0, 0.5, 3)
    assert (sampling.min_p, sampling.repetition_penalty, sampling.seed) == (0.1, 1.5, 7)
    assert (sampling.max_new_tokens, request.think, request.use_cache) == (4, False, False)


def test_settings_are_used_where_no_option_is_given(
    run: Run, backends: list[FakeBackend], home: Path
) -> None:
    (home / "config.toml").write_text("[sampling]\nseed = 1\ntemperature = 0.5\nthink = true\n")
    backend = FakeBackend()
    backends.append(backend)
    run("ask", "x", "--seed", "2")
    request = backend.requests[0]
    assert (request.sampling.seed, request.sampling.temperature, request.think) == (2, 0.5, True)


def test_a_turn_that_is_not_saved_leaves_nothing(run: Run) -> None:
    answered = run_json(run, "ask", "secret", "--no-save", "--system", "s")
    assert (answered["node_id"], answered["text"]) == (None, "You said: secret")
    assert run_json(run, "sessions", "list") == {"sessions": []}
    run("ask", "kept", "--session", "a", "--system", "one")
    assert run("ask", "x", "--session", "a", "--no-save", "--system", "two")[0] == 2
    assert run("ask", "x", "--session", "a", "--no-save")[0] == 0
    assert run_json(run, "sessions", "show", "a")["turns"] == 1


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (["ask", "x", "--sesion", "a"], "'--session'"),
        (["ask", "x", "--temp", "1"], "'--temperature'"),
        (["ask", "x", "y"], "quotes"),
        (["ask", "x", "--top-p", "2"], "at most 1"),
        (["ask", "x", "--seed", "one"], "whole number"),
        (["ask", "x", "--seed", str(1 << 64)], "at most"),
        (["ask", "x", "--device", "gpu"], "'cpu'"),
        (["ask", "x", "--new", "--session", "a"], "different things"),
        (["sessions", "lst"], "'list'"),
        (["sessions"], "list, show"),
        (["sesions", "list"], "'sessions'"),
        (["sesions"], "'sessions'"),
        (["fork"], "SESSION"),
        (["config", "set", "ui.them", "x"], "'theme'"),
    ],
)
def test_wrong_use_names_what_is_nearest(run: Run, words: list[str], hint: str) -> None:
    code, out, err = run(*words)
    assert (code, out) == (2, "")
    assert err.startswith("chatcache: ")
    assert hint in err
    assert err.count("\n") == 1


def test_options_may_stand_before_the_command(run: Run, tmp_path: Path) -> None:
    elsewhere = str(tmp_path / "elsewhere")
    code, out, _ = run("--data-dir", elsewhere, "paths", "--json")
    assert (code, json.loads(out)["data_dir"]) == (0, elsewhere)


# What can go wrong


def test_a_model_that_cannot_be_loaded(run: Run, backends: list[FakeBackend]) -> None:
    error = ModelLoadError("/x/config.json is missing.", "Download it again.")
    backends.append(FakeBackend(load_error=error))
    code, out, err = run("ask", "hello", "--session", "a", "--json")
    assert (code, out) == (4, "")
    assert err == "chatcache: /x/config.json is missing. Download it again.\n"
    messages = run_json(run, "sessions", "show", "a")["messages"]
    assert [message["text"] for message in messages] == ["hello"]


def test_a_wrong_model_is_refused_before_anything_is_kept(run: Run, tmp_path: Path) -> None:
    code, out, err = run("ask", "hello", "--model", str(tmp_path / "no"))
    assert (code, out) == (4, "")
    assert str(tmp_path / "no") in err
    (tmp_path / "config.json").write_text("{}")
    assert run("ask", "hello", "--model", str(tmp_path))[0] == 4
    assert run("ask", "hello", "--model", "biultin")[2].endswith("Did you mean 'builtin'?\n")
    assert run_json(run, "sessions", "list") == {"sessions": []}


def test_a_failure_in_the_middle_keeps_what_was_written(
    run: Run, backends: list[FakeBackend]
) -> None:
    backends.append(FakeBackend(answers=["one two three"], fail_at="delta:1"))
    code, out, err = run("ask", "count", "--session", "a")
    assert (code, out) == (4, "one \n")
    assert err == "chatcache: The fake model failed. Try again.\n"
    messages = run_json(run, "sessions", "show", "a")["messages"]
    assert [message["text"] for message in messages] == ["count", "one "]


def test_cache_trouble_is_told_and_the_turn_goes_on(run: Run, backends: list[FakeBackend]) -> None:
    backend = FakeBackend()
    gate = backend.gate("answer")
    backends.append(backend)

    def trouble() -> None:
        gate.arrived.wait(5)
        backend.emit(CacheEvent(0.0, "warning", "The disk is full."))
        gate.open()

    thread = threading.Thread(target=trouble)
    thread.start()
    assert run("ask", "x") == (0, "You said: x\n", "chatcache: The disk is full.\n")
    thread.join()


def test_a_bug_is_one_line_and_the_path_of_the_log(
    run: Run, monkeypatch: pytest.MonkeyPatch, home: Path
) -> None:
    def fail(settings: Any, **options: Any) -> None:
        raise ZeroDivisionError("never\nmind")

    monkeypatch.setattr(compose, "open_store", fail)
    code, out, err = run("sessions", "list", "--json")
    log = home / "data" / "logs" / "errors.log"
    assert (code, out) == (1, "")
    assert (
        err
        == f"chatcache: Unexpected ZeroDivisionError: never mind. Please report it with {log}.\n"
    )
    assert "Traceback (most recent call last)" in log.read_text()


def test_a_data_directory_that_cannot_be_used(run: Run, home: Path) -> None:
    (home / "data").write_text("in the way")
    code, out, err = run("ask", "hello")
    assert (code, out) == (4, "")
    assert str(home / "data") in err


def test_the_chat_needs_a_terminal(run: Run) -> None:
    code, _, err = run()
    assert (code, "`chatcache ask`" in err) == (2, True)
    code, _, err = run("no-such-session")
    assert (code, "There is no session 'no-such-session'" in err) == (3, True)


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)]
)
def test_an_interruption_keeps_the_partial_answer(
    run: Run, backends: list[FakeBackend], number: signal.Signals, code: int
) -> None:
    backend = FakeBackend(answers=["one two three"])
    gate = backend.gate("delta:1")
    backends.append(backend)
    before = signal.signal(number, signal.SIG_DFL)  # also where the tests are run with `nohup`

    def interrupt() -> None:
        gate.arrived.wait(5)
        os.kill(os.getpid(), number)

    thread = threading.Thread(target=interrupt)
    thread.start()
    assert run("ask", "count", "--session", "a") == (code, "one \n", "")
    thread.join()
    signal.signal(number, before)
    last = run_json(run, "sessions", "show", "a")["messages"][-1]
    assert (last["text"], last["finish_reason"]) == ("one ", "stopped")


def test_an_interruption_before_the_turn_has_begun_stops_it(
    run: Run, backends: list[FakeBackend], monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = FakeBackend(answers=["one two three"])
    backend.gate("delta:1")
    backends.append(backend)
    begin = ChatService._task

    def begin_late(service: ChatService, *given: Any) -> TurnTask:
        os.kill(os.getpid(), signal.SIGINT)
        return begin(service, *given)

    monkeypatch.setattr(ChatService, "_task", begin_late)
    code, out, _ = run("ask", "count", "--session", "a")
    assert (code, "three" in out) == (130, False)


def test_an_interruption_while_the_model_loads(run: Run, backends: list[FakeBackend]) -> None:
    backend = FakeBackend()
    backend.gate("load")
    backends.append(backend)
    is_asked = threading.Event()
    wait_ready = backend.wait_ready

    def wait(timeout: float | None = None) -> ModelInfo:
        is_asked.set()
        return wait_ready(timeout)

    backend.wait_ready = wait  # type: ignore[method-assign]

    def interrupt() -> None:
        is_asked.wait(5)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    assert run("ask", "hello", "--session", "a")[0] == 130
    thread.join()
    messages = run_json(run, "sessions", "show", "a")["messages"]
    assert [message["text"] for message in messages] == ["hello"]


class ClosedPipe(io.StringIO):
    """A stdout whose reader has left."""

    def write(self, text: str) -> int:
        raise BrokenPipeError

    def fileno(self) -> int:
        raise OSError


def test_a_reader_that_leaves_stops_the_answer(
    run: Run, backends: list[FakeBackend], monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = FakeBackend(answers=["one two three"])
    backends.append(backend)
    monkeypatch.setattr(sys, "stdin", StandardInput())
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", ClosedPipe())
        assert cli.main(["ask", "count", "--session", "a"]) == 130
    assert backend.num_stops >= 1
    assert run_json(run, "sessions", "show", "a")["turns"] == 1


def test_a_listing_into_a_closed_pipe_is_no_failure() -> None:
    read_end, write_end = os.pipe()
    os.close(read_end)
    with os.fdopen(write_end, "w") as closed:
        done = subprocess.run(
            [sys.executable, "-m", "chatcache", "paths"],
            stdout=closed,
            stderr=subprocess.PIPE,
            text=True,
        )
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="the system has no /dev/full")
def test_a_full_disk_behind_stdout_is_told() -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "chatcache", "paths"],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
        )
    assert done.returncode == 4
    assert done.stderr.startswith("chatcache: stdout cannot be written: ")
    assert done.stderr.count("\n") == 1


def test_a_terminal_without_utf8_shows_what_it_can(run: Run) -> None:
    run("ask", "grüße", "--session", "Ä")
    environment = {**os.environ, "PYTHONUTF8": "0", "PYTHONIOENCODING": "ascii"}
    done = run_process("sessions", "list", env=environment)
    assert (done.returncode, done.stderr) == (0, "")
    done = run_process("sessions", "list", "--json", env=environment)
    assert json.loads(done.stdout)["sessions"][0]["session"] == "Ä"


# Forks, sessions, cache, paths


def test_fork_writes_no_kv_and_leaves_the_source_alone(run: Run) -> None:
    first = run_json(run, "ask", "one", "--session", "a")
    run("ask", "two", "--session", "a")
    before = run_json(run, "sessions", "show", "a")
    forked = run_json(run, "fork", "a", "--at", "1", "--name", "b")
    assert list(forked) == [
        "session_id",
        "session",
        "forked_from",
        "at_turn",
        "shared_tokens",
        "kv_bytes_written",
        "elapsed_ms",
        "cost",
    ]
    assert (forked["session"], forked["at_turn"]) == ("b", 1)
    assert forked["forked_from"] == first["session_id"]
    assert forked["shared_tokens"] == first["usage"]["total_tokens"]
    assert forked["kv_bytes_written"] == 0
    assert run_json(run, "sessions", "show", "a") == before
    answered = run_json(run, "ask", "other", "--session", "b")
    details = answered["usage"]["prompt_tokens_details"]
    assert answered["turn"] == 2
    assert details["cached_tokens"] >= forked["shared_tokens"]


def test_fork_with_a_prompt_answers_it(run: Run) -> None:
    run("ask", "one", "--session", "a")
    answered = run_json(run, "fork", "a", "--name", "b", "--prompt", "two")
    assert (answered["text"], answered["session"]) == ("You said: two", "b")
    assert answered["fork"]["shared_tokens"] > 0
    assert run("fork", "a", "--prompt", " ")[0] == 2


def test_fork_of_what_is_not_there(run: Run) -> None:
    run("ask", "one", "--session", "research")
    code, _, err = run("fork", "reserch")
    assert (code, "'research'" in err) == (3, True)
    code, _, err = run("fork", "research", "--at", "7")
    assert (code, "0 to 1" in err) == (3, True)
    assert run("fork", "research", "--at", "-1")[0] == 2


def test_sessions_are_listed_shown_renamed_and_deleted(run: Run) -> None:
    answered = run_json(run, "ask", "hello \x1b[31mred", "--session", "a", "--system", "Be brief.")
    (entry,) = run_json(run, "sessions", "list")["sessions"]
    assert list(entry) == [
        "session_id",
        "session",
        "turns",
        "tokens",
        "model",
        "updated_at",
        "forked_from",
        "history_mode",
        "kv",
    ]
    assert set(entry["kv"]) == {"ram_tokens", "disk_tokens", "bytes_shared", "bytes_owned"}
    assert (entry["turns"], entry["tokens"]) == (1, answered["usage"]["total_tokens"])
    messages = run_json(run, "sessions", "show", "a")["messages"]
    assert [(one["turn"], one["role"]) for one in messages] == [
        (0, "system"),
        (1, "user"),
        (1, "assistant"),
    ]
    assert "\x1b" not in run("sessions", "show", "a")[1]
    assert run("sessions", "rename", "a", "b")[:2] == (0, "b\n")
    assert run("sessions", "show", "a")[0] == 3
    assert "b" in run("sessions", "list")[1]
    assert run("sessions", "delete", "b")[0] == 0
    assert run_json(run, "sessions", "list") == {"sessions": []}


def test_a_message_that_does_not_fit_says_how_to_go_on_without_it(
    run: Run, backends: list[FakeBackend]
) -> None:
    run("ask", "hello", "--session", "my talk")
    backends.append(FakeBackend(info=fake_model_info(max_context_tokens=200)))
    code, out, err = run("ask", "word " * 100, "--session", "my talk", "--json")
    assert (code, out) == (4, "")
    assert "`chatcache fork 'my talk' --at 1`" in err
    run("fork", "my talk", "--at", "1", "--name", "rest")
    assert run("ask", "again", "--session", "rest")[0] == 0


def test_a_history_that_fills_the_context_is_left_where_there_is_room(
    run: Run, backends: list[FakeBackend]
) -> None:
    run("ask", "hello", "--session", "a")
    backends.append(FakeBackend(answers=["on and " * 60]))
    run("ask", "go on", "--session", "a")
    backends.append(FakeBackend(info=fake_model_info(max_context_tokens=200)))
    code, _, err = run("ask", "again", "--session", "a")
    assert (code, "`chatcache fork a --at 1`" in err) == (4, True)


def test_a_session_survives_export_and_import(run: Run, tmp_path: Path) -> None:
    run("ask", "hello", "--session", "a")
    before = run_json(run, "sessions", "show", "a")["messages"]
    exported = tmp_path / "a.json"
    exported.write_text(run("sessions", "export", "a")[1])
    run("sessions", "delete", "a")
    name = run_json(run, "sessions", "import", str(exported))["session"]
    assert run_json(run, "sessions", "show", name)["messages"] == before
    assert run("sessions", "export", name, "--markdown")[1].startswith(f"# {name}\n")
    exported.write_text("{")
    assert run("sessions", "import", str(exported))[0] == 2
    exported.write_text("[" * 100_000)
    assert run("sessions", "import", str(exported))[0] == 2
    assert run("sessions", "import", str(tmp_path / "no"))[0] == 3


def test_all_sessions_survive_export_and_import(run: Run, tmp_path: Path) -> None:
    for name in ("a", "b"):
        run("ask", "one", "--session", name)
    run("fork", "a", "--name", "c", "--prompt", "two")
    exported = tmp_path / "all.json"
    code, out, err = run("sessions", "export", "--all")
    assert (code, err) == (0, "")
    exported.write_text(out)
    assert {each["session"] for each in json.loads(out)["sessions"]} == {"a", "b", "c"}
    elsewhere = ("--data-dir", str(tmp_path / "elsewhere"))
    assert len(run_json(run, "sessions", "import", str(exported), *elsewhere)["imported"]) == 3
    code, out, err = run("sessions", "import", str(exported), *elsewhere)
    assert (code, out) == (0, "")
    assert "3 sessions were here already" in err
    listed = run_json(run, "sessions", "list", *elsewhere)["sessions"]
    before = run_json(run, "sessions", "list")["sessions"]
    assert [each["session"] for each in listed] == [each["session"] for each in before]
    code, out, err = run("sessions", "export", "--all", "--markdown")
    assert (code, out.count("\n# ") + out.startswith("# ")) == (0, 3)
    assert run("sessions", "export")[0] == 2
    exported.write_text('{"format": "chatcache-sessions", "version": 2}')
    assert run("sessions", "import", str(exported))[0] == 2


def test_what_an_export_leaves_out_is_said(run: Run, home: Path) -> None:
    run("ask", "one", "--session", "a")
    run("ask", "two", "--session", "a")
    connection = sqlite3.connect(home / "data" / DATABASE_NAME)
    connection.execute("UPDATE sessions SET tip = (SELECT max(seq) FROM nodes WHERE turn = 1)")
    connection.commit()
    connection.close()
    code, out, err = run("sessions", "export", "a")
    assert (code, "2 messages on other branches are not in it" in err) == (0, True)
    assert "beside" not in json.loads(out)
    code, out, err = run("sessions", "export", "a", "--all")
    assert (code, err) == (0, "")
    assert len(json.loads(out)["beside"]) == 2
    assert "2 messages" in run("sessions", "export", "a", "--markdown")[2]


def test_a_damaged_session_keeps_no_other_back(run: Run, home: Path) -> None:
    for name in ("a", "b"):
        run("ask", f"{name} asks", "--session", name)
    connection = sqlite3.connect(home / "data" / DATABASE_NAME)
    connection.execute("UPDATE sessions SET tip = 4711 WHERE name = 'a'")
    connection.commit()
    connection.close()
    code, out, err = run("sessions", "export", "--all")
    assert code == 5
    assert "a is left out" in err
    assert [each["session"] for each in json.loads(out)["sessions"]] == ["b"]


@pytest.mark.parametrize(
    "name",
    [
        "conversations (Sam's conflicted copy 2026-01-02).sqlite3",
        "conversations.sync-conflict-20260102-101112-ABCDEFG.sqlite3",
        "conversations-LAPTOP.sqlite3",
        "conversations (1).sqlite3",
        "Konversationen – Konflikt.sqlite3",
        "conversations.sqlite3.bak",
    ],
)
def test_the_doctor_names_conflicted_copies(run: Run, home: Path, name: str) -> None:
    run("ask", "one", "--session", "a")
    place = home / "data"
    assert "conflicted" not in run("doctor")[1]
    shutil.copyfile(place / DATABASE_NAME, place / name)
    (place / "other.sqlite3").write_bytes(b"SQLite format 3\0" + bytes(100))
    code, out, _ = run("doctor")
    assert code == 0
    assert name in out
    assert "other.sqlite3" not in out
    assert "export --all --data-dir" in out


def test_search_finds_words(run: Run) -> None:
    run("ask", "the quick fox", "--session", "a")
    hits = run_json(run, "sessions", "search", "quick")["hits"]
    assert {hit["session"] for hit in hits} == {"a"}
    assert run_json(run, "sessions", "search", "absent")["hits"] == []


def test_the_tree_shows_where_sessions_part(run: Run) -> None:
    run("ask", "one", "--session", "a")
    run("fork", "a", "--name", "b")
    run("ask", "two", "--session", "a")
    run("ask", "other", "--session", "b")
    run("fork", "a", "--at", "1", "--name", "c")
    assert run("sessions", "tree", "b")[1] == (
        "turn 1  one  [c]\n├─ turn 2  two  [a]\n└─ turn 2  other  [b *]\n"
    )
    (root,) = run_json(run, "sessions", "tree", "b")["tree"]
    assert [child["sessions"][0]["session"] for child in root["children"]] == ["a", "b"]


def test_cache_commands_on_an_empty_cache(run: Run) -> None:
    stats = run_json(run, "cache", "stats")
    names = {"tiers", "namespaces", "quarantine", "quantized", "engines", "hits"}
    assert set(stats) == names | {"saved_ms_total", "bytes_written_today"}
    assert set(stats["tiers"]["disk"]) == {"bytes", "budget_bytes", "segments"}
    verified = run_json(run, "cache", "verify")
    assert (verified["checked"], verified["damaged"], verified["fixed"]) == (0, [], 0)
    assert run_json(run, "cache", "clear") == {"removed": 0, "bytes": 0}
    assert run("cache", "show", "x")[0] == 3


def test_cache_stats_show_the_memory_of_a_gpu_where_there_is_one(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert set(run_json(run, "cache", "stats")["tiers"]) == {"ram", "disk"}
    monkeypatch.setattr("chatcache.commands.cache.has_nvidia_gpu", lambda: True)
    tier = run_json(run, "cache", "stats")["tiers"]["vram"]
    assert (tier["budget"], tier["budget_bytes"], tier["bytes"]) == ("50%", None, 0)
    line = "on the GPU     up to 50 % of what is free while a model is loaded"
    assert line in run("cache", "stats")[1]
    run("config", "set", "cache.vram_budget", "8 GB")
    assert run_json(run, "cache", "stats")["tiers"]["vram"]["budget_bytes"] == 8_000_000_000
    run("config", "set", "cache.vram_budget", "0")
    assert set(run_json(run, "cache", "stats")["tiers"]) == {"ram", "disk"}


def test_cache_stats_add_up_what_answers_reused(run: Run) -> None:
    run("ask", "one", "--session", "a")
    second = run_json(run, "ask", "two", "--session", "a")
    stats = run_json(run, "cache", "stats")
    assert (stats["hits"]["miss"], stats["hits"]["hit"]) == (1, 1)
    cached = second["usage"]["prompt_tokens_details"]["cached_tokens"]
    assert stats["hits"]["cached_tokens"] == cached
    assert stats["saved_ms_total"] == pytest.approx(second["cache"]["saved_ms"])
    assert stats["bytes_written_today"] >= second["cache"]["bytes_written"]


def test_paths_make_nothing_and_survive_a_broken_config(run: Run, home: Path) -> None:
    (home / "config.toml").write_text("broken = [")
    before = sorted(home.iterdir())
    assert run_json(run, "paths")["cache_dir"] == str(home / "cache")
    assert sorted(home.iterdir()) == before
    assert run("sessions", "list")[0] == 2


def test_config_is_shown_with_origins_and_set(run: Run, home: Path) -> None:
    assert run("config", "set", "ui.panel", "off")[:2] == (0, 'ui.panel = "off"\n')
    settings = run_json(run, "config", "show")["settings"]
    assert settings["ui.panel"] == {"value": "off", "origin": str(home / "config.toml")}
    assert settings["model.default"]["origin"] == "default"


def test_help_lists_every_command(run: Run) -> None:
    code, out, _ = run("--help")
    assert code == 0
    for name in ("ask", "fork", "sessions", "cache", "models", "doctor", "paths", "config"):
        assert f"\n  {name} " in out
        assert run(name, "--help")[0] == 0
    assert run("--version")[1].startswith("chatcache ")


@pytest.mark.slow
def test_the_doctor_finds_damage_and_says_what_to_do(
    run: Run, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run("ask", "hello", "--session", "a")
    report = run_json(run, "doctor")
    subjects = {finding["subject"] for finding in report["findings"]}
    assert subjects >= {"torch", "tokenizers", "numba", "msgspec", "gguf", "textual"}
    assert report["ok"]
    assert all(finding["detail"] for finding in report["findings"])
    monkeypatch.setattr(
        "chatcache.doctor.machine.DEVICE_PROBE", "print('cpu')"
    )  # torch takes seconds
    (home / "config.toml").write_text("[ui]\nthem = 1\n")
    code, out, _ = run("doctor")
    assert code == 4
    assert "PROBLEM  settings:" in out
    monkeypatch.setattr(
        "chatcache.chat.service.ChatService.verify", lambda self: ["Message b2:1 is damaged."]
    )
    code, out, _ = run("doctor", "--json")
    assert code == 5
    assert "Message b2:1 is damaged." in out
