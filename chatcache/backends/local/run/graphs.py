"""Calls that a device repeats by itself, without the processor launching each kernel again.

A captured call reads and writes the memory that it was captured with. Nothing here knows what is
computed; tests capture on a CPU with a stand-in that records operations.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch


class Graphs(Protocol):
    """Captures calls on one device."""

    def host_numbers(self, num: int) -> torch.Tensor:
        """int64 `[num]` in host memory, which the device copies from by itself."""

    def capture(self, call: Callable[[], None]) -> Callable[[], None]:
        """Make the call once, then capture it; returns what repeats it, with the bits that lie in
        its memory by then. Raises RuntimeError where that is not possible."""


class CudaGraphs:
    """CUDA graphs of one device, in one pool of memory: one at a time is replayed."""

    def __init__(self, device: torch.device):
        self._device = device
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._pool = torch.cuda.graph_pool_handle()
        # A pool must not be used again once the last graph in it is gone: this one stays.
        self._anchor = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._anchor, pool=self._pool, stream=self._stream):
            torch.zeros(1, device=device)

    def host_numbers(self, num: int) -> torch.Tensor:
        return torch.zeros(num, dtype=torch.long, pin_memory=True)

    def capture(self, call: Callable[[], None]) -> Callable[[], None]:
        current = torch.cuda.current_stream(self._device)
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            call()
        current.wait_stream(self._stream)
        graph = torch.cuda.CUDAGraph()
        # Other threads copy K and V meanwhile, and may ask for memory.
        with torch.cuda.graph(
            graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"
        ):
            call()
        replay: Callable[[], None] = graph.replay
        return replay


def graphs_for(device: torch.device) -> Graphs | None:
    """None: this device has no graphs that are known here."""
    return CudaGraphs(device) if device.type == "cuda" else None
