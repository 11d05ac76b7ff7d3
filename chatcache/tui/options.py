"""What the program was started with. Plain values, so that tests can say them in one line."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from chatcache.frontend.sampling import Sampling
from chatcache.personas import Persona

if TYPE_CHECKING:
    from chatcache.frontend.desk import SegmentDesk


@dataclass(frozen=True, slots=True)
class ChatOptions:
    """`clock` gives Unix time; tests freeze it. `drafts_path` None: drafts end with the program."""

    session_ref: str | None = None
    sampling: Sampling = field(default_factory=Sampling)
    personas: Mapping[str, Persona] = field(default_factory=dict)
    keys: Mapping[str, str] = field(default_factory=dict)
    theme: str | None = None
    panel: str = "full"
    has_motion: bool = True
    is_offline: bool = False
    desk: SegmentDesk | None = None
    examine: Callable[[], Iterable[str]] | None = None
    set_default_model: Callable[[str], None] | None = None
    drafts_path: Path | None = None
    clock: Callable[[], float] = time.time
