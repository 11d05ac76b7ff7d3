"""The thread that writes segments to disk behind the conversation.

It owns a queue of segment ids and nothing else: what to write and where is the caller's. Memory is
bounded because a queued segment is held by the RAM tier anyway; the queue holds only its id.
"""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable

log = logging.getLogger(__name__)


class SpillWriter:
    """Calls `write(segment_id)` for each submitted id, in order, in one daemon thread."""

    def __init__(self, write: Callable[[str], None]):
        self._write = write
        self._queue: queue.Queue[str | None] = queue.Queue()
        self._idle = threading.Condition()
        self._num_pending = 0
        self._thread = threading.Thread(target=self._run, name="spill", daemon=True)
        self._thread.start()

    def submit(self, segment_id: str) -> None:
        with self._idle:
            self._num_pending += 1
        self._queue.put(segment_id)

    def drain(self, timeout: float | None = None) -> bool:
        """Wait until everything submitted is written or has failed. False: the time ran out."""
        with self._idle:
            return self._idle.wait_for(lambda: self._num_pending == 0, timeout)

    def close(self) -> None:
        """Write what is pending, then end the thread."""
        self._queue.put(None)
        self._thread.join()

    def _run(self) -> None:
        while (segment_id := self._queue.get()) is not None:
            try:
                self._write(segment_id)
            except Exception:
                log.exception("segment %s could not be spilled", segment_id)
            finally:
                with self._idle:
                    self._num_pending -= 1
                    self._idle.notify_all()
