"""What a path means that a person has written, and where this system wants a program's files.

Knows no file of chatcache's."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

from chatcache.errors import UsageError


def path_of(name: str) -> Path:
    """The path; `~` and `~USER` are homes. That of a user who does not exist stays as it is: it
    leads nowhere, which is for whoever opens it to say."""
    return Path(os.path.expanduser(name))  # noqa: PTH111 - pathlib's raises then


def default_directory(
    kind: Literal["data", "cache", "config", "log"], without_home: Path | None = None
) -> Path:
    """Where files of a kind belong. A user without a home has them below `without_home`.

    Raises UsageError where there is neither."""
    import platformdirs

    user_path = {
        "data": platformdirs.user_data_path,
        "cache": platformdirs.user_cache_path,
        "config": platformdirs.user_config_path,
        "log": platformdirs.user_log_path,
    }[kind]
    try:
        return user_path("chatcache")
    except RuntimeError as error:  # no HOME, and nobody knows this user
        if without_home is not None:
            return without_home / kind
        raise UsageError(
            "There is no home directory: HOME names none, and this system does not know the user.",
            "Set HOME, or choose a directory with --data-dir or CHATCACHE_DATA_DIR.",
        ) from error
