"""Time on the device that is measured: what was queued there is waited for before it is read."""

from __future__ import annotations

import time

import torch


def is_gpu(device: torch.device) -> bool:
    """Whether rows of a GPU are wanted."""
    return device.type != "cpu"


def settled_at(device: torch.device) -> float:
    """Seconds, once the device has done all that it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
