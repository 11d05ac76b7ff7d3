"""What is told of an engine process: to listings, to the panel, and to `ask --json`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from chatcache.cache.views import TierUse

EngineState = Literal["loading", "ready", "ending"]


@dataclass(frozen=True, slots=True)
class EngineStatus:
    """An engine process as it is now. `memory_bytes` is what it holds that no file backs, and
    `front_ends` are those connected to it. `keep_alive_seconds` is how long it stays without any
    (None: for ever), `seconds_left` what is left of that (None: it is in use, or stays for ever).
    `quantization` is the word for how its weights are packed, if they are. `ram` and `vram` are
    what segments take of its memory and of its GPU's, `pinned_bytes` are locked for copies between
    the two; None: it is not known yet, or there is no such thing.
    """

    pid: int
    version: str
    model: str
    adapter: str | None
    device: str
    dtype: str
    cache_dir: str
    state: EngineState
    started_at: float
    memory_bytes: int
    front_ends: tuple[str, ...]
    is_answering: bool
    keep_alive_seconds: float | None
    seconds_left: float | None
    quantization: str = ""
    ram: TierUse | None = None
    vram: TierUse | None = None
    pinned_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class EngineUse:
    """How a front end came to its engine. `is_resident`: it outlives the front end; `is_started`:
    it was started by this one. `load_ms` was waited for the model, `wait_ms` for other chats."""

    is_resident: bool
    is_started: bool
    wait_ms: float
    load_ms: float
