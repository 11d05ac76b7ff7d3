"""A device for tests without one: its memory is ordinary memory, and its streams are as slow as
they may be. What is queued is done when somebody waits for it, and not before; so a wait that is
missing, or memory that is used again too early, shows as wrong numbers. `is_eager`: at once."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable

import torch

from chatcache.cache.tensors.link import Event, Stream

GARBAGE = 0xFF  # bytes of NaN
BYTES_PER_SECOND = 1e9  # of a stream, by the device's clock


class Computing:
    """The model's stream: the test computes at once, in order. Who has waited for it is counted."""

    def __init__(self) -> None:
        self.num_waits = 0

    def copy(self, target: torch.Tensor, source: torch.Tensor) -> None:
        target.copy_(source)

    def run(self, work: Callable[[], None]) -> None:
        work()

    def follow(self, event: Event) -> None:
        event.wait()

    def mark(self, *, is_timed: bool = False) -> Event:
        return _Computed(self)


class _Computed:
    def __init__(self, compute: Computing):
        self._compute = compute
        self.at = time.perf_counter()

    def is_over(self) -> bool:
        return True

    def wait(self) -> None:
        self._compute.num_waits += 1

    def seconds_since(self, earlier: Event) -> float:
        assert isinstance(earlier, _Computed)
        return self.at - earlier.at


class LazyStream:
    def __init__(self, *, is_eager: bool):
        self._is_eager = is_eager
        self._lock = threading.RLock()
        self._queue: deque[Callable[[], object]] = deque()
        self._num_queued = 0
        self._num_done = 0
        self.now = 0.0  # as the device sees it: copies take time by their bytes
        self.times: dict[int, float] = {}

    def copy(self, target: torch.Tensor, source: torch.Tensor) -> None:
        self._push(lambda: self._copy(target, source))

    @torch.inference_mode()
    def _copy(self, target: torch.Tensor, source: torch.Tensor) -> None:
        target.copy_(source)
        self.now += source.nbytes / BYTES_PER_SECOND

    def run(self, work: Callable[[], None]) -> None:
        self._push(torch.inference_mode()(work))

    def follow(self, event: Event) -> None:
        self._push(event.wait)

    def mark(self, *, is_timed: bool = False) -> Event:
        if is_timed:
            self._push(self._note_time)
        return _Mark(self, self._num_queued, is_timed=is_timed)

    def _note_time(self) -> None:
        self.times[self._num_done + 1] = self.now

    def run_to(self, number: int) -> None:
        with self._lock:
            while self._num_done < number:
                self._queue.popleft()()
                self._num_done += 1
            while self._queue and self._queue[0] == self._note_time:  # a time takes no time
                self._queue.popleft()()
                self._num_done += 1

    def has_done(self, number: int) -> bool:
        return self._num_done >= number

    def _push(self, work: Callable[[], object]) -> None:
        with self._lock:
            self._queue.append(work)
            self._num_queued += 1
            if self._is_eager:
                self.run_to(self._num_queued)


class _Mark:
    def __init__(self, stream: LazyStream, number: int, *, is_timed: bool):
        self._stream = stream
        self._number = number
        self._is_timed = is_timed

    def seconds_since(self, earlier: Event) -> float:
        assert isinstance(earlier, _Mark)
        assert self._is_timed
        assert self.is_over()
        return self._stream.times[self._number] - self._stream.times[earlier._number]

    def is_over(self) -> bool:
        return self._stream.has_done(self._number)

    def wait(self) -> None:
        self._stream.run_to(self._number)


class LazyLink:
    """`num_pinnable_bytes`: so much can be locked; `num_free_bytes` are told to whoever asks."""

    def __init__(self, *, is_eager: bool = False, num_pinnable_bytes: int = 1 << 40):
        self.compute = Computing()
        self._is_eager = is_eager
        self._num_pinnable_bytes = num_pinnable_bytes
        self.num_pins = 0

    def stream(self) -> Stream:
        return LazyStream(is_eager=self._is_eager)

    def pinned(self, num_bytes: int) -> torch.Tensor:
        if num_bytes > self._num_pinnable_bytes:
            raise RuntimeError("CUDA error: out of memory\nmore lines")
        self._num_pinnable_bytes -= num_bytes
        self.num_pins += 1
        return torch.full((num_bytes,), GARBAGE, dtype=torch.uint8)

    def num_free_bytes(self) -> int:
        return 1 << 20
