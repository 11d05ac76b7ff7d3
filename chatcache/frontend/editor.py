"""Files and texts in the user's own editor."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import tempfile
from pathlib import Path

from chatcache.errors import NotFoundError, UsageError

_USUAL = ("nano", "vim", "vi")


def edit_file(path: Path) -> None:
    """Open a file in $VISUAL or $EDITOR, else in one that is there; returns when it was left.

    Raises NotFoundError when no editor can be started, UsageError when it fails.
    """
    command = _command()
    try:
        code = subprocess.run([*command, str(path)], check=False).returncode
    except OSError as error:
        raise NotFoundError(
            f"The editor {command[0]!r} cannot be started: {error.strerror}.", "Set $EDITOR."
        ) from error
    if code != 0:
        raise UsageError(f"The editor {command[0]!r} ended with {code}.", "Check the file.")


def edit_text(text: str) -> str:
    """Open the editor on a private file; returns what was saved. Raises like `edit_file`."""
    with tempfile.TemporaryDirectory(prefix="chatcache-") as directory:
        path = Path(directory) / "message.md"
        path.write_text(text, encoding="utf-8")
        edit_file(path)
        try:
            return path.read_text(encoding="utf-8").rstrip("\n")
        except (OSError, ValueError) as error:
            raise UsageError("The editor left no text behind.", "Save it as UTF-8.") from error


def _command() -> list[str]:
    chosen = os.environ.get("VISUAL") or os.environ.get("EDITOR")
    try:
        words = shlex.split(chosen or "")
    except ValueError as error:
        raise UsageError(f"{chosen!r} is no command: {error}.", "Set $EDITOR.") from error
    if words:
        return words
    found = next((editor for editor in _USUAL if shutil.which(editor)), None)
    if found is None:
        raise NotFoundError("There is no editor.", "Set $EDITOR.")
    return [found]
