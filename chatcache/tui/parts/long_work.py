"""Work that may take a while: done in a thread, its progress in the status bar, ended by Esc.

Owns what is going on, one at a time. What the work is, is for the commands.
"""

from __future__ import annotations

from collections.abc import Callable

from chatcache.errors import UsageError
from chatcache.frontend.progress import CalledOffError, Progress, Report
from chatcache.tui.stage import Result, Stage

# Work that is over before the first look at it is never shown.
LOOK_SECONDS = 0.1


class LongWork:
    """The long work of one chat screen."""

    def __init__(self, stage: Stage) -> None:
        self._stage = stage
        self._now: Progress | None = None
        self._is_stopped = False
        self.shown: Progress | None = None

    async def run(self, stage: str, work: Callable[[Report], Result]) -> Result | None:
        """What `work` returns; None when it was called off, which is said.

        Raises UsageError while other work is going on, and what the work raises."""
        if self._now is not None:
            raise UsageError("Something else is still being done.", "Esc stops it.")
        self._now, self._is_stopped = Progress(stage), False
        looking = self._stage.set_interval(LOOK_SECONDS, self._look)
        try:
            return await self._stage.ask(work, self._report)
        except CalledOffError:
            self._stage.toast("Called off.")
            return None
        finally:
            looking.stop()
            self._now = self.shown = None
            self._stage.refresh_status()

    def stop(self) -> bool:
        """Call it off at its next step; False when nothing is going on."""
        if self._now is None:
            return False
        self._is_stopped = True
        self._now = Progress("stopping")
        self._look()
        return True

    def _report(self, stage: str, done: int = 0, total: int = 0, *, is_bytes: bool = False) -> None:
        """Called in the thread of the work."""
        if self._is_stopped:
            raise CalledOffError
        self._now = Progress(stage, done, total, is_bytes)

    def _look(self) -> None:
        if self.shown != self._now:
            self.shown = self._now
            self._stage.refresh_status()
