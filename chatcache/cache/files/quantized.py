"""Models in fewer bits, kept beside the segments: how much they take, and which of them go.

<cache-dir>/quantized/<key>/model.safetensors, and a file `used` whose time says when a load last
used it; <cache-dir>/quantizing.json says how quickly the last ones were made. What is in them is
known to whoever makes them; all of it can be made again.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from chatcache.atomic_write import remove_leftovers, write_atomically

FILE = "model.safetensors"
UNUSED_DAYS = 30
_USED = "used"
_SPEEDS = "quantizing.json"


@dataclass(frozen=True, slots=True)
class QuantizedUse:
    num_bytes: int
    num_models: int


class QuantizedModels:
    """The quantised models below `cache_dir`. Nothing here raises OSError."""

    def __init__(self, cache_dir: Path) -> None:
        self._directory = cache_dir / "quantized"

    def folder(self, key: str) -> Path:
        return self._directory / key

    def note_use(self, folder: Path) -> None:
        """Beside the file, whose own time says whether somebody wrote into it."""
        with contextlib.suppress(OSError):
            (folder / _USED).touch(mode=0o600)

    def size(self, key: str) -> int:
        """The bytes of one; 0: it is not there."""
        return _size(self.folder(key) / FILE)

    def note_speed(self, form: str, weights_per_second: float) -> None:
        noted = self._speeds() | {form: weights_per_second}
        with contextlib.suppress(OSError):
            write_atomically(self._directory.with_name(_SPEEDS), json.dumps(noted).encode())

    def speed(self, form: str) -> float | None:
        """Weights per second of the last time; None: no model was made into this form here yet."""
        noted = self._speeds().get(form)
        return float(noted) if isinstance(noted, int | float) and noted > 0 else None

    def _speeds(self) -> dict[str, Any]:
        try:
            noted = json.loads((self._directory.with_name(_SPEEDS)).read_bytes())
        except (OSError, ValueError):
            return {}
        return noted if isinstance(noted, dict) else {}

    def use(self) -> QuantizedUse:
        sizes = [_size(folder / FILE) for folder in self._folders()]
        return QuantizedUse(sum(sizes), sum(size > 0 for size in sizes))

    def paths(self) -> list[Path]:
        """All files, also those that only say when a model was used."""
        found: list[Path] = []
        for folder in self._folders():
            with contextlib.suppress(OSError):
                found += [file for file in folder.iterdir() if file.is_file()]
        return found

    def unused(self, days: float = UNUSED_DAYS) -> list[Path]:
        """The files of those that no load has used for so long."""
        now = time.time()
        return [path for path in self.paths() if now - _last_used(path.parent) > days * 86400]

    def tidy(self) -> None:
        """Remove what killed writers left, and folders with nothing in them."""
        for folder in self._folders():
            with contextlib.suppress(OSError):
                remove_leftovers(folder)
                if [file.name for file in folder.iterdir()] in ([], [_USED]):
                    (folder / _USED).unlink(missing_ok=True)
                    folder.rmdir()

    def _folders(self) -> Iterator[Path]:
        with contextlib.suppress(OSError):
            yield from [path for path in self._directory.iterdir() if path.is_dir()]


def _last_used(folder: Path) -> float:
    """Of what has just been made without a note, the time of the file."""
    for name in (_USED, FILE):
        with contextlib.suppress(OSError):
            return (folder / name).stat().st_mtime
    return time.time()


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0
