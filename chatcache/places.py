"""What a path means that a person has written. Knows no directory of its own."""

from __future__ import annotations

import os
from pathlib import Path


def path_of(name: str) -> Path:
    """The path; `~` and `~USER` are homes. That of a user who does not exist stays as it is: it
    leads nowhere, which is for whoever opens it to say."""
    return Path(os.path.expanduser(name))  # noqa: PTH111 - pathlib's raises then
