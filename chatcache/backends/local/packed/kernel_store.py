"""Where compiled kernels are kept between processes, and whether what is there may be run.

This is the one thing in the cache directory that is executable, and what compiles it unpickles its
index. So it is read only from a directory that belongs to this user and that nobody else can write,
and only if each file is what was written there: its checksum lies beside it. All else is compiled
anew; nothing here is needed. Beside them lies what was found out about them.
Knows neither the compiler nor what a kernel is.
"""

from __future__ import annotations

import functools
import hashlib
import logging
import os
import shutil
import stat
import time
from enum import StrEnum
from importlib import metadata
from pathlib import Path

log = logging.getLogger(__name__)

KERNELS_VARIABLE = "CHATCACHE_KERNELS_DIR"  # another place than the cache directory
COMPILING = "compiling for this processor, once"  # what is said while it takes seconds
GPU_FOLDER = "triton"  # beside the processor's kernels: a folder for each kernel of a GPU
_SUFFIX, _VERDICT = ".b2", ".verdict"
_UNUSED_SECONDS = 7 * 24 * 3600.0


@functools.cache
def version() -> str:
    """Of all that compiled code depends on, beside the processor."""
    digest = hashlib.blake2b(metadata.version("numba").encode(), digest_size=8)
    for source in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(source.read_bytes())
    return digest.hexdigest()


class Verdict(StrEnum):
    """What was found out about compiled code, for one model on one processor."""

    RIGHT = "right"
    NO_STEP = "no step"  # there is none for this model
    STEP_IS_WRONG = "the step is wrong"
    KERNELS_ARE_WRONG = "the kernels are wrong"

    @property
    def is_wrong(self) -> bool:
        return self in (Verdict.STEP_IS_WRONG, Verdict.KERNELS_ARE_WRONG)


class KernelStore:
    """A directory with one below it for each version of what compiles."""

    def __init__(self) -> None:
        self._directory: Path | None = None
        self._place: Path | None = None

    def keep_in(self, directory: Path | None) -> None:
        """Keep kernels below `directory` from now on; to be called before the first is compiled."""
        self._directory, self._place = directory, None

    @property
    def has_kernels(self) -> bool:
        """Whether those of the processor are kept: a process can have them without compiling."""
        if self._directory is None:
            return False
        return any(GPU_FOLDER not in path.parts for path in _files(self._directory / version()))

    def open(self) -> Path | None:
        """Where kernels of this version are, without those that are damaged; None if nowhere."""
        if self._directory is None:
            return None
        place = self._directory / version()
        if self._place == place:
            return place
        try:
            for folder in (self._directory.parent, self._directory, place):
                folder.mkdir(mode=0o700, exist_ok=True)
            _check_owner(self._directory)
            _check_owner(place)
            os.utime(place)
            _remove_damaged(place)
            _remove_unused(self._directory)
        except OSError as error:
            self.give_up(error)
            return None
        self._place = place
        return place

    def verdict(self, key: str) -> Verdict | None:
        """What was found out about kernels of this version; None: nothing is known."""
        place = self.open()
        return None if place is None else _verdict_in(place / f"{key}{_VERDICT}")

    def keep_verdict(self, key: str, verdict: Verdict) -> None:
        place = self.open()
        if place is None:
            return
        path = place / f"{key}{_VERDICT}"
        try:
            temporary = path.with_name(f"{path.name}.tmp.{os.getpid()}")
            temporary.write_text(verdict)
            temporary.replace(path)
        except OSError as error:
            self.give_up(error)
            return
        self.seal()

    def give_up(self, error: Exception) -> None:
        """Keep nothing in this process: the directory cannot be used, or the disk is full."""
        log.info("compiled kernels are not kept: %s", error)
        self._directory = self._place = None

    def seal(self) -> None:
        """Write the checksums of what was compiled."""
        if self._place is None:
            return
        try:
            for path in _files(self._place):
                beside = _beside(path)
                if not beside.exists() or beside.stat().st_mtime_ns < path.stat().st_mtime_ns:
                    beside.write_bytes(_digest(path))
        except FileNotFoundError:  # another process replaces it at this moment, and seals it
            return
        except OSError as error:
            self.give_up(error)


STORE = KernelStore()


def num_refused(directory: Path) -> int:
    """Of how many models compiled code of this version is not used, because it is wrong."""
    found = map(_verdict_in, directory.glob(f"{version()}/*{_VERDICT}"))
    return sum(verdict is not None and verdict.is_wrong for verdict in found)


def _verdict_in(path: Path) -> Verdict | None:
    try:
        return Verdict(path.read_text())
    except (OSError, ValueError):
        return None


def _check_owner(directory: Path) -> None:
    """Raises PermissionError if others could have written there."""
    status = os.lstat(directory)
    if not stat.S_ISDIR(status.st_mode):
        raise PermissionError(f"{directory} is no directory")
    if status.st_uid != os.geteuid():
        raise PermissionError(f"{directory} belongs to another user")
    if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise PermissionError(f"{directory} can be written by others")


def _files(place: Path) -> list[Path]:
    """All files that are no checksums and are not being written."""
    return [
        path
        for path in place.rglob("*")
        if path.is_file() and path.suffix != _SUFFIX and ".tmp." not in path.name
    ]


def _beside(path: Path) -> Path:
    return path.with_name(path.name + _SUFFIX)


def _digest(path: Path) -> bytes:
    return hashlib.blake2b(path.read_bytes(), digest_size=32).digest()


def _remove_damaged(place: Path) -> None:
    for path in _files(place):
        beside = _beside(path)
        if not beside.is_file() or beside.read_bytes() != _digest(path):
            log.info("%s is not what was written: it is compiled anew", path)
            path.unlink(missing_ok=True)
            if path.parent.parent.name == GPU_FOLDER:  # what is left of it would be of no use
                shutil.rmtree(path.parent, ignore_errors=True)


def _remove_unused(directory: Path) -> None:
    """Versions that nobody has used for some time."""
    for folder in directory.iterdir():
        if time.time() - folder.lstat().st_mtime > _UNUSED_SECONDS:
            shutil.rmtree(folder, ignore_errors=True)
