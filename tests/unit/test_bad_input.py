"""What a cache may find on its disk, and in names: files of the future, other people's directories,
directories that cannot be read or written, and names that look like paths."""

from __future__ import annotations

import errno
import io
import json
import os
import shutil
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from chatcache import cli, compose
from chatcache.cache.book.namespace import namespace_id
from chatcache.cache.files import ownership
from chatcache.cache.inspect import CacheInspector
from chatcache.chat import database
from chatcache.doctor import machine
from chatcache.frontend.files import list_directory
from tests.fakes import FakeBackend
from tests.kvfakes import Bench, ids_of

SYSTEM, HELLO, HI = "You are helpful. ", "Hello! ", "Hi! "
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    bench = Bench(tmp_path / "cache")
    yield bench
    bench.close()


@pytest.fixture
def no_device_probe(monkeypatch: pytest.MonkeyPatch) -> None:
    """The doctor does not start torch, which takes seconds."""
    monkeypatch.setattr(machine, "DEVICE_PROBE", "print('cpu')")


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run a command in this process; returns exit code, stdout, stderr."""
    monkeypatch.setattr(compose, "open_backend", lambda settings, **options: FakeBackend())

    def run_command(*words: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "stdin", io.StringIO())
        code = cli.main(words)
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run_command


# a segment from a future format version


def from_the_future(path: Path) -> bytes:
    """Let a file be of a version that is not known yet; returns its content."""
    content = path.read_bytes().replace(b'"format_version":"1"', b'"format_version":"9"')
    path.write_bytes(content)
    return content


def inspector_of(bench: Bench) -> CacheInspector:
    return CacheInspector(bench.directory, 1 << 20, 1 << 20)


def test_a_file_of_the_future_is_neither_used_nor_touched(bench: Bench) -> None:
    bench.turn(SYSTEM, HELLO, HI)
    bench.close()
    path = max(bench.files(), key=lambda path: int(path.name.split("-")[0]))
    content = from_the_future(path)
    bench.reopen()
    report = inspector_of(bench).verify(fix=True)
    assert (report.damaged, report.num_fixed) == ((), 0)
    inspector_of(bench).collect_garbage()
    assert path.read_bytes() == content
    # What an answer needs of it is computed, and takes its place.
    assert bench.turn(SYSTEM, HELLO, HI, "On. ", "Yes.") == len(SYSTEM + HELLO)
    assert not [text for kind, text in bench.events if kind == "quarantined"]


def test_a_file_that_becomes_one_of_the_future_is_no_damage(bench: Bench) -> None:
    """Another, newer chatcache may write while this one runs."""
    bench.turn(SYSTEM, HELLO, HI)
    bench.close()
    bench.reopen()
    whole = ids_of(SYSTEM + HELLO + HI)
    assert bench.cache.lookup(whole).disk_tokens == len(whole)
    path = max(bench.files(), key=lambda path: int(path.name.split("-")[0]))
    from_the_future(path)
    assert bench.turn(SYSTEM, HELLO, HI, "?") == len(SYSTEM + HELLO)
    assert not [text for kind, text in bench.events if kind == "quarantined"]
    assert not list((bench.directory / "quarantine").glob("*"))


# directories of other people, and without permissions


@pytest.fixture
def somebody_else(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """From its call on this process is another user, as far as owners are compared."""

    def become() -> None:
        user = os.geteuid() + 1
        monkeypatch.setattr(ownership.os, "geteuid", lambda: user)

    return become


def test_segments_of_another_user_are_not_read_and_none_are_left_there(
    bench: Bench, somebody_else: Callable[[], None]
) -> None:
    bench.turn(SYSTEM, HELLO, HI)
    bench.close()
    before = {path: path.read_bytes() for path in bench.files()}
    shutil.copytree(bench.files()[0].parent, bench.files()[0].parent.with_name("elsewhere"))
    somebody_else()
    bench.reopen()
    assert bench.turn(SYSTEM, HELLO, HI) == 0
    assert bench.turn(SYSTEM, HELLO, HI, "?", "!") == len(SYSTEM + HELLO + HI)
    assert bench.cache.use()[1].num_bytes == 0
    bench.close()
    (warning,) = [text for kind, text in bench.events if kind == "warning"]
    assert "belongs to another user" in warning
    assert {path: path.read_bytes() for path in bench.files()} == before


@pytest.mark.parametrize("words", [["stats"], ["list"], ["verify"], ["gc"], ["clear"]])
def test_commands_say_whose_directory_it_is(
    run: Run, home: Path, somebody_else: Callable[[], None], words: list[str]
) -> None:
    (home / "cache" / "segments").mkdir(parents=True)
    assert run("cache", *words)[0] == 0
    somebody_else()
    code, out, err = run("cache", *words)
    assert (code, out) == (4, "")
    assert "belongs to another user" in err
    assert "--cache-dir" in err


@pytest.mark.usefixtures("no_device_probe")
def test_the_doctor_says_whose_directory_it_is(
    run: Run, home: Path, somebody_else: Callable[[], None]
) -> None:
    (home / "cache" / "segments").mkdir(parents=True)
    somebody_else()
    code, out, _ = run("doctor")
    assert code == 4
    assert f"PROBLEM  cache directory: {home / 'cache'} belongs to another user" in out


_AS_NOBODY = """
import os, sys
from pathlib import Path
from tests.kvfakes import Bench
from chatcache.cache.inspect import CacheInspector
if os.geteuid() == 0:
    os.seteuid(65534)
