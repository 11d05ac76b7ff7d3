"""What stands in place of a file that was not really fetched: a pointer, or the page of an error.

Owns how such files begin, without torch.
"""

from __future__ import annotations

from pathlib import Path

_STAND_INS = (
    (b"version https://git-lfs", "is only a pointer of git LFS, not the file itself"),
    (b"# xet version", "is only a pointer of git Xet, not the file itself"),
    (b"/annex/objects/", "is only a pointer of git-annex, not the file itself"),
    (b"<!doctype html", "is a web page, not the file itself"),
    (b"<html", "is a web page, not the file itself"),
)
_HEAD_BYTES = 64


def stand_in(file: Path) -> str:
    """What a file is instead of itself, as words that go on after its name; "" if it is not."""
    try:
        with file.open("rb") as opened:
            head = opened.read(_HEAD_BYTES).lstrip().lower()
    except OSError:
        return ""  # whoever reads it says so
    return next((words for start, words in _STAND_INS if head.startswith(start)), "")
