"""What a store says of a model that it keeps, before the file itself is looked at."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

StorePlace = Literal["package", "hub", "ollama", "LM Studio", "llama.cpp"]


@dataclass(frozen=True, slots=True)
class StoredModel:
    """`name` is what `--model` takes. `path` is its file, or the first of its parts; None if it has
    none. `problem` is why it cannot be used, and `advice` what then."""

    name: str
    place: StorePlace
    path: Path | None = None
    num_bytes: int = 0
    problem: str = ""
    advice: str = ""
