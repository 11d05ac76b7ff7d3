"""Files that go into a message: finding them by a few letters, reading them, quoting them.

Owns what may be attached (text up to a limit) and how its text stands in the message. Knows nothing
of screens.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from chatcache.errors import NotFoundError, UsageError
from chatcache.formatting import one_line, size
from chatcache.places import path_of

MAX_BYTES = 1_000_000
MAX_LISTED = 20_000
_GIT_SECONDS = 5.0
_SKIPPED = frozenset({"node_modules", "__pycache__", "venv", "site-packages", "target", "dist"})


@dataclass(frozen=True, slots=True)
class Attachment:
    """The text of a file, ready to be put into a message."""

    name: str
    text: str
    num_bytes: int

    @property
    def placeholder(self) -> str:
        """What stands for it in the composer."""
        return f"[file {one_line(self.name)}: {size(self.num_bytes)}]"

    @property
    def quoted(self) -> str:
        return quoted(self.name, self.text)


def quoted(name: str, text: str) -> str:
    """A file's name and text, fenced by more backticks than it has in a row."""
    longest = max((len(run) for run in re.findall("`{3,}", text)), default=2)
    fence = "`" * (longest + 1)
    return f"File {one_line(name)}:\n{fence}\n{text.rstrip()}\n{fence}"


def read_attachment(name: str) -> Attachment:
    """Read a text file. Raises NotFoundError, or UsageError for what is no text or too long."""
    path = path_of(name)
    shown = one_line(name)
    try:
        if path.is_dir():
            raise UsageError(f"{shown} is a directory.", "Name a file in it.")
        if path.exists() and not path.is_file():
            raise UsageError(f"{shown} is a device or a pipe.", "Attach a file.")
        num_bytes = path.stat().st_size
        if num_bytes > MAX_BYTES:
            raise UsageError(
                f"{shown} has {size(num_bytes)}; at most {size(MAX_BYTES)} can be attached.",
                "Attach a part of it.",
            )
        content = path.read_bytes()
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise NotFoundError(f"{shown} cannot be read: {reason}.", "Check its name.") from error
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError:
        text = "\x00"
    if "\x00" in text:
        raise UsageError(f"{shown} is no text file.", "Only text in UTF-8 can be attached.")
    return Attachment(path.name, text, len(content))


def list_files(root: Path) -> list[str]:
    """The files below a directory, relative to it; what git ignores and hidden ones left out."""
    return _git_files(root) or _walked_files(root)


def _git_files(root: Path) -> list[str]:
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    try:
        done = subprocess.run(
            command, cwd=root, capture_output=True, timeout=_GIT_SECONDS, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return []
    names = done.stdout.decode("utf-8", "replace").split("\0")
    return [name for name in names if name][:MAX_LISTED]


def _walked_files(root: Path) -> list[str]:
    found: list[str] = []
    for directory, below, names in os.walk(root):
        below[:] = sorted(
            name for name in below if name not in _SKIPPED and not name.startswith(".")
        )
        relative = os.path.relpath(directory, root)
        place = "" if relative == "." else f"{relative}/"
        found += [f"{place}{name}" for name in sorted(names) if not name.startswith(".")]
        if len(found) >= MAX_LISTED:
            break
    return found[:MAX_LISTED]


def list_directory(typed: str) -> list[str]:
    """What a path that leads elsewhere (`/etc/ho`, `~/no`, `../x`) can go on with."""
    head, _, tail = typed.rpartition("/")
    place = path_of(head or "/")
    try:
        entries = sorted(place.iterdir(), key=lambda entry: entry.name)
    except OSError:
        return []
    names = [
        f"{head}/{entry.name}{'/' if entry.is_dir() else ''}"
        for entry in entries
        if entry.name.startswith(tail) and (tail.startswith(".") or not entry.name.startswith("."))
    ]
    return names[:MAX_LISTED]


def leads_elsewhere(typed: str) -> bool:
    """Is this a path of its own, not letters to look for below the working directory?"""
    return "/" in typed and typed.startswith(("/", "~", "./", "../"))


def best_matches(letters: str, names: Sequence[str], limit: int) -> list[str]:
    """The names that have these letters in this order, the most fitting first.

    In the file's own name beats in its directories; letters in a row beat scattered ones.
    """
    wanted = letters.casefold()
    pattern = re.compile(".*?".join(map(re.escape, wanted)))
    scored = []
    for index, name in enumerate(names):
        folded = name.casefold()
        last = folded.rpartition("/")[2]
        if wanted in last:
            rank = 0 if last.startswith(wanted) else 1
        elif wanted in folded:
            rank = 2
        elif pattern.search(last):
            rank = 3
        elif pattern.search(folded):
            rank = 4
        else:
            continue
        scored.append((rank, len(name), index))
    return [names[index] for _, _, index in sorted(scored)[:limit]]
