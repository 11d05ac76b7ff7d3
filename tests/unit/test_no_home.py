"""Where there is no home directory (a container with a user of its own), what was chosen is used.

And the last way out of the program, which may depend on nothing."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from chatcache import cli, config, logs

# A user that the system does not know: what the lookup says then.
PROGRAM = """
import os, pwd, sys

def unknown(uid):
    raise KeyError(f"getpwuid(): uid not found: {uid}")

pwd.getpwuid = unknown
from chatcache import cli
sys.exit(cli.main())
"""


def run(*words: str, **environment: str) -> tuple[int, str, str]:
    homeless = ("HOME", "XDG_DATA_HOME", "XDG_CACHE_HOME", "XDG_CONFIG_HOME", "XDG_STATE_HOME")
    kept = {
        name: value
        for name, value in os.environ.items()
        if name not in homeless and not name.startswith("CHATCACHE_")
    }
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *words],
        env={**kept, **environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize(
    "words", [("paths",), ("sessions", "list"), ("config", "show"), ("cache", "stats")]
)
def test_without_a_home_the_places_that_were_chosen_are_used(
    tmp_path: Path, words: tuple[str, ...]
) -> None:
    chosen = {
        "CHATCACHE_DATA_DIR": str(tmp_path / "data"),
        "CHATCACHE_CACHE_DIR": str(tmp_path / "cache"),
        "CHATCACHE_CONFIG": str(tmp_path / "config.toml"),
    }
    assert run(*words, **chosen)[::2] == (0, "")


def test_without_a_home_all_is_in_the_data_directory(tmp_path: Path) -> None:
    code, out, err = run("paths", "--data-dir", str(tmp_path / "data"))
    assert (code, err) == (0, "")
    assert str(tmp_path / "data" / "cache" / "segments") in out
    assert str(tmp_path / "data" / "config" / "config.toml") in out
    assert run("sessions", "list", "--data-dir", str(tmp_path / "data"))[0] == 0
    assert (tmp_path / "data" / "config" / "config.toml").exists()


def test_without_a_home_and_a_choice_it_is_said_what_to_choose() -> None:
    for words in (["sessions", "list"], ["paths"], ["ask", "hi"], ["doctor"], []):
        code, out, err = run(*words)
        assert (code, out) == (2, "")
        assert "There is no home directory" in err
        assert "CHATCACHE_DATA_DIR" in err
        assert "Traceback" not in err
    assert run("--help")[0] == 0


class UnspeakableError(Exception):
    def __str__(self) -> str:
        raise ValueError("not even this")


@pytest.mark.parametrize("fault", ["no home", "no log", "no log, no temporary file", "no words"])
def test_the_last_way_out_fails_for_no_reason(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    fault: str,
) -> None:
    def fail(*args: object, **rest: object) -> None:
        raise RuntimeError("this fails, too")

    monkeypatch.setenv("CHATCACHE_DATA_DIR", str(tmp_path))
    error: Exception = UnspeakableError() if fault == "no words" else KeyError("the cause")
    if fault == "no home":
        monkeypatch.setattr(config, "resolve_paths", fail)
    if "no log" in fault:
        monkeypatch.setattr(logs, "log_unexpected", fail)
    if "temporary" in fault:
        monkeypatch.setattr(tempfile, "mkstemp", fail)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))

    def run_command(words: object) -> int:
        raise error

    monkeypatch.setattr(cli, "run", run_command)
    assert cli.main(["paths"]) == 1
    said = capsys.readouterr().err
    assert "Unexpected " in said
    assert "Traceback" not in said
    if fault in ("no home", "no log"):
        (kept,) = tmp_path.glob("chatcache-error-*.log")
        assert str(kept) in said
        assert "the cause" in kept.read_text()
        assert "this fails, too" in kept.read_text()
