"""What a chat was started with, and what it acts on. The same for the terminal and plain mode."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from chatcache.frontend.progress import Report
from chatcache.personas import Persona
from chatcache.remotes import Remotes

if TYPE_CHECKING:
    from chatcache.chat.bill import PriceList
    from chatcache.chat.service import ChatService
    from chatcache.frontend.desk import SegmentDesk
    from chatcache.frontend.form_shelf import FormShelf
    from chatcache.frontend.sampling import Sampling

Examine = Callable[[Report], Iterable[str]]


@dataclass(frozen=True, slots=True)
class ChatOptions:
    """`clock` gives Unix time; tests freeze it. `drafts_path` None: drafts end with the program;
    `last_chat_path` None: the next start shows the chat that was used last."""

    session_ref: str | None = None
    personas: Mapping[str, Persona] = field(default_factory=dict)
    keys: Mapping[str, str] = field(default_factory=dict)
    theme: str | None = None
    panel: str = "full"
    has_motion: bool = True
    is_offline: bool = False
    remotes: Remotes = field(default_factory=dict)
    prices: PriceList | None = None
    forms: FormShelf | None = None
    examine: Examine | None = None
    keep_setting: Callable[[str, str], None] | None = None
    drafts_path: Path | None = None
    last_chat_path: Path | None = None
    clock: Callable[[], float] = time.time


@dataclass(frozen=True, slots=True)
class Backstage:
    """Everything that a front end acts on. `desk` None: the cache is not on this machine."""

    service: ChatService
    sampling: Sampling
    desk: SegmentDesk | None = None
