"""One front end as the engine sees it: its channel, and what is routed to it.

Owns what was last told to each about the turns that wait. Knows nothing of models.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterable

from chatcache.backends.base import BackendEvent, CacheSnapshot, TurnWaiting
from chatcache.backends.life import remember
from chatcache.backends.local.engine.channel import ChannelClosedError, PatientChannel
from chatcache.backends.local.engine.schedule import Turn

FLUSH_SECONDS = 5.0


class Connected:
    """A connection. It is a front end from its Hello on, until it leaves."""

    def __init__(self, number: int, channel: PatientChannel) -> None:
        self.number = number
        self.channel = channel
        self.front_end: str | None = None
        self.keep_alive_seconds: float | None = 0.0
        self._told_waiting: dict[str, TurnWaiting] = {}

    def send(self, message: object) -> None:
        """If it is gone there is nobody to tell, and its reader notices."""
        with contextlib.suppress(ChannelClosedError):
            self.channel.send(message)

    def tell_waiting(self, told: TurnWaiting) -> None:
        """Unless that is what it knows."""
        if self._told_waiting.get(told.turn_id) != told:
            self._told_waiting[told.turn_id] = told
            self.send(told)

    def begin(self, turn_id: str) -> None:
        """The turn waits no longer; said if it was said that it does."""
        if self._told_waiting.pop(turn_id, None) is not None:
            self.send(TurnWaiting(turn_id, 0))

    def close(self) -> None:
        """Once it has taken everything, or takes nothing."""
        self.channel.flush(FLUSH_SECONDS)
        self.channel.close()


class FrontEnds:
    """All connections, and what one that comes late must know."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._by_number: dict[int, Connected] = {}
        self._latest: dict[str, BackendEvent] = {}
        self._last_number = 0

    def connect(self, channel: PatientChannel) -> Connected:
        """A connection that has not said yet what it is."""
        with self._lock:
            self._last_number += 1
            return Connected(self._last_number, channel)

    def admit(self, connected: Connected) -> list[BackendEvent]:
        """It is a front end now; returns what it must be told."""
        with self._lock:
            self._by_number[connected.number] = connected
            return list(self._latest.values())

    @property
    def snapshot(self) -> CacheSnapshot | None:
        """What the cache held when it was told last."""
        with self._lock:
            found = self._latest.get("cache")
            return found if isinstance(found, CacheSnapshot) else None

    def drop(self, number: int) -> Connected | None:
        with self._lock:
            return self._by_number.pop(number, None)

    def get(self, number: int) -> Connected | None:
        with self._lock:
            return self._by_number.get(number)

    def all(self) -> list[Connected]:
        with self._lock:
            return list(self._by_number.values())

    def names(self) -> tuple[str, ...]:
        """Of those who are here, and have not left while something is still done for them."""
        found = (connected.front_end for connected in self.all())
        return tuple(sorted(name for name in found if name is not None))

    def tell(self, event: BackendEvent | object) -> None:
        """Tell all, and remember what one that comes late must know."""
        with self._lock:
            remember(self._latest, event)
            front_ends = list(self._by_number.values())
        for connected in front_ends:
            connected.send(event)

    def tell_waiting(self, waiting: Iterable[tuple[Turn, Turn | None, int]]) -> None:
        """Tell those whose turns wait for others."""
        for turn, running, num_ahead in waiting:
            connected = self.get(turn.client)
            if connected is None or num_ahead == 0:
                continue
            first = self.get(running.client) if running is not None else None
            front_end = (first.front_end if first is not None else None) or ""
            connected.tell_waiting(TurnWaiting(turn.request.turn_id, num_ahead, front_end))
