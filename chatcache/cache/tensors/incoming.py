"""Runs of K and V that are on their way to the live path of a device."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor


@dataclass(frozen=True, slots=True)
class Incoming:
    """Tensors for the positions from `start` on; `owner` has their memory. `scales`, by the same
    names: those of integers."""

    tensors: Mapping[str, Tensor]
    start: int
    owner: Any
    scales: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def stop(self) -> int:
        return self.start + next(iter(self.tensors.values())).shape[1]

    @property
    def num_bytes(self) -> int:
        parts = (*self.tensors.values(), *self.scales.values())
        return sum(part.nbytes for part in parts)


def rows_of(runs: Sequence[Incoming]) -> Iterator[list[Incoming]]:
    """Those that follow one another, together."""
    row: list[Incoming] = []
    for run in runs:
        if row and row[-1].stop != run.start:
            yield row
            row = []
        row.append(run)
    if row:
        yield row


def size_of(runs: Sequence[Incoming]) -> tuple[int, int]:
    """The bytes that go over, and how many runs that are."""
    return sum(run.num_bytes for run in runs), len(runs)
