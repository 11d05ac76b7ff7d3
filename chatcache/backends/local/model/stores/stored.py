"""What a store says of a model that it keeps, before the file itself is looked at."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Place = Literal[
    "built in", "package", "hub", "ollama", "LM Studio", "llama.cpp", "file", "directory", "server"
]


@dataclass(frozen=True, slots=True)
class StoredModel:
    """`name` is what `--model` takes. `path` is its file, or the first of its parts; None if the
    name is to tell. `problem` is why it cannot be used, and `advice` what then."""

    name: str
    place: Place
    path: Path | None = None
    num_bytes: int = 0
    problem: str = ""
    advice: str = ""
