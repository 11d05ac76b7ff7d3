"""Takes in what the backend tells of itself: loading, ready, failed, the tiers, cache events.

Owns the subscription. Everything arrives in threads of the backend and is handled in the screen's.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from chatcache.backends.base import (
    Backend,
    BackendEvent,
    BackendFailed,
    CacheEvent,
    CacheSnapshot,
    EngineStatus,
    ModelLoading,
    ModelReady,
    Prepared,
    RestoreBegan,
)
from chatcache.tui.messages import (
    BackendChanged,
    ModelBecameReady,
    ModelGaveUp,
    RestoreShown,
    SegmentsChanged,
)
from chatcache.tui.panel.state import PanelState
from chatcache.tui.stage import Stage
from chatcache.tui.status import BackendStatus

# Loading is told no more often than this, so that keys have their turn.
PROGRESS_SECONDS = 0.1
# A restore that is over sooner is not worth a word.
RESTORE_SECONDS = 0.15


class Listening:
    """Keeps the status and the panel of one chat screen as the backend says."""

    def __init__(
        self, stage: Stage, backend: Backend | None, status: BackendStatus, panel: PanelState
    ) -> None:
        self._stage, self._backend = stage, backend
        self._status, self._panel = status, panel
        self._unsubscribe: Callable[[], None] | None = None
        self._told_at = 0.0
        self._restoring: RestoreBegan | None = None

    async def begin(self) -> None:
        if self._backend is not None:
            self._unsubscribe = await self._stage.ask(self._backend.subscribe, self._tell)

    def end(self) -> None:
        if self._unsubscribe is not None:
            self._unsubscribe()

    def _tell(self, event: BackendEvent) -> None:
        """Called in a thread of the backend."""
        if isinstance(event, ModelLoading) and 0 < event.done < event.total:
            if time.monotonic() - self._told_at < PROGRESS_SECONDS:
                return  # the next one is as good
            self._told_at = time.monotonic()
        self._stage.post_message(BackendChanged(event))

    def take(self, event: BackendEvent) -> None:
        """Show what was told, in the screen's thread."""
        if isinstance(event, CacheSnapshot):
            self._panel.snapshot = event
            self._stage.post_message(SegmentsChanged(event.segments))
        elif isinstance(event, CacheEvent):
            self._panel.events.append(event)
        elif isinstance(event, EngineStatus):
            self._panel.engine = event
        elif isinstance(event, Prepared):
            self._panel.idle.note(event)
            self.restored()
        elif isinstance(event, RestoreBegan):
            self._restoring = event
            self._stage.set_timer(RESTORE_SECONDS, lambda: self._show_restore(event))
        else:
            self._take_status(event)
        self._stage.refresh_panel()

    def _show_restore(self, event: RestoreBegan) -> None:
        if self._restoring is event:
            self._panel.restoring = event
            self._stage.post_message(RestoreShown(self._panel.restore_words))
            self._refresh()

    def restored(self) -> None:
        """What was being read from disk is there, or was given up."""
        self._restoring = None
        if self._panel.restoring is not None:
            self._panel.restoring = None
            self._refresh()

    def _refresh(self) -> None:
        self._stage.refresh_panel()
        self._stage.refresh_status()

    def _take_status(self, event: BackendEvent) -> None:
        self._status.absorb(event)
        self._panel.info = self._status.info
        if isinstance(event, ModelReady):
            self._stage.post_message(ModelBecameReady(event.info))
        elif isinstance(event, BackendFailed):
            self.restored()
            if not event.will_restart:
                self._stage.post_message(ModelGaveUp(*self._status.failure_words))
        self._stage.refresh_status()
