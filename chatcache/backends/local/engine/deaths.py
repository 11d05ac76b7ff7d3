"""What the end of an engine process means: what is said of it, and whether to start another one.

Owns the words and the decision. It starts and ends nothing.
"""

from __future__ import annotations

import signal
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from chatcache.backends.local.engine.child_process import exit_words
from chatcache.errors import EngineDiedError
from chatcache.formatting import size
from chatcache.machine import allowance, memory_limits

MAX_RESTARTS = 3
RESTART_WINDOW_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class Death:
    error: EngineDiedError
    may_restart: bool


@dataclass
class Deaths:
    """The deaths of the engines of one model, by a monotonic clock in seconds. `needed_bytes`
    counts what the model takes in memory (0: not known)."""

    model: str
    log_path: Path
    needed_bytes: Callable[[], int] = lambda: 0
    _times: deque[float] = field(default_factory=deque)

    def note(
        self, code: int | None, now: float, *, was_loading: bool, was_memory_full: bool = False
    ) -> Death:
        """An engine has ended with `code`, though nobody asked it to; while it loaded its model, if
        `was_loading`. None: only whoever started it knows the code. `was_memory_full`: the system
        says that it has killed for memory meanwhile.

        A load that the system killed is not repeated: the memory would be full again. One that
        ended without a word, and that others have started, was killed for all that is known here;
        of many front ends each would repeat it.
        """
        if was_loading and (code in (None, -signal.SIGKILL) or was_memory_full):
            return Death(self._killed_by_memory(is_sure=was_memory_full), may_restart=False)
        self._times.append(now)
        while now - self._times[0] > RESTART_WINDOW_SECONDS:
            self._times.popleft()
        how = "" if code is None else f" ({exit_words(code)})"
        if was_memory_full:
            how = " (killed: the memory was full)"
        error = EngineDiedError(
            f"The engine process ended unexpectedly{how}.",
            f"Nothing that was said is lost; {self.log_path} may tell why.",
        )
        return Death(error, may_restart=len(self._times) <= MAX_RESTARTS)

    def _killed_by_memory(self, *, is_sure: bool) -> EngineDiedError:
        needed, left = self.needed_bytes(), [limit.available for limit in memory_limits()]
        free = size(min(left, default=allowance().memory_bytes))
        needs = f"it needs about {size(needed)}, and" if needed else "only"
        return EngineDiedError(
            f"The engine was killed while it loaded {self.model}, "
            f"{'for' if is_sure else 'probably for'} memory: {needs} {free} can be had now.",
            "It is not tried again by itself. Choose a smaller model, --dtype bfloat16 or "
            "--quantize 4bit, or close other programs.",
        )
