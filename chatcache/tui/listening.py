"""Takes in what the backend tells of itself: loading, ready, failed, the tiers, cache events.

Owns the subscription. Everything arrives in threads of the backend and is handled in the screen's.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from chatcache.backends.base import (
    BackendEvent,
    BackendFailed,
    CacheEvent,
    CacheSnapshot,
    ModelLoading,
    ModelReady,
    Prepared,
    RestoreBegan,
)
from chatcache.tui.messages import BackendChanged
from chatcache.tui.screens.segments import SegmentsScreen
from chatcache.tui.widgets.welcome import Welcome

if TYPE_CHECKING:
    from chatcache.tui.screens.chat import ChatScreen

# Loading is told no more often than this, so that keys have their turn.
PROGRESS_SECONDS = 0.1
# A restore that is over sooner is not worth a word.
RESTORE_SECONDS = 0.15


class Listening:
    """Keeps the status and the panel of one chat screen as the backend says."""

    def __init__(self, screen: ChatScreen) -> None:
        self._screen = screen
        self._unsubscribe: Callable[[], None] | None = None
        self._told_at = 0.0
        self._restoring: RestoreBegan | None = None

    async def begin(self) -> None:
        backend = self._screen.service.backend
        if backend is not None:
            self._unsubscribe = await self._screen.ask(backend.subscribe, self._tell)

    def end(self) -> None:
        if self._unsubscribe is not None:
            self._unsubscribe()

    def _tell(self, event: BackendEvent) -> None:
        """Called in a thread of the backend."""
        if isinstance(event, ModelLoading) and 0 < event.done < event.total:
            if time.monotonic() - self._told_at < PROGRESS_SECONDS:
                return  # the next one is as good
            self._told_at = time.monotonic()
        self._screen.post_message(BackendChanged(event))

    def take(self, event: BackendEvent) -> None:
        screen = self._screen
        if isinstance(event, CacheSnapshot):
            screen.panel_state.snapshot = event
            if isinstance(shown := screen.app.screen, SegmentsScreen):
                shown.show_segments(event.segments)
        elif isinstance(event, CacheEvent):
            screen.panel_state.events.append(event)
        elif isinstance(event, Prepared):
            screen.panel_state.idle.note(event)
            self.restored()
        elif isinstance(event, RestoreBegan):
            self._restoring = event
            screen.set_timer(RESTORE_SECONDS, lambda: self._show_restore(event))
        else:
            self._take_status(event)
        screen.refresh_panel()

    def _show_restore(self, event: RestoreBegan) -> None:
        if self._restoring is event:
            self._screen.panel_state.restoring = event
            self._screen.turns.show_restore(self._screen.panel_state.restore_words)
            self._screen.refresh_panel()
            self._screen.refresh_status()

    def restored(self) -> None:
        """What was being read from disk is there, or was given up."""
        self._restoring = None
        if self._screen.panel_state.restoring is not None:
            self._screen.panel_state.restoring = None
            self._screen.refresh_panel()
            self._screen.refresh_status()

    def _take_status(self, event: BackendEvent) -> None:
        screen = self._screen
        screen.status.absorb(event)
        screen.panel_state.info = screen.status.info
        if isinstance(event, ModelReady):
            screen.actions.model_ready(event.info)
            screen.idle.opened()
            for welcome in screen.query(Welcome):
                welcome.show_model(event.info)
        elif isinstance(event, BackendFailed):
            self.restored()
            if not event.will_restart:
                screen.run_async(self._show_failure())
                screen.actions.model_failed()
        screen.refresh_status()

    async def _show_failure(self) -> None:
        await self._screen.chats.wait_opened()
        await self._screen.show_error(*self._screen.status.failure_words)
