"""CPUs and memory are those that this process may use, not those of the host."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chatcache.machine import Allowance, allowance

UNLIMITED_V1 = str((1 << 63) - 4096)  # what version 1 says where there is no limit
HOST = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def tree(place: Path, cgroup: str, files: dict[str, str]) -> tuple[Path, Path]:
    """A machine's files: /proc/self and /sys/fs/cgroup."""
    proc, groups = place / "proc", place / "groups"
    proc.mkdir()
    groups.mkdir()
    (proc / "cgroup").write_text(cgroup)
    for name, content in files.items():
        (groups / name).parent.mkdir(parents=True, exist_ok=True)
        (groups / name).write_text(content + "\n")
    return proc, groups


V1 = "4:memory:/docker/abc\n2:cpuacct,cpu:/docker/abc\n1:name=systemd:/\n0::/\n"
CASES: dict[str, tuple[str, dict[str, str], float, int]] = {
    "v2": (
        "0::/\n",
        {"cpu.max": "50000 100000", "memory.max": "536870912"},
        0.5,
        536870912,
    ),
    "v2, the group above": (
        "0::/user.slice/app.service\n",
        {
            "user.slice/cpu.max": "25000 100000",
            "user.slice/app.service/cpu.max": "max 100000",
            "user.slice/memory.max": "max",
            "user.slice/memory.high": "104857600",
            "user.slice/app.service/memory.max": "209715200",
        },
        0.25,
        104857600,
    ),
    "v1": (
        V1,
        {
            "cpuacct,cpu/docker/abc/cpu.cfs_quota_us": "75000",
            "cpuacct,cpu/docker/abc/cpu.cfs_period_us": "100000",
            "memory/docker/abc/memory.limit_in_bytes": "268435456",
            "memory/memory.limit_in_bytes": UNLIMITED_V1,
        },
        0.75,
        268435456,
    ),
    "v1 in a container, which sees itself as the root": (
        V1,
        {
            "cpu/cpu.cfs_quota_us": "10000",
            "cpu/cpu.cfs_period_us": "100000",
            "memory/memory.limit_in_bytes": "134217728",
        },
        0.1,
        134217728,
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_a_quota_counts(name: str, tmp_path: Path) -> None:
    cgroup, files, num_cpus, memory_bytes = CASES[name]
    found = allowance(*tree(tmp_path, cgroup, files))
    assert (found.num_cpus, found.memory_bytes) == (num_cpus, memory_bytes)
    assert found.num_threads == 1
    assert found.is_less


@pytest.mark.parametrize(
    "files",
    [
        {"cpu.max": "max 100000", "memory.max": "max"},
        {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"},
        {"memory/memory.limit_in_bytes": UNLIMITED_V1},
        {"cpu.max": "nonsense", "memory.max": "-7", "memory.high": ""},
        {"cpu.max": "50000 0"},
        {},
    ],
)
def test_without_a_quota_it_is_the_machine(files: dict[str, str], tmp_path: Path) -> None:
    found = allowance(*tree(tmp_path, V1, files))
    assert found.memory_bytes == found.host_bytes == HOST
    assert found.num_cpus == len(os.sched_getaffinity(0))


@given(st.text(max_size=40), st.text(max_size=40))
def test_nonsense_in_these_files_is_no_accident(line: str, quota: str) -> None:
    with tempfile.TemporaryDirectory() as place:
        files = {"cpu.max": quota, "memory.max": quota, "cpu/cpu.cfs_quota_us": quota}
        found = allowance(*tree(Path(place), f"0::/\n{line}\n0::/{line}\n1:cpu:/{line}", files))
    assert 0 < found.memory_bytes <= HOST
    assert found.num_threads >= 1


def test_without_these_files_it_is_the_machine(tmp_path: Path) -> None:
    assert allowance(tmp_path / "no", tmp_path / "such").memory_bytes == HOST


@pytest.mark.parametrize(
    ("num_cpus", "num_threads"), [(0.1, 1), (1.0, 1), (1.4, 1), (1.5, 2), (3.9, 4), (8.0, 8)]
)
def test_threads_get_a_cpu_each(num_cpus: float, num_threads: int) -> None:
    assert Allowance(num_cpus, 64, 1, 1).num_threads == num_threads


def cpus_of(place: Path, siblings: list[str], name: str = "core_cpus_list") -> Path:
    """The CPUs of a machine, each with those that share its core."""
    for cpu, shared in enumerate(siblings):
        topology = place / f"cpu{cpu}" / "topology"
        topology.mkdir(parents=True)
        (topology / name).write_text(shared + "\n")
    return place


@pytest.mark.parametrize(
    ("siblings", "bound_to", "quota", "num_threads"),
    [
        (["0", "1"], {0, 1}, "max 100000", 2),  # two cores
        ([f"{cpu % 8},{cpu % 8 + 8}" for cpu in range(16)], set(range(16)), "max", 8),  # a laptop
        ([f"{cpu % 8},{cpu % 8 + 8}" for cpu in range(16)], {0, 8, 1}, "max", 2),
        (["0-1", "0-1", "2-3", "2-3"], {0, 1, 2, 3}, "max", 2),  # siblings beside each other
        ([str(cpu) for cpu in range(8)], {0, 2, 5}, "max", 3),  # bound to three of eight
        ([str(cpu) for cpu in range(8)], set(range(8)), "150000 100000", 2),  # a container
        ([f"{cpu % 8},{cpu % 8 + 8}" for cpu in range(16)], set(range(16)), "400000 100000", 4),
        ([str(cpu) for cpu in range(4)], set(range(4)), "max", 4),  # ARM: a thread per core
    ],
)
@pytest.mark.parametrize("name", ["core_cpus_list", "thread_siblings_list"])
def test_threads_get_a_core_each(
    siblings: list[str],
    bound_to: set[int],
    quota: str,
    num_threads: int,
    name: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: bound_to)
    monkeypatch.setattr(os, "cpu_count", lambda: len(siblings))
    proc, groups = tree(tmp_path, "0::/\n", {"cpu.max": quota})
    found = allowance(proc, groups, cpus_of(tmp_path / "cpus", siblings, name))
    assert found.num_threads == num_threads


def test_where_nothing_tells_of_cores_each_cpu_is_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1, 2, 3})
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    proc, groups = tree(tmp_path, "0::/\n", {})
    found = allowance(proc, groups, cpus_of(tmp_path / "cpus", ["0-1", "0-1"]))
    assert (found.num_cores, found.num_threads) == (None, 4)


def test_limits_of_a_shell_count() -> None:
    """In a process of its own: a limit cannot be taken back."""
    program = (
        "import resource\n"
        "resource.setrlimit(resource.RLIMIT_AS, (700_000_000, 700_000_000))\n"
        "from chatcache.machine import allowance\n"
        "print(allowance().memory_bytes)\n"
    )
    if resource.getrlimit(resource.RLIMIT_AS)[0] != resource.RLIM_INFINITY:
        pytest.skip("there is a limit already")
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert int(done.stdout) == 700_000_000


PROGRAM = (
    "import sys\n"
    "from pathlib import Path\n"
    "from chatcache.machine import allowance\n"
    "Path(sys.argv[1], 'cgroup.procs').write_text('0')\n"
    "print(allowance().num_cpus)\n"
)


@pytest.mark.skipif(not hasattr(os, "getuid") or os.getuid() != 0, reason="only root makes groups")
def test_a_real_control_group_counts() -> None:
    """Of whichever version the kernel has, where the machine lets one be made."""
    root = next(
        (Path(p) for p in ("/sys/fs/cgroup/cpu", "/sys/fs/cgroup") if Path(p).is_dir()), None
    )
    if root is None:
        pytest.skip("there are no control groups")
    group = root / f"chatcache-test-{os.getpid()}"
    try:
        group.mkdir()
    except OSError as error:
        pytest.skip(f"no group can be made: {error.strerror}")
    try:
        try:
            if (group / "cpu.cfs_quota_us").exists():
                (group / "cpu.cfs_quota_us").write_text("50000")
            else:
                (group / "cpu.max").write_text("50000 100000")
        except OSError as error:
            pytest.skip(f"no quota can be set: {error.strerror}")
        command = [sys.executable, "-c", PROGRAM, str(group)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode and "cgroup.procs" in done.stderr:
            pytest.skip("no process can be moved")
        assert float(done.stdout) == 0.5, done.stderr
    finally:
        group.rmdir()
