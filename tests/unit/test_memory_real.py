"""Real limits and real engines: what has no room is refused, and what is killed is not repeated."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

from chatcache import machine
from chatcache.backends.local.engine.client import LocalBackend
from chatcache.backends.local.engine.residence import Residence
from chatcache.backends.local.engine.settings import EngineSettings
from chatcache.errors import EngineDiedError
from chatcache.machine import memory_limits, num_memory_kills
from tests.models import build_model_dir

MB = 1 << 20
SECONDS = 120.0
V1 = Path("/sys/fs/cgroup/memory")
V2 = Path("/sys/fs/cgroup")

# An engine that writes down that it was started, and is killed while it "loads".
ENGINE = """
    import os, signal, sys
    from chatcache.backends.base import ModelLoading
    from chatcache.backends.local.engine import process

    def factory(settings, emit):
        with open(sys.argv[1], "a") as starts:
            starts.write("x")
        emit(ModelLoading("loading the weights"))
        os.kill(os.getpid(), signal.SIGKILL)

    process.leave(process.main(sys.argv[2:], factory))
"""


def failure(backend: LocalBackend) -> Exception:
    """Why the engine is not there."""
    with pytest.raises(EngineDiedError) as caught:
        backend.wait_ready(SECONDS)
    return caught.value


@pytest.fixture
def short_dir() -> Iterator[Path]:
    """A socket's path has to be short."""
    with tempfile.TemporaryDirectory(prefix="ccm-") as home:
        yield Path(home)


@pytest.mark.slow
@pytest.mark.parametrize("is_resident", [False, True])
def test_an_engine_that_was_killed_while_it_loaded_is_started_once(
    tmp_path: Path, short_dir: Path, is_resident: bool
) -> None:
    program = tmp_path / "engine.py"
    program.write_text(textwrap.dedent(ENGINE))
    starts = tmp_path / "starts"
    model = build_model_dir(tmp_path / "model")
    settings = EngineSettings(str(model), tmp_path / "cache", tmp_path / "engine.log")
    residence = Residence(short_dir / "engines", 0.0) if is_resident else None
    backend = LocalBackend(
        settings, residence, command=(sys.executable, "-P", str(program), str(starts))
    )
    try:
        backend.start()
        error = failure(backend)
        assert "killed while it loaded" in str(error)
        assert "needs about" in str(error)
        assert starts.read_text() == "x"
        backend.start()  # somebody asks again
        failure(backend)
        assert starts.read_text() == "xx"
    finally:
        backend.close()


@pytest.fixture
def group() -> Iterator[Path]:
    """A control group of 64 MB inside that of this process, where the machine lets one be made."""
    if not hasattr(os, "getuid") or os.getuid() != 0:
        pytest.skip("only root makes groups")
    root = V1 if V1.is_dir() else V2
    place = root / f"chatcache-test-{os.getpid()}"
    name = "memory.limit_in_bytes" if root == V1 else "memory.max"
    try:
        place.mkdir()
        (place / name).write_text(str(64 * MB))
    except OSError as error:
        if place.is_dir():
            place.rmdir()
        pytest.skip(f"no group with a limit can be made: {error.strerror}")
    yield place
    place.rmdir()


IN_GROUP = """
import sys
from pathlib import Path
from chatcache.machine import memory_limits, num_memory_kills
Path(sys.argv[1], "cgroup.procs").write_text("0")
limits = [limit for limit in memory_limits() if "container" in limit.where]
print(min(limit.total for limit in limits), min(limit.available for limit in limits))
"""


def test_the_limit_of_a_real_group_is_what_there_is(group: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", IN_GROUP, str(group)], capture_output=True, text=True
    )
    if "cgroup.procs" in done.stderr:
        pytest.skip("no process can be moved")
    total, available = map(int, done.stdout.split())
    assert total == 64 * MB
    assert 0 < available <= total


def test_a_kill_for_memory_is_seen(group: Path) -> None:
    before = num_memory_kills()
    program = (
        "import sys, pathlib; pathlib.Path(sys.argv[1], 'cgroup.procs').write_text('0')\n"
        "print('moved', flush=True); bytearray(256 << 20)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(group)], capture_output=True, text=True
    )
    if "moved" not in done.stdout or done.returncode != -signal.SIGKILL:
        pytest.skip("this machine does not kill for memory here")
    assert num_memory_kills() > before


def test_memory_that_the_shell_limits_is_seen() -> None:
    program = (
        "import resource; from chatcache.machine import memory_limits\n"
        "resource.setrlimit(resource.RLIMIT_AS, (2_000_000_000, 2_000_000_000))\n"
        "(limit,) = [limit for limit in memory_limits() if 'shell' in limit.where]\n"
        "print(limit.total, limit.available, limit.counts_files)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    total, available, counts_files = done.stdout.split()
    assert int(total) == 2_000_000_000
    assert 0 < int(available) < 2_000_000_000
    assert counts_files == "True"


def files(place: Path, contents: dict[str, str]) -> None:
    for name, content in contents.items():
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_text(content)


def test_files_of_nested_groups_can_be_had_and_swap_is_told_apart(tmp_path: Path) -> None:
    proc, groups = tmp_path / "proc", tmp_path / "groups"
    files(
        proc,
        {
            "meminfo": "MemTotal: 16000000 kB\nMemAvailable: 8000000 kB\nSwapFree: 1000 kB\n",
            "self/cgroup": "4:memory:/docker/abc\n0::/\n",
        },
    )
    stat = f"inactive_file 0\nactive_file 0\ntotal_inactive_file {100 * MB}\n"
    files(
        groups / "memory",
        {
            "docker/abc/memory.limit_in_bytes": str((1 << 63) - 4096),
            "docker/abc/memory.usage_in_bytes": str(900 * MB),
            "docker/memory.limit_in_bytes": str(1000 * MB),
            "docker/memory.usage_in_bytes": str(900 * MB),
            "docker/memory.stat": stat + f"total_active_file {50 * MB}\n",
            "docker/memory.oom_control": "oom_kill_disable 0\nunder_oom 0\noom_kill 3\n",
        },
    )
    of_machine, of_group = memory_limits(proc, groups)[:2]
    assert (of_machine.where, of_machine.swap_bytes) == ("this machine", 1000 << 10)
    assert (of_group.total, of_group.available) == (1000 * MB, 250 * MB)
    assert machine.num_memory_kills(proc, groups) == 3


def test_a_group_that_is_slowed_down_at_a_limit_counts(tmp_path: Path) -> None:
    proc, groups = tmp_path / "proc", tmp_path / "groups"
    files(proc, {"meminfo": "MemTotal: 16000000 kB\n", "self/cgroup": "0::/a.slice/b\n"})
    files(
        groups,
        {
            "a.slice/memory.high": str(100 * MB),
            "a.slice/memory.max": "max",
            "a.slice/memory.current": str(300 * MB),
            "a.slice/b/memory.events": "low 0\nhigh 1\nmax 0\noom 2\noom_kill 2\n",
        },
    )
    (limit,) = (limit for limit in memory_limits(proc, groups) if "container" in limit.where)
    assert (limit.total, limit.available) == (100 * MB, 0)
    assert machine.num_memory_kills(proc, groups) == 2
