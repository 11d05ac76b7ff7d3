"""What the engines of a test are on: this machine, the stand-in of a GPU, or a card.

On the stand-in K and V are on a device whose streams do everything as late as they may
(`lazy_link.py`), segments are in slabs and what was left stays on the device; steps are those of a
GPU, captured where the model is one of which they can be (`recorded_calls.py`).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest
import torch

from chatcache.cache.tensors import buckets
from chatcache.cache.tensors.link import CudaLink, Link
from chatcache.cache.tensors.live_kv import LiveKV
from tests.lazy_link import LazyLink

VRAM_BUDGET = 1 << 24
_BUCKET = 32  # so that a few tokens outgrow it


@dataclass(frozen=True)
class Machine:
    """`new_link` is to a device with memory of its own; None: there is none."""

    name: str
    device: torch.device
    new_link: Callable[[], Link] | None = None


_CPU = torch.device("cpu")
HOST = Machine("host", _CPU)
STAND_IN = Machine("stand-in", _CPU, LazyLink)
_current = HOST


def current() -> Machine:
    return _current


def card() -> Machine | None:
    """A real GPU; None: there is none here."""
    if not torch.cuda.is_available():
        return None
    device = torch.device("cuda", torch.cuda.current_device())
    return Machine("card", device, lambda: CudaLink(device))


@contextlib.contextmanager
def on(machine: Machine) -> Iterator[None]:
    """Models and engines that are made meanwhile are made for it."""
    global _current
    before, _current = _current, machine
    with pytest.MonkeyPatch.context() as patch:
        if machine.new_link is not None:
            patch.setattr(buckets, "MIN_BUCKET", _BUCKET)
            patch.setattr(LiveKV, "is_staged", True)  # of those that are no `DeviceKV`, too
        yield
    _current = before
