"""What this process may use of the machine: CPUs and memory, under the quotas that are put on it.

Owns reading them: the control groups of Linux (versions 1 and 2, in which containers and services
run), the CPUs that a process is bound to, and the limits of a shell. Elsewhere it is what the
machine has.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_PROC = Path("/proc/self")
_GROUPS = Path("/sys/fs/cgroup")


@dataclass(frozen=True, slots=True)
class Allowance:
    """`num_cpus` may be a part of one. `num_host_cpus` and `host_bytes` are all that there is."""

    num_cpus: float
    num_host_cpus: int
    memory_bytes: int
    host_bytes: int

    @property
    def num_threads(self) -> int:
        """As many as get a CPU each: more would wait for each other while they are held back."""
        return max(1, int(self.num_cpus + 0.5))

    @property
    def is_less(self) -> bool:
        """Whether a quota leaves less than the machine has."""
        return self.num_cpus < self.num_host_cpus or self.memory_bytes < self.host_bytes


def allowance(proc: Path = _PROC, groups: Path = _GROUPS) -> Allowance:
    """What may be used now. `proc` and `groups` are where Linux tells it."""
    num_host = os.cpu_count() or 1
    host_bytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    cpus, memory = [float(num_host)], [host_bytes, *_shell_limits()]
    if hasattr(os, "sched_getaffinity"):
        cpus.append(float(len(os.sched_getaffinity(0))))
    for group in _own_groups("cpu", proc, groups):
        cpus += _cpu_quotas(group)
    for group in _own_groups("memory", proc, groups):
        names = ("memory.max", "memory.high", "memory.limit_in_bytes")
        found = (_number(_words(group / name)) for name in names)
        memory += [limit for limit in found if limit is not None]
    return Allowance(min(cpus), num_host, min(memory), host_bytes)


def memory_left(proc: Path = _PROC.parent, groups: Path = _GROUPS) -> list[tuple[int, int]]:
    """Of the machine, and of each control group with a limit: the bytes that there are, and those
    that can be had without taking them from a program. What files are kept in memory can be."""
    lines = (line.partition(":") for line in _words(proc / "meminfo").splitlines())
    kib = {name: _number(rest.strip().partition(" ")[0]) or 0 for name, _, rest in lines}
    found = [(kib.get("MemTotal", 0) << 10, kib.get("MemAvailable", 0) << 10)]
    for group in _own_groups("memory", proc / "self", groups):
        for limit_name, used_name in (
            ("memory.max", "memory.current"),
            ("memory.limit_in_bytes", "memory.usage_in_bytes"),
        ):
            limit, used = (_number(_words(group / name)) for name in (limit_name, used_name))
            if limit is not None and used is not None and limit <= found[0][0]:
                stat = (line.split() for line in _words(group / "memory.stat").splitlines())
                files = {words[0]: words[-1] for words in stat if words}
                kept = _number(files.get("inactive_file", "")) or 0
                found.append((limit, limit - used + kept))
    return [pair for pair in found if pair[0]]


def _own_groups(controller: str, proc: Path, groups: Path) -> Iterator[Path]:
    """The directories of the control groups that this process is in, up to the root.

    In a container the path is often that of the host, which is not seen here; the root is then the
    container's own group."""
    for line in _words(proc / "cgroup").splitlines():
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if not controllers:
            roots = [groups]
        elif controller in controllers.split(","):
            roots = [groups / controller, groups / controllers]
        else:
            continue
        root = next((root for root in roots if root.is_dir()), None)
        if root is None:
            continue
        own = root / path.lstrip("/")
        yield from (group for group in (own, *own.parents) if group.is_relative_to(root))


def _cpu_quotas(group: Path) -> Iterator[float]:
    """CPU time per time, in CPUs; none where there is no quota."""
    quota, _, period = _words(group / "cpu.max").partition(" ")
    if not quota:
        quota, period = _words(group / "cpu.cfs_quota_us"), _words(group / "cpu.cfs_period_us")
    if (time := _number(quota)) and (per := _number(period)):
        yield time / per


def _number(words: str) -> int | None:
    """A whole number above 0; None for "max", "-1", and what means nothing."""
    return int(words) or None if words.isdecimal() and len(words) < 20 else None


def _words(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8").strip()
    except (OSError, ValueError):
        return ""


def _shell_limits() -> list[int]:
    """What `ulimit -v` and `ulimit -d` allow."""
    if sys.platform == "win32":
        return []
    import resource

    limits = (resource.getrlimit(kind)[0] for kind in (resource.RLIMIT_AS, resource.RLIMIT_DATA))
    return [limit for limit in limits if limit != resource.RLIM_INFINITY]
