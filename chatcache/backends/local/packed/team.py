"""Threads that compute one task together.

The caller is thread 0 and takes part. The others watch for the next task for a moment after each,
because the next product comes soon, and then sleep. A task is a compiled function (`kernels.py`);
while it runs nobody holds the interpreter. Within a task threads wait for each other at `barrier`.
Who waits longer than usual lets others run: on a busy machine they may be whom it waits for.
"""

from __future__ import annotations

import ctypes
import functools
import threading
from typing import Any

from numba import njit, types

from chatcache.backends.local.packed.intrinsics import (
    atomic_add,
    atomic_load,
    atomic_store,
    call_task,
    pause,
)
from chatcache.backends.local.packed.kernels import task

# Words of the shared state, in cache lines of their own.
_LINE = 8
_NUMBER, _DONE, _FUNCTION, _NUM_WORDS = 0, _LINE, 2 * _LINE, 3 * _LINE
_JOB, _NUM_THREADS = _FUNCTION + 1, _FUNCTION + 2
_LOOKS = 20_000  # of a thread that waits for the next task, before it sleeps: about a millisecond
_PATIENCE = 2_000  # looks at what another thread does, before it lets others run

BARRIER_WORDS = 2 * _LINE  # of memory that a task gives to `barrier`, zeros at first
_sched_yield = types.ExternalFunction("sched_yield", types.int32())


@njit
def _await_change(address: Any, old: Any) -> None:
    looks = 0
    while atomic_load(address) == old:
        looks += 1
        if looks > _PATIENCE:
            _sched_yield()
        else:
            pause()


@njit
def barrier(words: Any, num_threads: Any) -> None:
    """Wait until all threads of the task are here. `words`: the address of `BARRIER_WORDS`."""
    if num_threads == 1:
        return
    round_number = atomic_load(words + 8 * _LINE)
    if atomic_add(words, 1) == num_threads - 1:
        atomic_store(words, 0)
        atomic_store(words + 8 * _LINE, round_number + 1)
    else:
        _await_change(words + 8 * _LINE, round_number)


def _watch(state, seen, num_looks):  # type: ignore[no-untyped-def]
    """Wait for another task than number `seen`, for so many looks."""
    for _ in range(num_looks):
        if atomic_load(state) != seen:
            return
        pause()


def _take_part(state, thread, _):  # type: ignore[no-untyped-def]
    """The share of a thread of the task that is there; thread 0 waits for the others."""
    num_threads = atomic_load(state + 8 * _NUM_THREADS)
    job = atomic_load(state + 8 * _JOB)
    call_task(atomic_load(state + 8 * _FUNCTION), job, thread, num_threads)
    done = atomic_add(state + 8 * _DONE, 1) + 1
    while thread == 0 and done < num_threads:
        _await_change(state + 8 * _DONE, done)
        done = atomic_load(state + 8 * _DONE)


@functools.cache
def _functions() -> tuple[Any, Any]:
    kind = ctypes.CFUNCTYPE(None, *[ctypes.c_int64] * 3)
    return kind(task(_watch)), kind(task(_take_part))


class Team:
    """`num_threads` threads, the caller's among them. One caller at a time."""

    def __init__(self, num_threads: int):
        self.num_threads = num_threads
        self._memory = (ctypes.c_int64 * (_NUM_WORDS + _LINE))()
        # From the beginning of a cache line on.
        address = -(-ctypes.addressof(self._memory) // (8 * _LINE)) * 8 * _LINE
        self._address = address
        self._state = (ctypes.c_int64 * _NUM_WORDS).from_address(address)
        self._state[_NUM_THREADS] = num_threads
        self._watch, self._take_part = _functions()
        self._lock = threading.Lock()
        self._asleep: list[threading.Semaphore] = []
        for thread in range(1, num_threads):
            name = f"kernels-{thread}"
            threading.Thread(target=self._work, args=(thread,), name=name, daemon=True).start()

    def run(self, function: int, job: int) -> None:
        """Compute a task, by its address and that of its job; returns when all threads are done."""
        state = self._state
        state[_FUNCTION], state[_JOB], state[_DONE] = function, job, 0
        with self._lock:  # whoever goes to sleep meanwhile has seen this task, or is woken
            state[_NUMBER] += 1
            asleep, self._asleep = self._asleep, []
        for wake in asleep:
            wake.release()
        self._take_part(self._address, 0, 0)

    def _work(self, thread: int) -> None:
        state, seen, wake = self._state, 0, threading.Semaphore(0)
        while True:
            self._watch(self._address, seen, _LOOKS)
            if state[_NUMBER] == seen:
                with self._lock:
                    if state[_NUMBER] != seen:
                        continue
                    self._asleep.append(wake)
                wake.acquire()
                continue
            seen += 1  # a task ends when all have taken part, so none is missed
            self._take_part(self._address, thread, 0)


@functools.cache
def team(num_threads: int) -> Team:
    """The team of this size; there is one in a process."""
    return Team(num_threads)
