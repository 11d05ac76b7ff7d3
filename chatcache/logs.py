"""The logs: files that only their owner reads, made when they are first needed.

Owns where records of the front end go: to that file, and never to the screen.
"""

from __future__ import annotations

import logging
import os
from io import TextIOWrapper
from pathlib import Path

LOGGER = "chatcache"
MAX_BYTES = 5 << 20
FORMAT = "%(asctime)s %(process)d %(name)s %(levelname)s %(message)s"


class PrivateLog(logging.FileHandler):
    """Appends to a file (0600) in a directory (0700). A log that cannot be written is left out."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, encoding="utf-8", errors="replace", delay=True)
        self.path = path
        self.has_failed = False
        self.setFormatter(logging.Formatter(FORMAT))

    def _open(self) -> TextIOWrapper:
        return os.fdopen(open_private(self.path), "a", encoding="utf-8", errors="replace")

    def emit(self, record: logging.LogRecord) -> None:
        try:
            super().emit(record)
        except OSError:  # the file is opened here, outside of what handleError guards
            self.has_failed = True

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - logging's name
        self.has_failed = True


def open_private(path: Path) -> int:
    """A descriptor that appends to a log, which only its owner may read. Raises OSError.

    It starts anew when it has grown large; one older log is kept."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    if path.exists() and path.stat().st_size > MAX_BYTES:
        path.replace(path.with_suffix(f"{path.suffix}.1"))
    return os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)


def send_log_to(path: Path) -> None:
    """Let everything that chatcache logs in this process go to one file, and nowhere else."""
    logger = logging.getLogger(LOGGER)
    logger.propagate = False
    for handler in list(logger.handlers):
        if isinstance(handler, PrivateLog):
            if handler.path == path:
                return
            logger.removeHandler(handler)
            handler.close()
    logger.addHandler(PrivateLog(path))


def log_unexpected(error: Exception, fallback: Path) -> Path | None:
    """Write a traceback to the log in force, or to `fallback` when none is.

    Returns the path of the log, None when it could not be written.
    """
    logger = logging.getLogger(LOGGER)
    if not any(isinstance(handler, PrivateLog) for handler in logger.handlers):
        send_log_to(fallback)
    logger.error("unexpected error", exc_info=error)
    for handler in logger.handlers:
        if isinstance(handler, PrivateLog) and not handler.has_failed:
            return handler.path
    return None
