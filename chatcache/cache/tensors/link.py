"""The link between the host and a device with memory of its own: streams, events, locked pages.

Copies of K and V are queued on streams and run beside the model. Nothing here knows what is copied.
`CudaLink` is the link to an NVIDIA GPU; tests run the same code on one whose streams do everything
as late as they may, so that a wait that is missing shows in the numbers.
"""

from __future__ import annotations

import contextlib
import threading
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch


class Event(Protocol):
    """A point in what a stream does."""

    def is_over(self) -> bool:
        """Whether the stream has come so far."""

    def wait(self) -> None:
        """Have the host wait for it."""

    def seconds_since(self, earlier: Event) -> float:
        """Of the device's time, between two timed ones that are both over."""


class Stream(Protocol):
    """Work on the device, in order. Memory of a copy stays until an event behind it is over."""

    def copy(self, target: torch.Tensor, source: torch.Tensor) -> None:
        """Queue a copy; one of the two is on the host."""

    def run(self, work: Callable[[], None]) -> None:
        """Queue what operations of torch do, called by `work`. It may be called later; what it
        makes meanwhile is used on this stream alone."""

    def follow(self, event: Event) -> None:
        """What is queued from now on begins when the event is over. The host does not wait."""

    def mark(self, *, is_timed: bool = False) -> Event:
        """Behind all that was queued so far."""


class Link(Protocol):
    """What a device offers for copies."""

    @property
    def compute(self) -> Stream:
        """The stream that the model computes on."""

    def stream(self) -> Stream:
        """Another one, that runs beside it."""

    def pinned(self, num_bytes: int) -> torch.Tensor:
        """Bytes of host memory that the device copies from and to by itself. Raises RuntimeError
        when the system has none left to lock."""

    def num_free_bytes(self) -> int:
        """Memory of the device that nobody uses."""


class InFlight:
    """What copies under way read and write, kept until they have ended. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._held: deque[tuple[Event, tuple[Any, ...]]] = deque()

    def hold(self, event: Event, *memory: Any) -> None:
        with self._lock:
            self._held.append((event, memory))

    def release(self) -> None:
        """Let go of what has ended. Streams differ in pace, so all are looked at."""
        with self._lock:
            held, self._held = self._held, deque()
            self._held.extend(pair for pair in held if not pair[0].is_over())

    def wait_for_one(self) -> bool:
        """Have the host wait for the oldest copy; False: there is none."""
        with self._lock:
            oldest = self._held.popleft() if self._held else None
        if oldest is not None:
            oldest[0].wait()
        return oldest is not None


@dataclass(frozen=True, slots=True)
class Brought:
    """Runs that were brought to a device from where they lay, and how long the device took."""

    source: Literal["vram", "ram"]
    num_bytes: int
    num_runs: int
    seconds: float


class Stopwatch:
    """How long copies take that the host does not wait for; told when they have ended."""

    def __init__(self) -> None:
        self._running: list[tuple[Event, Event, Literal["vram", "ram"], int, int]] = []

    @contextlib.contextmanager
    def timing(
        self, stream: Stream, source: Literal["vram", "ram"], num_bytes: int, num_runs: int
    ) -> Iterator[None]:
        """Time what is queued on the stream meanwhile; where that fails, nothing is told of it."""
        began = stream.mark(is_timed=True)
        yield
        ended = stream.mark(is_timed=True)
        self._running.append((began, ended, source, num_bytes, num_runs))

    def take(self) -> list[Brought]:
        """What has ended since the last time."""
        running, self._running = self._running, []
        found = []
        for timed in running:
            began, ended, source, num_bytes, num_runs = timed
            if ended.is_over():
                found.append(Brought(source, num_bytes, num_runs, ended.seconds_since(began)))
            else:
                self._running.append(timed)
        return found


def copy_run(
    stream: Stream, target: torch.Tensor, source: torch.Tensor, *, is_whole: bool = True
) -> None:
    """Queue a copy of `[num_kv_heads, num_tokens, head_dim]`, each contiguous within a head.

    With `is_whole`, the side on the host is contiguous and so goes over at once, by way of a
    contiguous copy on the device. Head by head, where the device has no room for that."""
    if is_whole:
        try:
            stream.copy(target, source)
        except torch.OutOfMemoryError:
            pass
        else:
            return
    for to_head, from_head in zip(target, source, strict=True):
        stream.copy(to_head, from_head)


class CudaLink:
    """The link to one CUDA device."""

    def __init__(self, device: torch.device):
        self._device = device
        self.compute: Stream = _CudaStream(lambda: torch.cuda.current_stream(device))

    def stream(self) -> Stream:
        made = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]
        return _CudaStream(lambda: made)

    def pinned(self, num_bytes: int) -> torch.Tensor:
        return torch.empty(num_bytes, dtype=torch.uint8, pin_memory=True)

    def num_free_bytes(self) -> int:
        return torch.cuda.mem_get_info(self._device)[0]


class _CudaStream:
    """`find` returns torch's stream: the current one is asked for each time."""

    def __init__(self, find: Callable[[], torch.cuda.Stream]):
        self._find = find

    def copy(self, target: torch.Tensor, source: torch.Tensor) -> None:
        with torch.cuda.stream(self._find()):
            target.copy_(source, non_blocking=True)

    def run(self, work: Callable[[], None]) -> None:
        with torch.cuda.stream(self._find()):
            work()

    def follow(self, event: Event) -> None:
        if isinstance(event, _CudaEvent):
            self._find().wait_event(event.event)
        else:
            event.wait()

    def mark(self, *, is_timed: bool = False) -> Event:
        # Who waits for it leaves the core to others meanwhile.
        event = torch.cuda.Event(is_timed, blocking=True)  # type: ignore[no-untyped-call]
        event.record(self._find())
        return _CudaEvent(event)


class _CudaEvent:
    def __init__(self, event: torch.cuda.Event):
        self.event = event

    def is_over(self) -> bool:
        return bool(self.event.query())  # type: ignore[no-untyped-call]

    def wait(self) -> None:
        self.event.synchronize()

    def seconds_since(self, earlier: Event) -> float:
        assert isinstance(earlier, _CudaEvent)
        return float(earlier.event.elapsed_time(self.event)) / 1000
