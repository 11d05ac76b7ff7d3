"""How many threads a decode step gets: decided from how long steps took. Knows no torch, no clock.

A step is small, and its threads wait for each other at every product. Where something else wants
the cores, or where there are more of them than the step has work for, fewer are quicker.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median

_SLOW = 3.0  # times what a step should take
_NUM_STEPS = 4  # that are judged together
_BETTER = 0.8  # of the time before, or it is not worth a change
_DRIFT = 1.02  # how much longer a step may take than the one before: the context grows
_BELIEF = 1.5  # how much more is expected once fewer threads were no quicker
_FIRST_PAUSE, _LONGEST_PAUSE = 5.0, 80.0  # seconds between trials


def counts_to_try(most: int) -> tuple[int, ...]:
    """`most`, and fewer by halves down to 1."""
    counts = [max(1, most)]
    while counts[-1] > 1:
        counts.append(counts[-1] // 2)
    return tuple(counts)


def quickest(seconds: Mapping[int, float]) -> int:
    """The count that a step is computed with at first; as many as possible where it makes little
    difference, for the context grows."""
    best = min(seconds.values())
    return max(count for count, time in seconds.items() if time * _BETTER <= best)


class ThreadChooser:
    """`count` is what the next step gets; `note` each step. `seconds` are those of a step for the
    counts for which it was measured before.

    When steps take several times what they should, fewer threads are tried for a few steps, and
    kept if they are clearly quicker. With fewer than at first, more are tried again after a pause,
    and kept unless they are clearly slower. The pause doubles each time that a trial fails, so the
    count never goes to and fro."""

    def __init__(self, counts: Sequence[int], seconds: Mapping[int, float]):
        known = {count: time for count, time in seconds.items() if count in counts}
        self._counts = sorted(counts)
        self._at_first = self.count = quickest(known) if known else max(counts)
        self._should = known.get(self.count)  # what a step of `_at_first` threads takes
        self._steps: list[float] = []  # of `count` threads, that were not judged yet
        self._before: int | None = None  # the count to go back to; None: nothing is being tried
        self._to_beat = 0.0
        self._pause = _FIRST_PAUSE
        self._next_trial = 0.0

    def note(self, seconds: float, now: float) -> None:
        """A step of `count` threads took `seconds`, and ended `now`."""
        if self._should is None:
            self._should = seconds
        is_slow = seconds > _SLOW * self._should
        if self._before is None and self.count == self._at_first and not is_slow:
            self._should = min(seconds, _DRIFT * self._should)
            self._steps.clear()
            return
        self._steps.append(seconds)
        is_hopeless = self._before is not None and seconds > _SLOW * self._to_beat
        if len(self._steps) < _NUM_STEPS and not is_hopeless:
            return
        middle = median(self._steps)
        self._steps.clear()
        if self._before is not None:
            self._judge(middle, now)
        elif now >= self._next_trial:
            self._try(middle)

    def _try(self, middle: float) -> None:
        """Other threads than those with which a step takes `middle`."""
        assert self._should is not None
        at = self._counts.index(self.count)
        if middle > _SLOW * self._should and at > 0:
            at -= 1
        elif self.count < self._at_first:
            at += 1
        else:
            return
        self._before, self.count, self._to_beat = self.count, self._counts[at], middle

    def _judge(self, middle: float, now: float) -> None:
        """The end of a trial, in which a step took `middle`."""
        assert self._before is not None
        assert self._should is not None
        was_less = self.count < self._before
        limit = self._to_beat * (_BETTER if was_less else 1 / _BETTER)
        if middle <= limit:
            self._pause = _FIRST_PAUSE
            # Yet fewer may be tried at once, where these are slow too.
            is_done = not was_less or middle <= _SLOW * self._should
            self._next_trial = now + (self._pause if is_done else 0.0)
        else:
            if was_less and self._before == self._at_first:
                self._should *= _BELIEF
            self.count = self._before
            self._pause = min(2 * self._pause, _LONGEST_PAUSE)
            self._next_trial = now + self._pause
        self._before = None
