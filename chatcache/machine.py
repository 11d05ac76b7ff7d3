"""What this process may use of the machine: CPUs and memory, under the quotas that are put on it.

Owns reading them: the control groups of Linux (versions 1 and 2, in which containers and services
run), the CPUs that a process is bound to, and the limits of a shell. Elsewhere it is what the
machine has.
"""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_PROC = Path("/proc/self")
_GROUPS = Path("/sys/fs/cgroup")
# Lines of /proc/cpuinfo that are the same for all CPUs of a kind, on x86 and ARM.
_OF_KIND = frozenset({"vendor_id", "cpu family", "model", "model name", "flags"}) | frozenset(
    {"CPU implementer", "CPU part", "CPU variant", "Features"}
)
_PROCESSORS = Path("/sys/devices/system/cpu")


@dataclass(frozen=True, slots=True)
class Allowance:
    """`num_cpus` may be a part of one. `num_host_cpus` and `host_bytes` are all that there is.
    `num_cores` of those that this process is bound to are physical; None where nothing tells."""

    num_cpus: float
    num_host_cpus: int
    memory_bytes: int
    host_bytes: int
    num_cores: int | None = None

    @property
    def num_threads(self) -> int:
        """As many as get a core each: more would wait for each other while they are held back, and
        the second thread of a core finds its units taken."""
        return max(1, min(int(self.num_cpus + 0.5), self.num_cores or self.num_host_cpus))

    @property
    def is_less(self) -> bool:
        """Whether a quota leaves less than the machine has."""
        return self.num_cpus < self.num_host_cpus or self.memory_bytes < self.host_bytes


def allowance(
    proc: Path = _PROC, groups: Path = _GROUPS, processors: Path = _PROCESSORS
) -> Allowance:
    """What may be used now. `proc`, `groups` and `processors` are where Linux tells it."""
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
    return Allowance(min(cpus), num_host, min(memory), host_bytes, _num_cores(processors))


@dataclass(frozen=True, slots=True)
class MemoryLimit:
    """Something that bounds memory: the machine itself, a control group, a limit of the shell.

    `available` bytes can be had without taking them from a program. `counts_files`: files that are
    mapped count as well, though the system could read them again. `swap_bytes`: what could be moved
    out of the machine's memory, at the cost of time."""

    where: str
    total: int
    available: int
    counts_files: bool = False
    swap_bytes: int = 0


def memory_left(proc: Path = _PROC.parent, groups: Path = _GROUPS) -> list[tuple[int, int]]:
    """Of the machine, and of each control group with a limit: the bytes that there are, and those
    that can be had without taking them from a program. What files are kept in memory can be."""
    limits = [*_machine_limit(proc), *_group_limits(proc, groups)]
    return [(limit.total, limit.available) for limit in limits]


def memory_limits(proc: Path = _PROC.parent, groups: Path = _GROUPS) -> list[MemoryLimit]:
    """Everything that bounds the memory of this process; nothing where the system tells nothing."""
    return [
        *_machine_limit(proc),
        *_group_limits(proc, groups),
        *_shell_memory(proc / "self"),
    ]


def _num_cores(processors: Path) -> int | None:
    """How many physical cores the CPUs of this process belong to; None where one does not say."""
    if not hasattr(os, "sched_getaffinity"):
        return None
    cores = set()
    for cpu in os.sched_getaffinity(0):
        topology = processors / f"cpu{cpu}" / "topology"
        siblings = _words(topology / "core_cpus_list") or _words(topology / "thread_siblings_list")
        if not siblings:
            return None
        cores.add(siblings)
    return len(cores)


def has_fast_bfloat16() -> bool:
    """Whether this CPU says that it multiplies bfloat16 matrices in hardware."""
    words = _words(_PROC.parent / "cpuinfo").split()
    return not {"avx512_bf16", "amx_bf16", "bf16"}.isdisjoint(words)


def processor() -> str:
    """What this CPU says of itself: the same for all of its kind that can do the same."""
    lines = set(_words(_PROC.parent / "cpuinfo").splitlines())
    told = sorted(line for line in lines if line.partition(":")[0].strip() in _OF_KIND)
    return "\n".join(told) or platform.processor()


