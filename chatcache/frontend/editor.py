"""Writing a text in the user's own editor."""

from __future__ import annotations

import os
import shlex
import subprocess
import tempfile
from pathlib import Path

from chatcache.errors import UsageError

_FALLBACK = "vi"


def edit_text(text: str) -> str:
    """Open the editor on a private file; returns what was saved.

    Raises UsageError when the editor cannot be started or fails; the text is then as it was.
    """
    command = os.environ.get("VISUAL") or os.environ.get("EDITOR") or _FALLBACK
    with tempfile.TemporaryDirectory(prefix="chatcache-") as directory:
        path = Path(directory) / "message.md"
        path.write_text(text, encoding="utf-8")
        try:
            subprocess.run([*shlex.split(command), str(path)], check=True)
            return path.read_text(encoding="utf-8").rstrip("\n")
        except (OSError, ValueError, subprocess.CalledProcessError) as error:
            raise UsageError(
                f"The editor {command!r} did not work.", "Set VISUAL or EDITOR."
            ) from error