bench = Bench(Path(sys.argv[1]))
bench.turn("Hello! ", "Hi! ")
print(bench.turn("Hello! ", "Hi! ", "?", "!"))
bench.close()
print(len([text for kind, text in bench.events if kind == "warning"]))
try:
    CacheInspector(Path(sys.argv[1]), 1, 1).check_access()
except OSError as error:
    print(error.strerror)
"""


@pytest.fixture
def place() -> Iterator[Path]:
    """A directory that every user can get to; the one that the process runs as owns it."""
    directory = Path(tempfile.mkdtemp())
    directory.chmod(0o755)
    if os.geteuid() == 0:
        os.chown(directory, 65534, 65534)
    yield directory
    subprocess.run(["chmod", "-R", "u+rwx", directory], check=False)
    shutil.rmtree(directory)


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="POSIX permissions")
@pytest.mark.parametrize(
    ("mode", "problem"), [(0o500, None), (0o300, "Permission denied"), (0o000, "Permission denied")]
)
def test_a_directory_without_permissions_is_one_warning(
    place: Path, mode: int, problem: str | None
) -> None:
    """As a user for whom they count, also when the tests are run by root."""
    segments = place / "segments"
    segments.mkdir()
    if os.geteuid() == 0:
        os.chown(segments, 65534, 65534)
    segments.chmod(mode)
    done = subprocess.run(
        [sys.executable, "-c", _AS_NOBODY, str(place)],
        capture_output=True,
        text=True,
        cwd=Path(__file__).resolve().parents[2],
        check=True,
    )
    reused, num_warnings, *told = done.stdout.splitlines()
    assert (reused, num_warnings) == (str(len(HELLO + HI)), "0" if mode == 0o300 else "1")
    assert told == ([] if problem is None else [problem])


def test_the_disk_is_full_for_a_moment_and_the_turn_is_answered(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The index beside the segments cannot be written either."""
    from chatcache.cache.files import store as segments

    def no_space(*arguments: Any) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(segments, "write_segment", no_space)
    bench.turn(SYSTEM, HELLO, HI)
    bench.cache.drain()
    assert any("the disk is full" in text for kind, text in bench.events if kind == "warning")
    assert not list(bench.directory.glob("segments/*/.tmp*"))
    assert bench.turn(SYSTEM, HELLO, HI, "?", "!") == len(SYSTEM + HELLO + HI)


# names


NAMES = ["../../outside", "/etc/outside", "a/b/outside", "..", "outside\n\x1b[31m", "~/outside"]


@pytest.mark.parametrize("name", NAMES)
def test_a_session_may_be_called_like_a_path(
    run: Run, home: Path, tmp_path: Path, name: str
) -> None:
    before = {path for path in tmp_path.rglob("*") if "outside" in path.name}
    code, out, _ = run("ask", "hello", "--session", name, "--json")
    assert code == 0
    shown = json.loads(out)["session"]
    assert run("sessions", "show", shown)[0] == 0
    code, exported, _ = run("sessions", "export", shown)
    assert code == 0
    document = tmp_path / "exported.json"
    document.write_text(exported)
    assert run("sessions", "import", str(document))[0] == 0
    assert run("sessions", "delete", shown)[0] == 0
    assert {path for path in tmp_path.rglob("*") if "outside" in path.name} == before
    assert {path.name for path in home.iterdir()} <= {"data", "cache", "config.toml"}


def test_names_of_models_and_adapters_make_no_paths(tmp_path: Path) -> None:
    """They are recorded in a namespace, whose directory is named by a hash."""
    for name in NAMES:
        made = namespace_id({"weights": name, "adapter": name, "soft.name": name})
        assert len(made) == 32
        assert made.isalnum()


