"""Asks the backend to get ready for the turn that will probably come next.

Owns which idle work is switched on, and which part of a draft is sure to be sent as it stands. What
is prepared changes no words and no answer: only the time to the first token. Nothing here raises
because of a turn that cannot be foreseen; it is then not prepared.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable
from dataclasses import dataclass, replace

from chatcache.backends.base import (
    Backend,
    IdleKind,
    ModelInfo,
    Prepare,
)
from chatcache.chat.finished import stable_part
from chatcache.chat.store import SessionStore
from chatcache.chat.tasks import (
    TurnOptions,
    TurnTask,
    read_journal,
    turn_request,
    unsaved_task,
)
from chatcache.errors import ChatcacheError


@dataclass(frozen=True, slots=True)
class IdleOptions:
    """Which idle work is done at all."""

    next_turn: bool = True
    draft: bool = True
    restore: bool = True


ALL_IDLE_WORK = IdleOptions()


class TurnPreparer:
    """Idle work on the sessions of one service. Every method may be called from any thread."""

    def __init__(
        self,
        store: SessionStore,
        backend: Backend | None,
        seen_tip: Callable[[str], int | None],
        options: IdleOptions,
    ) -> None:
        self._store = store
        self._backend = backend
        self._seen_tip = seen_tip
        self.options = options

    def is_on(self, kind: IdleKind) -> bool:
        return self._backend is not None and bool(getattr(self.options, kind))

    def prepare(
        self,
        kind: IdleKind,
        session_id: str,
        draft: str = "",
        *,
        think: bool | None = None,
        system: str | None = None,
    ) -> bool:
        """Get ready to answer in a session ("": a new one, with `system`). Returns at once.

        Of `draft`, only the finished words count. False when nothing is begun: it is switched off,
        a turn runs, the model is not ready or not on this machine, or there is nothing to do.
        """
        stable = stable_part(draft) if kind == "draft" else ""
        if self._backend is None or not self.is_on(kind) or (kind == "draft" and not stable):
            return False
        try:
            info = self._backend.wait_ready(0)
            task = self._task(session_id, stable, think, system)
            return task is not None and self._begin(self._backend, info, kind, task)
        except (ChatcacheError, TimeoutError):
            # Not loaded, broken, or the session was deleted meanwhile: the turn will say it.
            return False

    def cancel(self) -> None:
        """End the idle work in progress: something else is about to be wanted."""
        if self._backend is not None:
            self._backend.cancel_prepare()

    def _begin(self, backend: Backend, info: ModelInfo, kind: IdleKind, task: TurnTask) -> bool:
        if info.backend != "local":
            return False
        path = read_journal(self._store, task, info)
        request = replace(turn_request(self._store, task, info, path), previous=None)
        if kind != "draft" and not request.journal:
            return False
        return backend.prepare(Prepare(uuid.uuid4().hex, kind, request))

    def _task(
        self, session_id: str, text: str, think: bool | None, system: str | None
    ) -> TurnTask | None:
        """The turn that would be asked if `text` were sent now; None when it cannot be known."""
        tip = self._seen_tip(session_id) if session_id else None
        if tip is not None and not text and self._store.nodes.get(tip).node.role == "user":
            return None
        options = TurnOptions(think=think)
        system = None if session_id else system
        return unsaved_task(self._store, session_id, tip, text, options, system)
