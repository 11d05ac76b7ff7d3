"""Several processes on one cache directory: nothing wrong is reused, and the budget is one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from chatcache.cache.files.store import SegmentStore
from chatcache.cache.inspect import CacheInspector
from tests.crash.kv_talker import DISK_BUDGET, SYSTEM
from tests.kvfakes import FIELDS, Bench, ids_of

ROOT = Path(__file__).resolve().parents[2]
NUM_TURNS = 60


def start(directory: Path, name: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "tests.crash.kv_talker", str(directory), name, str(NUM_TURNS)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen[str]) -> tuple[int, int]:
    out, err = process.communicate(timeout=120)
    assert (process.returncode, err) == (0, "")
    num_reused, num_damaged = map(int, out.split())
    return num_reused, num_damaged


def test_two_processes_share_a_directory_and_its_budget(tmp_path: Path) -> None:
    processes = [start(tmp_path, name) for name in ("ann", "bob")]
    results = [finish(process) for process in processes]
    assert all(num_reused > 0 and num_damaged == 0 for num_reused, num_damaged in results)
    inspector = CacheInspector(tmp_path, 0, DISK_BUDGET)
    assert 0 < inspector.tiers()[1].num_bytes <= DISK_BUDGET
    report = inspector.verify()
    assert (report.num_checked > 0, report.damaged) == (True, ())
    assert list(tmp_path.glob("segments/*/.tmp-*")) == []
    assert not (tmp_path / "quarantine").exists()


def test_files_that_vanish_are_clean_misses(tmp_path: Path) -> None:
    process = start(tmp_path, "ann")
    directory = tmp_path / "segments" / "ns"
    while process.poll() is None:
        for path in sorted(directory.glob("*.safetensors"))[::3]:
            path.unlink(missing_ok=True)
    assert finish(process)[1] == 0


def test_a_temporary_file_of_a_running_process_is_left_alone(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    mine = tmp_path / "segments" / "ns" / f".tmp-{os.getpid()}-abc123"
    mine.write_bytes(b"half")
    SegmentStore(tmp_path, "ns").prepare(FIELDS)
    CacheInspector(tmp_path, 0, 0).collect_garbage()
    assert mine.exists()
    bench.close()


def test_a_file_that_was_replaced_since_it_was_read_is_not_set_aside(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.turn(SYSTEM, "Hello! ", "Hi! ")
    bench.close()
    path = bench.files()[0]
    good, seen = path.read_bytes(), path.stat().st_ino
    replacement = path.with_name("replacement")
    replacement.write_bytes(good)
    replacement.replace(path)
    SegmentStore(tmp_path, "ns").quarantine(path, seen)
    assert path.read_bytes() == good


def test_what_another_process_used_is_not_the_oldest(tmp_path: Path) -> None:
    ours, theirs = Bench(tmp_path), Bench(tmp_path)
    ours.turn("a" * 20, "b" * 20)
    ours.turn("c" * 20, "d" * 20)
    theirs.close()
    theirs.reopen()
    assert theirs.turn("a" * 20, "b" * 20, "?", "!") == 40
    size = sum(path.stat().st_size for path in ours.files())
    ours.close()
    crowded = Bench(tmp_path, disk_budget=size - 1)
    assert crowded.cache.lookup(ids_of("a" * 20 + "b" * 20)).disk_tokens == 40
    assert crowded.cache.lookup(ids_of("c" * 20 + "d" * 20)).disk_tokens < 40
    for bench in (theirs, crowded):
        bench.close()


def test_what_another_process_wrote_counts_for_the_budget(tmp_path: Path) -> None:
    budget = 6_000
    ours, theirs = (Bench(tmp_path, disk_budget=budget) for _ in range(2))
    for number in range(6):
        ours.turn(f"ours {number}", "answer")
        theirs.turn(f"theirs {number}", "answer")
        assert sum(path.stat().st_size for path in ours.files()) <= budget
    assert ours.cache.lookup(ids_of("ours 5answer")).num_tokens == 12
    ours.close()
    theirs.close()


def test_what_another_process_writes_is_matched_without_opening_again(tmp_path: Path) -> None:
    ours, theirs = Bench(tmp_path), Bench(tmp_path)
    ours.turn(SYSTEM, "Hello! ", "Hi! ")
    assert theirs.turn(SYSTEM, "Hello! ", "Hi! ", "And now? ", "Well.") == len(SYSTEM) + 11
    assert ours.turn(SYSTEM, "Hello! ", "Hi! ", "And now? ", "Well.", "?", "!") == len(SYSTEM) + 25
    assert len(ours.files()) == len({path.name for path in theirs.files()}) == 7
    ours.close()
    theirs.close()


def test_what_another_process_wrote_and_removed_is_a_clean_miss(tmp_path: Path) -> None:
    ours, theirs = Bench(tmp_path), Bench(tmp_path)
    theirs.turn(SYSTEM, "Hello! ", "Hi! ")
    for path in ours.files():
        path.unlink()
    assert ours.turn(SYSTEM, "Hello! ", "Hi! ", "?", "!") == 0
    assert ours.cache.damaged == []
    ours.close()
    theirs.close()


def test_a_real_process_is_read_while_it_runs(tmp_path: Path) -> None:
    """Its segments are used here before it has ended, and each of them is true (kvfakes)."""
    ours = Bench(tmp_path)
    process = start(tmp_path, "ann")
    chats = [[SYSTEM, f"{who} asks. ", "Answer. "] for who in ("ann", "anybody", "somebody")]
    num_reused = 0
    while process.poll() is None:
        num_reused += sum(ours.turn(*chat, "Hm? ", "Hm.") for chat in chats)
    assert finish(process)[1] == 0
    assert num_reused > 0
    assert ours.cache.damaged == []
    ours.close()