@pytest.mark.parametrize("name", ["a/b", "../x", "."])
def test_a_persona_may_be_called_like_a_path(run: Run, home: Path, name: str) -> None:
    (home / "config.toml").write_text(f'[personas."{name}"]\nsystem = "Be kind."\n')
    assert run("config", "show")[0] == 0


@pytest.mark.parametrize("name", ["../nowhere", "a/../b/c", "~nobody/x", "~no such user/x", "\x00"])
def test_a_model_that_is_a_wrong_path_is_refused(run: Run, name: str) -> None:
    code, out, err = run("ask", "hello", "--new", "--model", name)
    assert code in (3, 4)
    assert out == ""
    assert "chatcache: " in err


# places that are named wrongly


@pytest.mark.parametrize(
    ("command", "code"),
    [
        (("ask", "hello", "--file", "~no such user/x"), 3),
        (("ask", "hello", "--system", "@~no such user/x"), 3),
        (("sessions", "import", "~no such user/x"), 3),
        (("models", "show", "~no such user/x"), 4),
    ],
)
def test_the_home_of_nobody_is_no_file(run: Run, command: tuple[str, ...], code: int) -> None:
    found, out, err = run(*command)
    assert (found, out) == (code, "")
    assert "no such user" in err


def test_completing_a_path_in_the_home_of_nobody_finds_nothing() -> None:
    assert list_directory("~no such user/x") == []


def test_settings_that_are_not_there_are_not_made_up(run: Run, tmp_path: Path) -> None:
    missing = tmp_path / "confg" / "config.toml"
    code, out, err = run("sessions", "list", "--config", str(missing))
    assert (code, out) == (3, "")
    assert str(missing) in err
    assert not missing.parent.exists()
    assert run("config", "set", "ui.panel", "off", "--config", str(missing))[0] == 0
    assert run("sessions", "list", "--config", str(missing))[0] == 0


@pytest.mark.usefixtures("no_device_probe")
@pytest.mark.parametrize("keep", [0.0, 0.5])
def test_words_that_are_damaged_are_damage(run: Run, home: Path, keep: float) -> None:
    assert run("ask", "hello", "--session", "a")[0] == 0
    database_file = home / "data" / "conversations.sqlite3"
    content = database_file.read_bytes()
    cut = content[: int(len(content) * keep)] or b"not a database, " * 100
    database_file.write_bytes(cut)
    code, out, err = run("sessions", "list")
    assert (code, out) == (5, "")
    assert str(database_file) in err
    code, out, _ = run("doctor")
    assert (code, "DAMAGE   conversations" in out) == (5, True)
    assert database_file.read_bytes() == cut


@pytest.mark.usefixtures("no_device_probe")
def test_the_doctor_puts_right_what_it_can(run: Run, home: Path) -> None:
    from tests.kvfakes import Bench as Writer

    writer = Writer(home / "cache")
    writer.turn(SYSTEM, HELLO, HI)
    writer.close()
    path = writer.files()[0]
    path.write_bytes(path.read_bytes()[:-1])
    (home / "cache").chmod(0o755)
    code, out, _ = run("doctor")
    assert code == 5
    assert "doctor --fix" in out
    assert path.exists()
    code, out, _ = run("doctor", "--fix")
    assert (code, path.exists()) == (0, False)
    assert "put aside or removed" in out
    assert "others can no longer read it" in out
    assert (home / "cache").stat().st_mode & 0o077 == 0
    assert json.loads(run("doctor", "--json")[1])["ok"]


def test_conversations_that_cannot_be_written_are_still_read(
    run: Run, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run("ask", "hello there", "--session", "a")
    content = (home / "data" / "conversations.sqlite3").read_bytes()
    monkeypatch.setattr(database, "_is_read_only", lambda path: True)
    for words in (["list"], ["show", "a"], ["search", "hello"], ["export", "a"], ["tree", "a"]):
        code, out, err = run("sessions", *words)
        assert (code, err) == (0, "")
        assert out
    assert run("cache", "stats")[0] == 0
    for command in (["sessions", "rename", "a", "b"], ["fork", "a"], ["sessions", "delete", "a"]):
        code, _, err = run(*command)
        assert code == 4
        assert "cannot be written" in err
    assert (home / "data" / "conversations.sqlite3").read_bytes() == content


def test_an_old_database_that_cannot_be_written_says_so(
    run: Run, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run("ask", "hello", "--session", "a")
    connection = sqlite3.connect(home / "data" / "conversations.sqlite3")
    connection.execute("PRAGMA user_version = 1")
    connection.close()
    monkeypatch.setattr(database, "_is_read_only", lambda path: True)
    code, _, err = run("sessions", "list")
    assert code == 4
    assert "older format" in err
