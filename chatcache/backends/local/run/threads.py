"""The threads that a model on a CPU is computed with: how many, and whether they wait awake.

A prompt is read with all that this process may have a core for; what a step of an answer gets is
decided by `thread_choice.py`. Between two products OpenMP's threads wait awake, which is quick
while each has a core. Where others want the cores they keep them from whoever has the next product
ready, and a step takes ten or fifty times as long; there they are made to sleep. Others are other
programs, and the threads of compiled code (`packed/team.py`).
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from typing import Any

import torch

from chatcache.backends.local.packed.blocks import is_packed
from chatcache.backends.local.run.thread_choice import ThreadChooser, counts_to_try
from chatcache.cache.book.rates import RateBook
from chatcache.machine import is_crowded

_LOOK_SECONDS, _CROWDED_SECONDS = 0.25, 1.0  # between two looks at the machine
_NUM_LOOKS, _MOMENT = 5, 0.001
_NUM_MEASURED, _MEASURE_SECONDS = 3, 0.1
_MOST_SLEEPERS = 128


class Threads:
    """Not thread-safe: it belongs to the engine's main thread. `most` threads compute at most.

    `is_shared`: kernels of packed weights compute on the same cores between OpenMP's products, so
    its threads always sleep there. `is_fixed`: it is always `most`, because somebody wants it so.
    """

    def __init__(
        self,
        most: int,
        is_crowded: Callable[[int], bool] = is_crowded,
        *,
        is_shared: bool = False,
        is_fixed: bool = False,
    ):
        self.most = most
        self._is_shared = is_shared
        self._counts = (most,) if is_fixed else counts_to_try(most)
        self._chooser = ThreadChooser(self._counts, {})
        self._is_crowded = is_crowded
        self._sleep = Sleep()
        self._is_alone = True  # as it was seen last
        self._next_look = 0.0
        self._began: float | None = None  # when a step began; None: it is no step

    def begin(self, num_tokens: int, *, is_compiled: bool = False) -> None:
        """So many tokens are given to the model now; `is_compiled`: to its compiled step."""
        now = time.perf_counter()
        if now >= self._next_look:
            self.look(now)
        self._wait(is_asleep=is_compiled or self._is_shared or not self._is_alone)
        use(self._chooser.count if num_tokens == 1 else self.most)
        self._began = time.perf_counter() if num_tokens == 1 else None

    def end(self) -> None:
        """What `begin` was told of has been computed; where it failed, this is not called."""
        if self._began is not None:
            now = time.perf_counter()
            self._chooser.note(now - self._began, now)

    def rest(self) -> None:
        """Something else computes until the next `begin`, with all of OpenMP's threads, awake."""
        self._sleep.end()
        use(self.most)
        self._next_look = 0.0

    def settle(self, rates: RateBook, step: Callable[[], object]) -> None:
        """Begin with the count that is quickest by `rates`; measured by `step`s if it is not known,
        and kept there if nothing else wanted the cores meanwhile."""
        if len(self._counts) == 1:
            return
        seconds = rates.step_seconds
        if self.most not in seconds:
            was_crowded = self.look(time.perf_counter())
            seconds = self._measured(step)
            if not was_crowded and not self.look(time.perf_counter()):
                rates.step_seconds = seconds
        self._chooser = ThreadChooser(self._counts, seconds)

    def _measured(self, step: Callable[[], object]) -> dict[int, float]:
        """The seconds of a step for the counts for which there is time, `most` among them."""
        seconds: dict[int, float] = {}
        began = time.perf_counter()
        for count in self._counts:
            self._chooser = ThreadChooser((count,), {})
            step()  # some of these threads may be new
            times = []
            for _ in range(_NUM_MEASURED):
                before = time.perf_counter()
                step()
                times.append(time.perf_counter() - before)
            seconds[count] = min(times)
            if time.perf_counter() - began > _MEASURE_SECONDS:
                break
        return seconds

    def look(self, now: float) -> bool:
        """Whether others want the cores, for more than a moment."""
        for look in range(_NUM_LOOKS):
            if look:
                time.sleep(_MOMENT)
            if not self._is_crowded(self.most):
                self._is_alone, self._next_look = True, now + _LOOK_SECONDS
                return False
        self._is_alone, self._next_look = False, now + _CROWDED_SECONDS
        return True

    def _wait(self, *, is_asleep: bool) -> None:
        if is_asleep:
            self._sleep.begin(self.most)
        else:
            self._sleep.end()


class Sleep:
    """From `begin` to `end` the threads of OpenMP sleep between two products.

    GNU's OpenMP lets them wait awake only while it has no more threads than there are CPUs. So
    another thread here gets some that do nothing. With another OpenMP this changes nothing."""

    def __init__(self) -> None:
        self._is_over: threading.Event | None = None
        self._thread: threading.Thread | None = None

    def begin(self, num_threads: int) -> None:
        """Where `num_threads` compute."""
        if self._is_over is not None:
            return
        num_cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1
        num_sleepers = max(2, num_cpus - num_threads + 2)
        if num_sleepers > _MOST_SLEEPERS:
            return
        before = torch.get_num_threads()
        self._is_over, is_there = threading.Event(), threading.Event()
        arguments = (num_sleepers, is_there, self._is_over)
        self._thread = threading.Thread(
            target=_keep_threads, args=arguments, name="sleepers", daemon=True
        )
        self._thread.start()
        is_there.wait()
        use(before)  # the number is that of all threads

    def end(self) -> None:
        if self._is_over is not None and self._thread is not None:
            self._is_over.set()
            self._thread.join()
            self._is_over = self._thread = None


def threads_for(model: Any, device: torch.device, *, is_fixed: bool = False) -> Threads | None:
    """For a model on a CPU, with at most the threads that torch has now. None: a GPU computes, or
    there is nothing to choose."""
    most = torch.get_num_threads()
    if device.type != "cpu" or most == 1:
        return None
    return Threads(most, is_shared=is_packed(model), is_fixed=is_fixed)


def use(num_threads: int) -> None:
    """Compute with so many threads from now on, in this thread."""
    if torch.get_num_threads() != num_threads:
        torch.set_num_threads(num_threads)


def _keep_threads(num_threads: int, is_there: threading.Event, is_over: threading.Event) -> None:
    try:
        torch.set_num_threads(num_threads)
        torch.zeros(num_threads << 16).add_(1)  # each gets a part, so each is there
    finally:
        is_there.set()
    is_over.wait()
