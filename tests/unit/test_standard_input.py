"""Standard input of `ask`: what is piped is read; a pipe that nobody writes to holds nothing up.

With real pipes and real processes."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from chatcache.commands import standard_input
from chatcache.commands.prompt import build_prompt, read_bytes
from chatcache.errors import UsageError

PROGRAM = """
import pathlib, sys
from chatcache.commands import standard_input
from chatcache.commands.prompt import build_prompt

argument, reads, moment = eval(sys.argv[1])
standard_input.QUIET_SECONDS, standard_input.MOMENT_SECONDS = 0.1, moment
say = lambda text: print(text, file=sys.stderr)
pathlib.Path("ready").touch()
print(repr(build_prompt(argument, [], say, reads_stdin=reads)))
"""
SHORT, LONG = 0.3, 60
WHEN_READY = (
    "n=0; while [ ! -e ready ] && [ $n -lt 1000 ]; do sleep 0.05; n=$((n+1)); done; sleep 1;"
)


@pytest.fixture(autouse=True)
def _place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def ask(argument: str | None, stdin: int, reads: bool | None = None) -> tuple[str, str]:
    """The prompt, and what is said, by a process of its own with that standard input."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, repr((argument, reads, SHORT))],
        stdin=stdin,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    return eval(done.stdout), done.stderr


def shell(line: str, moment: float = SHORT) -> tuple[str, str]:
    """`{ask}` in the line asks "hi"."""
    if not Path("reader.py").exists():
        Path("reader.py").write_text(PROGRAM)
    reader = f"{sys.executable} reader.py \"('hi', None, {moment})\""
    done = subprocess.run(
        ["sh", "-c", line.format(ask=reader)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    return eval(done.stdout), done.stderr


def test_a_pipe_that_nobody_writes_to_holds_nothing_up() -> None:
    """As a program leaves it open that starts this one and has nothing to say."""
    reading, writing = os.pipe()
    prompt, told = ask("hi", reading)
    os.close(reading)
    os.close(writing)
    assert prompt == "hi"
    assert "nothing comes" in told
    assert "--no-stdin" in told
    assert "going on without" in told


def test_a_named_pipe_that_somebody_holds_open() -> None:
    line = "mkfifo p; sleep 60 >p & pid=$!; {ask} <p; kill $pid"
    prompt, told = shell(line)
    assert prompt == "hi"
    assert "nothing comes" in told


@pytest.mark.parametrize("how", ["cat text", "(sleep 0.05; cat text)"])
def test_a_piped_text_is_appended(how: str) -> None:
    Path("text").write_text("the text\n" * 20_000)
    prompt, _ = shell(f"{how} | {{ask}}")
    assert prompt == "hi\n\n" + "the text\n" * 20_000


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere nobody tells who writes to a pipe")
@pytest.mark.parametrize("first", ["", "echo early;"])
def test_a_program_of_the_pipeline_is_waited_for(first: str) -> None:
    """However slow it is: longer than the moment that others are given."""
    line = f"({first} {WHEN_READY} echo the text; sleep 1; echo its end) | {{ask}}"
    prompt, told = shell(line)
    begin = "early\n" if first else ""
    assert prompt == f"hi\n\n{begin}the text\nits end\n"
    assert "waiting for standard input" in told
    assert ("(--no-stdin" in told) is not bool(first)


def test_what_comes_within_the_moment_is_read_to_its_end() -> None:
    line = f"mkfifo p; ({WHEN_READY} echo one; sleep 1; echo two) >p & {{ask}} <p; wait"
    prompt, _ = shell(line, LONG)
    assert prompt == "hi\n\none\ntwo\n"


def test_an_empty_pipe_and_a_file(tmp_path: Path) -> None:
    reading, writing = os.pipe()
    os.close(writing)
    assert ask("hi", reading) == ("hi", "")
    os.close(reading)
    text = tmp_path / "text"
    text.write_text("a file")
    with text.open() as file:
        assert ask("hi", file.fileno()) == ("hi\n\na file", "")
    assert ask("hi", subprocess.DEVNULL) == ("hi", "")


def test_what_has_no_end_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("chatcache.commands.prompt.MAX_BYTES", 100_000)
    with Path("/dev/zero").open() as endless:
        monkeypatch.setattr("sys.stdin", endless)
        with pytest.raises(UsageError, match="Standard input has more than"):
            build_prompt(None, [], print, reads_stdin=True)
    with pytest.raises(UsageError, match="/dev/zero has more than"):
        build_prompt("hi", ["/dev/zero"], print, reads_stdin=False)
    assert read_bytes("/proc/self/status", print, 100_000)  # a file that seems to be empty


def test_a_pipe_that_does_not_block_is_read_to_its_end() -> None:
    """As programs leave it that share it with an event loop."""
    line = f"({WHEN_READY} echo the text; sleep 1; echo its end) | {{ask}}"
    program = PROGRAM.replace("\nargument", "\nimport os; os.set_blocking(0, False)\nargument")
    Path("reader.py").write_text(program)
    prompt, _ = shell(line)
    assert prompt == "hi\n\nthe text\nits end\n"


def test_standard_input_that_cannot_be_read_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(descriptor: int, num_bytes: int) -> bytes:
        raise ConnectionResetError(errno.ECONNRESET, os.strerror(errno.ECONNRESET))

    reading, writing = os.pipe()
    os.write(writing, b"x")
    with os.fdopen(reading) as stdin:
        monkeypatch.setattr(sys, "stdin", stdin)
        monkeypatch.setattr(os, "read", refuse)
        with pytest.raises(UsageError, match="cannot be read"):
            standard_input.read_to_end(print)
    os.close(writing)


def test_it_is_read_when_asked_for_and_not_when_not() -> None:
    reading, writing = os.pipe()
    assert ask("hi", reading, reads=False) == ("hi", "")
    os.write(writing, b"piped")
    assert ask("hi", reading, reads=False) == ("hi", "")
    os.close(writing)
    assert ask("-", reading) == ("piped", "")
    os.close(reading)


def test_without_a_prompt_it_is_waited_for() -> None:
    writer = subprocess.Popen(
        ["sh", "-c", f"{WHEN_READY} echo the prompt"],
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    assert writer.stdout is not None
    with writer:
        prompt, told = ask(None, writer.stdout.fileno())
    assert prompt == "the prompt\n"
    assert "waiting for standard input" in told


def test_who_has_started_us_is_no_program_of_the_pipeline() -> None:
    reading, writing = os.pipe()
    assert standard_input._writer_in_pipeline(reading) is None
    os.close(reading)
    os.close(writing)
