"""A stand-in for captured graphs, on the CPU: operations of torch, recorded and repeated.

Like a graph it repeats operations on the memory that they were recorded with, and nothing of what
Python decided meanwhile: a number that did not lie in a tensor is the old one. And like a graph it
refuses to ask the device for a number.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map


class _Recorder(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, Any, Any, Any]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = str(func)
        if "_local_scalar_dense" in name or "nonzero" in name or "unique" in name:
            raise RuntimeError(f"{name} cannot be captured")
        output = func(*args, **(kwargs or {}))
        self.calls.append((func, args, kwargs or {}, output))
        return output


class RecordedCalls:
    """`num_captured` calls were recorded so far, and `num_replayed` repeated."""

    def __init__(self) -> None:
        self.num_captured = self.num_replayed = 0

    def send(self, numbers: Sequence[int], target: torch.Tensor) -> None:
        target[: len(numbers)] = torch.tensor(numbers)

    def capture(self, call: Callable[[], None]) -> Callable[[], None]:
        call()
        with _Recorder() as recorder:
            call()
        self.num_captured += 1

        def replay() -> None:
            self.num_replayed += 1
            self._replay(recorder.calls)

        return replay

    @torch.inference_mode()
    def _replay(self, calls: list[tuple[Any, Any, Any, Any]]) -> None:
        made: dict[int, Any] = {}

        def current(value: Any) -> Any:
            return made.get(id(value), value) if isinstance(value, torch.Tensor) else value

        for func, args, kwargs, recorded in calls:
            output = func(*tree_map(current, args), **tree_map(current, kwargs))
            for old, new in zip(_tensors(recorded), _tensors(output), strict=True):
                made[id(old)] = new


def _tensors(output: Any) -> list[torch.Tensor]:
    values = output if isinstance(output, tuple | list) else [output]
    return [value for value in values if isinstance(value, torch.Tensor)]
