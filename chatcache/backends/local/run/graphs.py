"""Calls that a device repeats by itself, without the processor launching each kernel again.

A captured call reads and writes the memory that it was captured with. Nothing here knows what is
computed; tests capture on a CPU with a stand-in that records operations.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import Protocol

import torch


class Graphs(Protocol):
    """Captures calls on one device."""

    def send(self, numbers: Sequence[int], target: torch.Tensor) -> None:
        """Have the first of `target` (int64, on the device) be these numbers, for what is queued
        from now on; the host waits for what it sent before only."""

    def capture(self, call: Callable[[], None]) -> Callable[[], None]:
        """Make the call once, then capture it; returns what repeats it, with the bits that lie in
        its memory by then. Raises RuntimeError where that is not possible."""


class CudaGraphs:
    """CUDA graphs of one device, in one pool of memory: one at a time is replayed.

    `torch.cuda.graph` would wait for all that the device does before each capture, copies of K and
    V too, and give all unused memory back. Neither is needed, so a capture begins without.
    """

    def __init__(self, device: torch.device):
        self._device = device
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._pool = torch.cuda.graph_pool_handle()
        self._host = torch.zeros(0, dtype=torch.long)
        self._sent = torch.cuda.Event()  # type: ignore[no-untyped-call]
        # A pool must not be used again once the last graph in it is gone: this one stays.
        self._anchor = self._captured(lambda: torch.zeros(1, device=device))

    def send(self, numbers: Sequence[int], target: torch.Tensor) -> None:
        self._sent.synchronize()  # the device may still have to read what was sent before
        if len(numbers) > len(self._host):
            self._host = torch.zeros(len(target), dtype=torch.long, pin_memory=True)
        self._host[: len(numbers)] = torch.tensor(numbers)
        target[: len(numbers)].copy_(self._host[: len(numbers)], non_blocking=True)
        self._sent.record(torch.cuda.current_stream(self._device))

    def capture(self, call: Callable[[], None]) -> Callable[[], None]:
        current = torch.cuda.current_stream(self._device)
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            call()
        current.wait_stream(self._stream)
        try:
            graph = self._captured(call)
        except torch.OutOfMemoryError:  # a capture cannot use what others have given back
            torch.cuda.empty_cache()
            graph = self._captured(call)
        replay: Callable[[], None] = graph.replay
        return replay

    def _captured(self, call: Callable[[], object]) -> torch.cuda.CUDAGraph:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.stream(self._stream):
            # Other threads copy K and V meanwhile, and may ask for memory.
            graph.capture_begin(pool=self._pool, capture_error_mode="thread_local")
            try:
                call()
            except BaseException:
                with contextlib.suppress(RuntimeError):  # it says that there was an error
                    graph.capture_end()
                raise
            graph.capture_end()
        return graph


def graphs_for(device: torch.device) -> Graphs | None:
    """None: this device has no graphs that are known here."""
    return CudaGraphs(device) if device.type == "cuda" else None
