"""What the bench tells of memory is what the system tells of a process."""

from __future__ import annotations

import mmap
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest

from chatcache.bench.memory import Loading, ProcessMemory, process_memory

pytestmark = pytest.mark.skipif(process_memory() is None, reason="this system does not tell")

MIB = 1 << 20


def held() -> ProcessMemory:
    memory = process_memory()
    assert memory is not None
    return memory


def test_own_pages_and_pages_of_a_file_are_told_apart(tmp_path: Path) -> None:
    file = tmp_path / "weights"
    file.write_bytes(bytes(32 * MIB))
    before = held()
    with file.open("rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as view:
        assert sum(view[:: mmap.PAGESIZE]) == 0  # every page is looked at
        mapped = held()
    own = bytearray(b"x") * (32 * MIB)
    owned = held()
    assert mapped.mapped - before.mapped > 30 * MIB
    assert mapped.anonymous - before.anonymous < 16 * MIB
    assert owned.anonymous - mapped.anonymous > 16 * MIB
    assert owned.peak >= owned.resident - 4 * MIB
    assert len(own) == 32 * MIB


def test_another_process_is_asked_by_its_number() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", "x = b'x' * (64 << 20); print(flush=True); input()"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        memory = process_memory(process.pid)
        process.communicate(b"\n")
    assert memory is not None
    assert memory.anonymous > 60 * MIB
    assert process_memory(process.pid) is None


def test_what_loading_took_is_the_growth_since_before() -> None:
    before, loaded = ProcessMemory(100, 50, 120, 180), ProcessMemory(110, 60, 130, 400)
    used, busy = ProcessMemory(110, 300, 380, 410), ProcessMemory(200, 300, 470, 500)
    loading = Loading(1.0, 0.1, before, loaded, used, busy)
    assert (loading.weights, loading.most, loading.reading) == (260, 250, 350)
    assert Loading.of(asdict(loading)) == loading
    unknown = Loading.of(asdict(Loading(1.0, 0.1, None, None, None, None)))
    assert (unknown.weights, unknown.most, unknown.reading) == (None, None, None)
