"""Where compiled kernels are kept: the one place of chatcache's that holds code for a processor.

Code is kept below a directory named after all that it depends on, so that another version of these
sources, or of numba, never runs it. It belongs to this user alone, like the cache around it; one
that others could write into is not used. numba reads the variable when it is imported, so this is
said before, and without it.
"""

from __future__ import annotations

import hashlib
import logging
import os
import stat
from importlib.metadata import version
from pathlib import Path

log = logging.getLogger(__name__)

VARIABLE = "NUMBA_CACHE_DIR"


def keep_in(directory: Path) -> bool:
    """Keep compiled kernels below `directory`, or below the one that the environment names.
    Returns whether there are some; where it cannot be, each process compiles them anew."""
    place, digest = Path(os.environ.get(VARIABLE) or directory), _digest()
    if place.name != digest:  # the environment of a process that another one started has it
        place = place / digest
    try:
        place.mkdir(parents=True, exist_ok=True, mode=0o700)
        status = place.stat()
    except OSError as error:
        log.info("compiled kernels are not kept: %s", error)
        return False
    if status.st_uid != os.getuid() or status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        log.warning("%s belongs to others, too: compiled kernels are not kept", place)
        return False
    os.environ[VARIABLE] = str(place)
    return next(place.rglob("*.nbi"), None) is not None


def _digest() -> str:
    """Of the sources, and of the compiler."""
    digest = hashlib.blake2b(
        version("numba").encode() + version("llvmlite").encode(), digest_size=8
    )
    for source in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(source.read_bytes())
    return digest.hexdigest()
