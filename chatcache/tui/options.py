"""What the program was started with. Plain values, so that tests can say them in one line."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from chatcache.backends.base import SamplingParams


@dataclass(frozen=True, slots=True)
class ChatOptions:
    """`clock` gives Unix time; tests freeze it. `drafts_path` None: drafts end with the program."""

    session_ref: str | None = None
    sampling: SamplingParams = field(default_factory=SamplingParams)
    think: bool | None = None
    keys: Mapping[str, str] = field(default_factory=dict)
    theme: str | None = None
    panel: str = "full"
    drafts_path: Path | None = None
    clock: Callable[[], float] = time.time
