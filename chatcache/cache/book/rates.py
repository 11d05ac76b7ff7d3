"""Measured rates of one namespace on this machine: how fast it prefills and restores.

They turn token counts into the time that a reuse saved or a fork will cost. They are kept beside
the segments, so a new process knows them before it has computed anything.
"""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

from chatcache.atomic_write import write_atomically

MIN_MEASURED_TOKENS = 64
MIN_MEASURED_BYTES = 1_000_000  # less is the opening of a file more than its reading
CLEARLY_DEARER = 1.5
_WEIGHT = 0.3
_FORGIVENESS = 1.25


class RateBook:
    """Moving averages. A small prefill is mostly overhead: until a large one was seen the fastest
    counts, so that no saving is overstated; afterwards small ones are ignored."""

    def __init__(self, path: Path | None = None):
        self._path = path
        self.prefill_tokens_per_second: float | None = None
        self.restore_bytes_per_second: float | None = None
        self.is_measured = False
        self.step_seconds: dict[int, float] = {}  # of one token, by the number of threads
        if path is not None:
            self._load(path)

    def note_prefill(self, num_tokens: int, seconds: float) -> None:
        if num_tokens <= 0 or seconds <= 0:
            return
        rate = num_tokens / seconds
        if num_tokens < MIN_MEASURED_TOKENS:
            if not self.is_measured:
                self.prefill_tokens_per_second = max(rate, self.prefill_tokens_per_second or 0.0)
            return
        before = self.prefill_tokens_per_second if self.is_measured else None
        self.prefill_tokens_per_second = _average(before, rate)
        self.is_measured = True

    def note_restore(self, num_bytes: int, seconds: float) -> None:
        if num_bytes <= 0 or seconds <= 0:
            return
        rate = num_bytes / seconds
        if num_bytes >= MIN_MEASURED_BYTES or self.restore_bytes_per_second is None:
            self.restore_bytes_per_second = _average(self.restore_bytes_per_second, rate)

    def is_restore_dearer(self, num_bytes: int, num_tokens: int) -> bool:
        """Whether reading `num_bytes` clearly takes longer than computing the `num_tokens` in them.

        Only what was measured counts, and only where it is worth measuring."""
        compute_ms = self.prefill_ms(num_tokens)
        if compute_ms is None or not self.is_measured or num_bytes < MIN_MEASURED_BYTES:
            return False
        return self.restore_ms(num_bytes) > CLEARLY_DEARER * compute_ms

    def note_declined(self) -> None:
        """A restore was declined, so it is not measured: believe in it a little more each time, or
        one bad moment of the disk would decide for ever."""
        if self.restore_bytes_per_second is not None:
            self.restore_bytes_per_second *= _FORGIVENESS

    def prefill_ms(self, num_tokens: int) -> float | None:
        """The estimated time to compute `num_tokens`; None while nothing was measured."""
        rate = self.prefill_tokens_per_second
        return None if rate is None else 1000 * num_tokens / rate

    def restore_ms(self, num_bytes: int) -> float:
        """The estimated time to read `num_bytes` from disk; 0 while nothing was measured."""
        rate = self.restore_bytes_per_second
        return 0.0 if rate is None else 1000 * num_bytes / rate

    def save(self) -> None:
        """Best effort: rates are a convenience."""
        if self._path is None:
            return
        content = {
            "prefill_tokens_per_second": self.prefill_tokens_per_second,
            "restore_bytes_per_second": self.restore_bytes_per_second,
            "is_measured": self.is_measured,
            "step_seconds": self.step_seconds,
        }
        with contextlib.suppress(OSError):
            write_atomically(self._path, json.dumps(content).encode())

    def _load(self, path: Path) -> None:
        try:
            content = json.loads(path.read_text())
            self.prefill_tokens_per_second = _positive(content["prefill_tokens_per_second"])
            self.restore_bytes_per_second = _positive(content["restore_bytes_per_second"])
            self.is_measured = content["is_measured"] is True
            self.step_seconds = _by_count(content.get("step_seconds"))
        except (OSError, ValueError, KeyError, TypeError):
            return


def _average(before: float | None, rate: float) -> float:
    return rate if before is None else before + _WEIGHT * (rate - before)


def _by_count(value: object) -> dict[int, float]:
    """Seconds by a number of threads; nothing where any of it is no such thing."""
    try:
        found = {int(count): _positive(seconds) for count, seconds in dict(value or {}).items()}  # type: ignore[call-overload]
    except (TypeError, ValueError):
        return {}
    seconds = {count: time for count, time in found.items() if time is not None}
    return seconds if len(seconds) == len(found) else {}


def _positive(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) and value > 0 else None
