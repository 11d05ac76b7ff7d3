"""Whether the segments below a cache directory may be used: only those of this user.

Another user could plant files in a directory of theirs, and could read what is written there. Root
may use everything, because files that are mounted into a container often have other owners.
"""

from __future__ import annotations

import errno
import os
from pathlib import Path


def foreign_owner(directory: Path) -> int | None:
    """The id of the user whose directory it is, if that is another one; None if there is none.

    Raises OSError if that cannot be told."""
    if not hasattr(os, "geteuid"):
        return None
    try:
        owner = directory.stat().st_uid
    except (FileNotFoundError, NotADirectoryError):
        return None
    return None if os.geteuid() in (0, owner) else owner


def check_owner(cache_dir: Path, namespace: str = "") -> None:
    """Raises OSError if the segments, or those of one namespace, belong to another user."""
    for directory in (cache_dir / "segments", cache_dir / "segments" / namespace):
        owner = foreign_owner(directory)
        if owner is not None:
            raise OSError(errno.EPERM, f"it belongs to another user (uid {owner})", str(directory))


def check_readable(cache_dir: Path) -> None:
    """Raises OSError if the segments are not ours, or cannot be listed."""
    check_owner(cache_dir)
    try:
        with os.scandir(cache_dir / "segments"):
            return
    except FileNotFoundError:
        return
