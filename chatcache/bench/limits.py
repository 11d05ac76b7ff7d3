"""What this machine could do at best: memory, disk and matrix rates, measured now."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

_BUFFER_BYTES = 1 << 28
_READ_BYTES = 1 << 22
_MATRIX = 2048
_REPEATS = 5


@dataclass(frozen=True, slots=True)
class Limits:
    """Bytes per second of reading memory, copying memory and reading disk; flops per second."""

    memory_read: float
    memory_copy: float
    disk_read: float
    matmul: float


def measure_limits(files: Sequence[Path], dtype: torch.dtype) -> Limits:
    """The best of five each; `files` are read for the disk rate."""
    source = torch.ones(_BUFFER_BYTES // 8, dtype=torch.int64)
    target = torch.empty_like(source)
    left = torch.ones((_MATRIX, _MATRIX), dtype=dtype)
    return Limits(
        memory_read=_BUFFER_BYTES / _best(source.sum),
        memory_copy=_BUFFER_BYTES / _best(lambda: target.copy_(source)),
        disk_read=_disk_read_rate(files),
        matmul=2 * _MATRIX**3 / _best(lambda: left @ left),
    )


def drop_page_cache(path: Path) -> None:
    """Ask the kernel to forget the cached pages of a file, so that the next read is a real one."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(fd)


def resident_bytes() -> int:
    """The memory of this process that is in use; 0 where the system does not say."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except (OSError, ValueError, IndexError):
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")


def _disk_read_rate(paths: Sequence[Path]) -> float:
    for path in paths:
        drop_page_cache(path)
    buffer, total = bytearray(_READ_BYTES), 0
    began = time.perf_counter()
    for path in paths:
        with path.open("rb", buffering=0) as file:
            while num_read := file.readinto(buffer):
                total += num_read
    return max(total, 1) / max(time.perf_counter() - began, 1e-9)


def _best(call: Callable[[], object]) -> float:
    best = float("inf")
    for _ in range(_REPEATS):
        began = time.perf_counter()
        call()
        best = min(best, time.perf_counter() - began)
    return best
