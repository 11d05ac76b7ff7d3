"""What this machine could do at best: memory, disk and matrix rates, measured now."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from chatcache.bench.clock import settled_at
from chatcache.cache.tensors.link import Link

_BUFFER_BYTES = 1 << 28
_READ_BYTES = 1 << 22
_MATRIX = 2048
_GPU_MATRIX = 8192
_REPEATS = 5


@dataclass(frozen=True, slots=True)
class Limits:
    """Bytes per second of reading memory, copying memory and reading disk; flops per second. Of a
    GPU its own memory counts, and the bus: bytes per second to it and back, from locked pages."""

    memory_read: float
    memory_copy: float
    disk_read: float
    matmul: float
    to_device: float | None = None
    to_host: float | None = None


def measure_limits(
    files: Sequence[Path], dtype: torch.dtype, device: torch.device, link: Link | None = None
) -> Limits:
    """The best of five each; `files` are read for the disk rate, `link` is to a device with memory
    of its own."""
    source = torch.ones(_BUFFER_BYTES // 8, dtype=torch.int64, device=device)
    target = torch.empty_like(source)
    size = _GPU_MATRIX if device.type == "cuda" else _MATRIX
    left = torch.ones((size, size), dtype=dtype, device=device)
    to_device = to_host = None
    if link is not None:
        host = link.pinned(_BUFFER_BYTES).view(torch.int64)
        to_device = _BUFFER_BYTES / _best(lambda: target.copy_(host, non_blocking=True), device)
        to_host = _BUFFER_BYTES / _best(lambda: host.copy_(source, non_blocking=True), device)
    return Limits(
        memory_read=_BUFFER_BYTES / _best(source.sum, device),
        memory_copy=_BUFFER_BYTES / _best(lambda: target.copy_(source), device),
        disk_read=_disk_read_rate(files),
        matmul=2 * size**3 / _best(lambda: left @ left, device),
        to_device=to_device,
        to_host=to_host,
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


def _best(call: Callable[[], object], device: torch.device) -> float:
    best = float("inf")
    for _ in range(_REPEATS):
        began = settled_at(device)
        call()
        best = min(best, settled_at(device) - began)
    return best
