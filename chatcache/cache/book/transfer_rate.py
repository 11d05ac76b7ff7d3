"""How long a tier takes to bring segments into the live KV: two numbers from what was timed.

A latency per segment, from small transfers, and a bandwidth, from those of at least 16 MB: less is
the opening of files, and a page cache, more than their reading. Of each kind the last two count,
and of these the quicker one: so a bad moment changes nothing, and two transfers in a row replace
whatever was believed before. Knows no tier by name, and no file.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass

MIN_TELLING_BYTES = 16_000_000
_NUM_KEPT = 2
_MAX_PATIENCE = 8
_ALIKE = 1.5  # bandwidths within this factor say the same


@dataclass(frozen=True, slots=True)
class Transfer:
    """`num_segments` with `num_bytes` in all took `seconds`."""

    num_bytes: int
    seconds: float
    num_segments: int = 1

    @property
    def is_telling(self) -> bool:
        """Whether it says something of the bandwidth."""
        return self.num_bytes >= MIN_TELLING_BYTES

    def plus(self, other: Transfer) -> Transfer:
        return Transfer(
            self.num_bytes + other.num_bytes,
            self.seconds + other.seconds,
            self.num_segments + other.num_segments,
        )


NO_TRANSFER = Transfer(0, 0.0, 0)


class TransferRate:
    """What is believed of one tier.

    Where computing is quicker a transfer is declined, and so not timed. After `patience` of those
    one is tried all the same; each that confirms the belief makes the next one wait twice as long.
    """

    def __init__(self) -> None:
        self._large: deque[Transfer] = deque(maxlen=_NUM_KEPT)
        self._small: deque[Transfer] = deque(maxlen=_NUM_KEPT)
        self._num_declined = 0
        self._patience = 1

    @property
    def transfers(self) -> tuple[Transfer, ...]:
        """All that counts, for keeping it."""
        return (*self._small, *self._large)

    @property
    def declines(self) -> tuple[int, int]:
        """How many there were since the last transfer, and after how many one is tried."""
        return self._num_declined, self._patience

    def restart(self, transfers: Iterable[Transfer], declines: tuple[int, int]) -> None:
        """Go on from what was kept."""
        for transfer in transfers:
            self._keep(transfer)
        self._num_declined, self._patience = declines[0], max(1, min(declines[1], _MAX_PATIENCE))

    def note(self, transfer: Transfer) -> None:
        if transfer.num_bytes <= 0 or transfer.seconds <= 0:
            return
        before = self.bytes_per_second
        self._keep(transfer)
        after = self.bytes_per_second
        if self._num_declined and before is not None and after is not None:
            is_confirmed = after <= _ALIKE * before
            self._patience = min(2 * self._patience, _MAX_PATIENCE) if is_confirmed else 1
        self._num_declined = 0

    def note_declined(self) -> None:
        self._num_declined += 1

    @property
    def is_to_be_tried(self) -> bool:
        """Whether the next transfer is to be made although it seems to be dearer."""
        return self._num_declined >= self._patience

    @property
    def bytes_per_second(self) -> float | None:
        """None while nothing of 16 MB was timed."""
        latency = self.latency_seconds
        rates = (
            # At most half of a large transfer is put down to what small ones say.
            each.num_bytes / (each.seconds - min(each.num_segments * latency, each.seconds / 2))
            for each in self._large
        )
        return max(rates, default=None)

    @property
    def latency_seconds(self) -> float:
        """What a segment costs before its first byte; 0 while nothing small was timed."""
        pace = min((each.seconds / each.num_bytes for each in self._large), default=0.0)
        waits = (
            max(0.0, each.seconds - pace * each.num_bytes) / max(1, each.num_segments)
            for each in self._small
        )
        return min(waits, default=0.0)

    def seconds(self, num_bytes: int, num_segments: int = 1) -> float | None:
        """The time that a transfer would take; None while the bandwidth is not known."""
        bandwidth = self.bytes_per_second
        if bandwidth is None:
            return None
        # What small transfers say is never more than the bytes alone take of a large one.
        through = num_bytes / bandwidth
        wait = num_segments * self.latency_seconds
        return through + (min(wait, through) if num_bytes >= MIN_TELLING_BYTES else wait)

    def about(self, num_bytes: int, num_segments: int = 1) -> float | None:
        """The same for people: of little, where the bandwidth is not known, the latency alone."""
        seconds = self.seconds(num_bytes, num_segments)
        if seconds is None and num_bytes < MIN_TELLING_BYTES:
            return num_segments * self.latency_seconds
        return seconds

    def _keep(self, transfer: Transfer) -> None:
        (self._large if transfer.is_telling else self._small).append(transfer)
