"""An event loop in a thread of its own: what is asked there can be called off at any moment."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from typing import Any, TypeVar

CLOSE_SECONDS = 2.0
_Result = TypeVar("_Result")


class EventLoop:
    """Starts its thread with the first coroutine. Every method may be called from any thread."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None

    def submit(self, work: Coroutine[Any, Any, _Result]) -> Future[_Result]:
        """Run a coroutine; cancelling the future ends it."""
        with self._lock:
            return asyncio.run_coroutine_threadsafe(work, self._running_loop())

    def _running_loop(self) -> asyncio.AbstractEventLoop:
        if self._loop is None:
            self._loop = asyncio.new_event_loop()
            self._thread = threading.Thread(
                target=_run, args=(self._loop,), name=self._name, daemon=True
            )
            self._thread.start()
        return self._loop

    def begin(
        self, work: Coroutine[Any, Any, None], on_end: Callable[[asyncio.Task[None]], None]
    ) -> Callable[[], None]:
        """Run a coroutine; `on_end` is told in the loop's thread, also of one that never ran.
        Returns what calls it off."""
        tasks: list[asyncio.Task[None]] = []

        def create() -> None:
            tasks.append(loop.create_task(work))
            tasks[0].add_done_callback(on_end)

        def cancel() -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed, and the work ended
                loop.call_soon_threadsafe(lambda: tasks[0].cancel())

        with self._lock:
            loop = self._running_loop()
            loop.call_soon_threadsafe(create)
        return cancel

    def close(self, last: Coroutine[Any, Any, None] | None = None) -> None:
        """Cancel all that runs, run `last`, and end the thread; it is not waited for for long."""
        with self._lock:
            loop, thread, self._loop, self._thread = self._loop, self._thread, None, None
        if loop is None or thread is None:
            if last is not None:
                last.close()
            return
        asyncio.run_coroutine_threadsafe(_end(loop, last), loop)
        if thread is not threading.current_thread():
            thread.join(CLOSE_SECONDS)


def _run(loop: asyncio.AbstractEventLoop) -> None:
    try:
        loop.run_forever()
    finally:
        loop.close()


async def _end(loop: asyncio.AbstractEventLoop, last: Coroutine[Any, Any, None] | None) -> None:
    running = asyncio.all_tasks() - {asyncio.current_task()}
    for task in running:
        task.cancel()
    await asyncio.gather(*running, return_exceptions=True)
    if last is not None:
        await last
    await loop.shutdown_asyncgens()
    loop.call_soon(loop.stop)
