"""Pins: the ids of segments of one namespace that no budget and no time to live takes away.

It owns one small file beside the segments. A running engine notices what a command changes: before
each use it compares the inode, the time and the size of the file.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from chatcache.atomic_write import write_atomically

log = logging.getLogger(__name__)

FILE_NAME = "pins.json"
_VERSION = 1


class PinBook:
    """The pins of the namespace whose segments are in `directory`."""

    def __init__(self, directory: Path):
        self._directory = directory
        self._path = directory / FILE_NAME
        self._stamp: tuple[int, int, int] | None = None
        self._ids: frozenset[str] = frozenset()

    def read(self) -> frozenset[str]:
        """What is pinned now. A file that cannot be read changes nothing: the last word counts."""
        try:
            status = self._path.stat()
        except FileNotFoundError:
            self._stamp, self._ids = None, frozenset()
            return self._ids
        except OSError as error:
            log.warning("the pins in %s cannot be read: %s", self._path, error)
            return self._ids
        stamp = (status.st_ino, status.st_mtime_ns, status.st_size)
        if stamp != self._stamp:
            self._stamp = stamp
            try:
                self._ids = frozenset(map(str, json.loads(self._path.read_text())["segments"]))
            except (OSError, ValueError, KeyError, TypeError) as error:
                log.warning("the pins in %s cannot be read: %s", self._path, error)
        return self._ids

    def add(self, segment_ids: Iterable[str]) -> int:
        """Pin segments; returns how many were not pinned before. Raises OSError."""
        with self._locked() as before:
            after = before | frozenset(segment_ids)
            self._write(after)
            return len(after) - len(before)

    def remove(self, segment_ids: Iterable[str]) -> int:
        """Unpin segments; returns how many were pinned before. Raises OSError."""
        with self._locked() as before:
            after = before - frozenset(segment_ids)
            if after != before:
                self._write(after)
            return len(before) - len(after)

    @contextlib.contextmanager
    def _locked(self) -> Iterator[frozenset[str]]:
        """One at a time, so that two commands lose no pin; the lock ends with its process."""
        fd = os.open(self._directory, os.O_RDONLY)
        try:
            with contextlib.suppress(OSError):  # not all network file systems can lock
                fcntl.flock(fd, fcntl.LOCK_EX)
            yield self.read()
        finally:
            os.close(fd)

    def _write(self, segment_ids: frozenset[str]) -> None:
        content = json.dumps({"version": _VERSION, "segments": sorted(segment_ids)}, indent=1)
        write_atomically(self._path, content.encode(), is_durable=True)
        self._ids = segment_ids
