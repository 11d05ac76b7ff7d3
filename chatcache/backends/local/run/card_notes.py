"""What was found out once about a model on a card, kept beside the segments of its namespace."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import torch

from chatcache.atomic_write import write_atomically


class CardNotes:
    """One value per card, by its name, in one JSON file. A file that cannot be read is empty, and
    one that cannot be written is left."""

    def __init__(self, path: Path):
        self._path = path

    def read(self, card: str) -> Any:
        """None: there is nothing."""
        return self._all().get(card)

    def write(self, card: str, value: int | str) -> None:
        found = {**self._all(), card: value}
        with contextlib.suppress(OSError):
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            write_atomically(self._path, json.dumps(found).encode())

    def _all(self) -> dict[str, Any]:
        try:
            return dict(json.loads(self._path.read_text()))
        except (OSError, ValueError, TypeError):
            return {}


def card_name(device: torch.device) -> str:
    """What a speed is a speed of."""
    if device.type == "cuda":
        return str(torch.cuda.get_device_name(device))
    return device.type
