"""A file that is replaced is there whole, old or new, and nothing is left beside it."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from chatcache.atomic_write import remove_leftovers, replacing, write_atomically


@pytest.fixture
def path(tmp_path: Path) -> Path:
    (tmp_path / "alone").mkdir()
    return tmp_path / "alone" / "file"


@pytest.mark.parametrize("is_durable", [False, True])
def test_the_new_content_takes_the_place_of_the_old(path: Path, is_durable: bool) -> None:
    for content in (b"old", b"new and longer"):
        write_atomically(path, content, is_durable=is_durable)
        assert path.read_bytes() == content
    assert list(path.parent.iterdir()) == [path]


def test_until_the_end_a_reader_sees_the_old_one(path: Path) -> None:
    write_atomically(path, b"old")
    with replacing(path) as file:
        file.write(b"new")
        file.flush()
        assert path.read_bytes() == b"old"
    assert path.read_bytes() == b"new"


@pytest.mark.parametrize("failure", [OSError("full"), KeyboardInterrupt()])
def test_a_failure_leaves_the_old_one_alone(path: Path, failure: BaseException) -> None:
    write_atomically(path, b"old")

    def write() -> None:
        with replacing(path) as file:
            file.write(b"half of the n")
            raise failure

    with pytest.raises(type(failure)):
        write()
    assert path.read_bytes() == b"old"
    assert list(path.parent.iterdir()) == [path]


def test_only_the_owner_reads_it_unless_another_mode_is_asked_for(path: Path) -> None:
    path.touch(mode=0o644)
    write_atomically(path, b"private")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    write_atomically(path, b"for all", mode=0o664)
    assert stat.S_IMODE(path.stat().st_mode) == 0o664


def test_where_no_file_can_be_written_that_is_said(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No such file"):
        write_atomically(tmp_path / "missing" / "file", b"")


def test_leftovers_are_removed_unless_their_process_runs(path: Path) -> None:
    kept = [f".tmp-{os.getpid()}-abc", ".tmp-words", "tmp-999999999-abc", "file"]
    for name in [*kept, ".tmp-999999999-abc123"]:
        path.with_name(name).touch()
    remove_leftovers(path.parent)
    assert {found.name for found in path.parent.iterdir()} == set(kept)


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="Linux tells the state")
def test_what_a_process_left_goes_though_nobody_has_taken_note_of_its_end(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", ""], stdout=subprocess.PIPE) as ended:
        assert ended.stdout is not None
        assert ended.stdout.read() == b""  # it has ended, and waits for us
        os.waitid(os.P_PID, ended.pid, os.WEXITED | os.WNOWAIT)
        left = tmp_path / f".tmp-{ended.pid}-0123abcd"
        left.touch()
        remove_leftovers(tmp_path)
        assert not left.exists()
        mine = tmp_path / f".tmp-{os.getpid()}-0123abcd"
        mine.touch()
        remove_leftovers(tmp_path)
        assert mine.exists()
