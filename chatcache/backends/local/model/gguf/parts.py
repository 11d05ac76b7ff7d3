"""Which files make up one GGUF model: a single file, or parts that say in their names how many.

Owns file names and the first bytes of a file. What is in a header is read in `header`.
"""

from __future__ import annotations

import re
from pathlib import Path

from chatcache.errors import ModelLoadError

MAGIC = b"GGUF"
SUFFIX = ".gguf"
_PART = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.gguf", re.IGNORECASE)
# More than any publisher makes; a name may say anything.
_MAX_PARTS = 1000


def is_gguf(path: Path) -> bool:
    """Whether a file is to be read as GGUF: by its first bytes, because blobs of a store have no
    suffix; by its suffix if it is damaged or cannot be read, so that whoever reads it says why."""
    if path.suffix.lower() == SUFFIX:
        return True
    try:
        with path.open("rb") as file:
            return file.read(len(MAGIC)) == MAGIC
    except OSError:
        return False


def parts_of(path: Path) -> list[Path]:
    """All files of the model that `path` is one part of, in order, there or not."""
    found = _PART.fullmatch(path.name)
    if found is None or not 1 <= int(found[3]) <= _MAX_PARTS:
        return [path]
    # As the name itself is written: on some systems `.GGUF` is another file than `.gguf`.
    suffix = path.name[-len(SUFFIX) :]
    names = (f"{found[1]}-{number:05}-of-{found[3]}" for number in range(1, int(found[3]) + 1))
    return [path.with_name(f"{name}{suffix}") for name in names]


def whole_parts(path: Path) -> list[Path]:
    """`parts_of`, all of them there. Raises ModelLoadError, naming those that are missing."""
    parts = parts_of(path)
    missing = [part.name for part in parts if not part.is_file()]
    if missing and path.is_symlink() and len(parts) > 1:
        beside = parts_of(path.resolve())  # the others may lie where the link leads to
        if len(beside) == len(parts) and all(part.is_file() for part in beside):
            return beside
    if missing:
        raise ModelLoadError(
            f"{path} is one of {len(parts)} parts, and lacks {', '.join(missing)}."
            if len(parts) > 1
            else f"{path} is missing.",
            "Download the rest into the same directory."
            if len(parts) > 1
            else "Check the path, or use --model builtin.",
        )
    return parts


def stem(name: str) -> str:
    """The name of a file without its suffix, and without the number of its part."""
    found = _PART.fullmatch(name)
    if found is not None:
        return found[1]
    return name[: -len(SUFFIX)] if name.lower().endswith(SUFFIX) else name
