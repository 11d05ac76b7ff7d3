"""What the end of an engine process means: what is said of it, and whether to start another one.

Owns the words and the decision. It starts and ends nothing.
"""

from __future__ import annotations

import signal
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path

from chatcache.backends.local.engine.child_process import exit_words
from chatcache.errors import EngineDiedError
from chatcache.formatting import size
from chatcache.machine import allowance

MAX_RESTARTS = 3
RESTART_WINDOW_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class Death:
    error: EngineDiedError
    may_restart: bool


@dataclass
class Deaths:
    """The deaths of the engines of one model, by a monotonic clock in seconds."""

    model: str
    log_path: Path
    _times: deque[float] = field(default_factory=deque)

    def note(self, code: int | None, now: float, *, was_loading: bool) -> Death:
        """An engine has ended with `code`, though nobody asked it to; while it loaded its model, if
        `was_loading`. None: only whoever started it knows the code.

        A load that the system killed is not repeated: the memory would be full again.
        """
        if was_loading and code == -signal.SIGKILL:
            return Death(self._killed_by_memory(), may_restart=False)
        self._times.append(now)
        while now - self._times[0] > RESTART_WINDOW_SECONDS:
            self._times.popleft()
        how = "" if code is None else f" ({exit_words(code)})"
        error = EngineDiedError(
            f"The engine process ended unexpectedly{how}.",
            f"Nothing that was said is lost; {self.log_path} may tell why.",
        )
        return Death(error, may_restart=len(self._times) <= MAX_RESTARTS)

    def _killed_by_memory(self) -> EngineDiedError:
        return EngineDiedError(
            f"The engine was killed while it loaded {self.model}: most likely the memory, of which "
            f"{size(allowance().memory_bytes)} may be used, was full.",
            "Choose a smaller model or --dtype bfloat16, or close other programs.",
        )
