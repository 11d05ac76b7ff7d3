"""Host memory for blocks, carved out of large slabs of locked pages.

Locking pages takes long (a hundred milliseconds for 256 MiB), copies from and to such pages are
several times as quick as others: so slabs are made once, and what is given back is used again.
Where no page can be locked, or there are enough slabs, ordinary memory does.
"""

from __future__ import annotations

import bisect
import threading
import weakref
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

import torch

SLAB_BYTES = 256 << 20
_ALIGNMENT = 256
_MOST_PER_BUDGET = 1.25  # of the budget: the tier is over it for moments, and slabs have gaps


@dataclass(eq=False, slots=True, weakref_slot=True)
class SlabPiece:
    """Bytes of a slab, as long as this object lives: whoever reads the memory keeps it."""

    memory: torch.Tensor


@dataclass(eq=False, slots=True)
class _Slab:
    memory: torch.Tensor
    free: list[tuple[int, int]] = field(default_factory=list)  # (start, stop), in order

    def take(self, num_bytes: int) -> int | None:
        """The start of a free run of so many bytes, which is taken; None: there is none."""
        for index, (start, stop) in enumerate(self.free):
            if stop - start >= num_bytes:
                rest = (start + num_bytes, stop)
                self.free[index : index + 1] = [rest] if rest[0] < stop else []
                return start
        return None

    def give(self, start: int, stop: int) -> None:
        """Enter a run that is free again, joined with its neighbours."""
        index = bisect.bisect(self.free, (start, stop))
        if index < len(self.free) and self.free[index][0] == stop:
            stop = self.free.pop(index)[1]
        if index > 0 and self.free[index - 1][1] == start:
            start = self.free.pop(index - 1)[0]
            index -= 1
        self.free.insert(index, (start, stop))


class Slabs:
    """Gives out pieces; thread-safe. A piece comes back when nothing refers to it any more.

    `pin(num_bytes)` makes locked memory, or raises RuntimeError. `reclaim()` waits for something
    that gives pieces back; False: nothing will. `warn` hears, once, that pages cannot be locked.
    """

    def __init__(
        self,
        pin: Callable[[int], torch.Tensor],
        budget: int,
        reclaim: Callable[[], bool],
        warn: Callable[[str], None],
        slab_bytes: int = SLAB_BYTES,
    ):
        self._pin, self._reclaim, self._warn = pin, reclaim, warn
        self._budget, self._slab_bytes = budget, slab_bytes
        self._lock = threading.Lock()
        self._slabs: list[_Slab] = []
        self._can_pin = True
        self.num_used_bytes = 0
        # Pieces end whenever their last reader does, also while the lock is held.
        self._returned: deque[tuple[_Slab, int, int]] = deque()

    @property
    def num_bytes(self) -> int:
        """Bytes of all slabs, used or not."""
        with self._lock:
            return sum(slab.memory.nbytes for slab in self._slabs)

    def has_room(self, num_bytes: int) -> bool:
        """Whether so much more is within the budget."""
        with self._lock:
            self._take_back()
            return self.num_used_bytes + num_bytes <= self._budget

    def carve(self, num_bytes: int) -> SlabPiece:
        """Raises MemoryError or RuntimeError when there is no memory at all."""
        wanted = max(1, -(-num_bytes // _ALIGNMENT)) * _ALIGNMENT
        while True:
            with self._lock:
                self._take_back()
                if (found := self._find(wanted) or self._grown(wanted)) is not None:
                    return self._piece(*found, wanted, num_bytes)
            if not self._reclaim():
                return SlabPiece(torch.empty(num_bytes, dtype=torch.uint8))

    def prepare(self, num_bytes: int) -> None:
        """Make slabs for so much ahead, as far as the budget goes."""
        while self.num_bytes < min(num_bytes, self._budget) and self._can_pin:
            with self._lock:
                if (found := self._grown(_ALIGNMENT)) is None:
                    return
                found[0].give(0, _ALIGNMENT)

    def check(self) -> list[str]:
        """Everything that is wrong with the book-keeping; empty when it is sound."""
        with self._lock:
            self._take_back()
            free, problems = 0, []
            for slab in self._slabs:
                free += sum(stop - start for start, stop in slab.free)
                edges = [edge for run in slab.free for edge in run]
                if edges != sorted(set(edges)) or not all(e % _ALIGNMENT == 0 for e in edges):
                    problems.append("free runs of a slab overlap, or touch")
            held = sum(slab.memory.nbytes for slab in self._slabs)
            if held - free != self.num_used_bytes:
                problems.append("the used bytes of the slabs are not what is taken of them")
            return problems

    def _take_back(self) -> None:
        while self._returned:
            slab, start, stop = self._returned.popleft()
            slab.give(start, stop)
            self.num_used_bytes -= stop - start

    def _find(self, wanted: int) -> tuple[_Slab, int] | None:
        for slab in self._slabs:
            if (start := slab.take(wanted)) is not None:
                return slab, start
        return None

    def _grown(self, wanted: int) -> tuple[_Slab, int] | None:
        """The start of a new slab; None: there are enough, or pages cannot be locked."""
        size = max(wanted, self._slab_bytes)
        held = sum(slab.memory.nbytes for slab in self._slabs)
        if not self._can_pin or held + size > max(size, _MOST_PER_BUDGET * self._budget):
            return None
        try:
            slab = _Slab(self._pin(size))
        except (MemoryError, RuntimeError) as error:
            self._can_pin = False
            why = str(error).partition("\n")[0]
            self._warn(f"memory cannot be locked, so copies from and to the GPU are slower: {why}")
            return None
        self._slabs.append(slab)
        if wanted < size:
            slab.give(wanted, size)
        return slab, 0

    def _piece(self, slab: _Slab, start: int, taken: int, num_bytes: int) -> SlabPiece:
        self.num_used_bytes += taken
        piece = SlabPiece(slab.memory[start : start + num_bytes])
        weakref.finalize(piece, self._returned.append, (slab, start, start + taken)).atexit = False
        return piece