def has_nvidia_gpu() -> bool:
    """Whether there is a GPU that torch calls cuda, without asking torch."""
    return any(Path("/dev").glob("nvidia[0-9]*"))


def is_crowded(num_threads: int, proc: Path = _PROC.parent, num_cpus: int | None = None) -> bool:
    """Whether `num_threads` of ours would not have a CPU each at this moment, because other
    programs want them. Of the whole machine, also in a container; not where nothing tells."""
    # Three averages, then how many run or wait for a CPU, of how many that there are.
    running = _number((_words(proc / "loadavg").split() + [""] * 4)[3].partition("/")[0])
    room = (num_cpus or os.cpu_count() or 1) - num_threads
    if running is None or running - 1 <= room:
        return False
    threads = (proc / "self" / "task").glob("*/stat")
    own = sum(_words(thread).rpartition(")")[2].startswith(" R") for thread in threads)
    return running - max(1, own) > room


def num_memory_kills(proc: Path = _PROC.parent, groups: Path = _GROUPS) -> int:
    """How many processes the system has killed for memory so far, as far as it tells here."""
    counts = [_fields(proc / "vmstat").get("oom_kill", 0)]
    for group in _own_groups("memory", proc / "self", groups):
        for name in ("memory.events", "memory.oom_control"):
            counts.append(_fields(group / name).get("oom_kill", 0))
    return max(counts)


def _machine_limit(proc: Path) -> Iterator[MemoryLimit]:
    kib = _fields(proc / "meminfo", ":")
    if total := kib.get("MemTotal", 0) << 10:
        available, swap = kib.get("MemAvailable", 0) << 10, kib.get("SwapFree", 0) << 10
        yield MemoryLimit("this machine", total, available, swap_bytes=swap)


def _group_limits(proc: Path, groups: Path) -> Iterator[MemoryLimit]:
    host = next((limit.total for limit in _machine_limit(proc)), None)
    if host is None:
        return
    for group in _own_groups("memory", proc / "self", groups):
        for limit_name, used_name in (
            ("memory.max", "memory.current"),
            ("memory.high", "memory.current"),
            ("memory.limit_in_bytes", "memory.usage_in_bytes"),
        ):
            limit, used = (_number(_words(group / name)) for name in (limit_name, used_name))
            if limit is not None and used is not None and limit <= host:
                left = limit - used + _kept_files(group)
                yield MemoryLimit("its container or service", limit, max(0, min(left, limit)))


def _kept_files(group: Path) -> int:
    """Bytes of files that a group has in memory, and gives up when memory is wanted. In version 1
    the figures of the groups inside are only in those that are called total."""
    stat = _fields(group / "memory.stat")
    names = ("inactive_file", "active_file")
    return sum(stat.get(f"total_{name}", stat.get(name, 0)) for name in names)


def _shell_memory(own: Path) -> Iterator[MemoryLimit]:
    """`ulimit -v` bounds all addresses, those of mapped files too; `ulimit -d` the data alone."""
    if sys.platform == "win32":
        return
    import resource

    used = _fields(own / "status", ":")
    for kind, option, name, counts_files in (
        (resource.RLIMIT_AS, "-v", "VmSize", True),
        (resource.RLIMIT_DATA, "-d", "VmData", False),
    ):
        limit = resource.getrlimit(kind)[0]
        if limit != resource.RLIM_INFINITY:
            left = max(0, limit - (used.get(name, 0) << 10))
            yield MemoryLimit(f"the shell's limit (ulimit {option})", limit, left, counts_files)


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


def _fields(file: Path, separator: str = " ") -> dict[str, int]:
    """The numbers of a file with a name and a number in each line."""
    lines = (line.partition(separator) for line in _words(file).splitlines())
    numbers = {name: _number(rest.strip().partition(" ")[0]) for name, _, rest in lines}
    return {name: number for name, number in numbers.items() if number is not None}


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
