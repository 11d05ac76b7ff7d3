"""Damaged segment files, set aside: neither read again nor lost to inspection, and never too many.

<cache-dir>/quarantine/<namespace>-<name of the segment's file>
"""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from pathlib import Path

MAX_FILES = 100
MAX_BYTES = 1 << 30


@dataclass(frozen=True, slots=True)
class QuarantineUse:
    num_bytes: int
    num_files: int


class Quarantine:
    """The files of all namespaces below `cache_dir` that were set aside."""

    def __init__(self, cache_dir: Path):
        self._directory = cache_dir / "quarantine"

    def put(self, path: Path, namespace: str) -> None:
        """Move a file here, and remove what was set aside first if there is too much by now.

        Raises OSError."""
        self._directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        target = self._directory / f"{namespace}-{path.name}"
        path.replace(target)
        with contextlib.suppress(OSError):
            os.utime(target)
        self._bound()

    def paths(self) -> list[Path]:
        """All files, by name."""
        return sorted(self._directory.glob("*.safetensors"))

    def names(self, namespace: str) -> list[str]:
        """The names that the files of one namespace had."""
        prefix = f"{namespace}-"
        found = self._directory.glob(f"{prefix}*.safetensors")
        return sorted(path.name.removeprefix(prefix) for path in found)

    def use(self) -> QuarantineUse:
        found = self._stamped()
        return QuarantineUse(sum(num_bytes for _, num_bytes, _ in found), len(found))

    def _bound(self) -> None:
        found = sorted(self._stamped(), reverse=True)
        num_bytes = 0
        for index, (_, size, path) in enumerate(found):
            num_bytes += size
            if index >= MAX_FILES or num_bytes > MAX_BYTES:
                with contextlib.suppress(OSError):
                    path.unlink()

    def _stamped(self) -> list[tuple[float, int, Path]]:
        """When each was set aside (Unix time), its size in bytes, and its path."""
        found = []
        for path in self.paths():
            with contextlib.suppress(OSError):
                status = path.stat()
                found.append((status.st_mtime, status.st_size, path))
        return found
