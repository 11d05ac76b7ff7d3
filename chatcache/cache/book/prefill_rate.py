"""How long a model takes to read tokens: three numbers from the prefills that were timed.

    seconds = overhead + per_token * tokens + per_pair * tokens * mean position

The last part is attention, which looks at all that comes before. A small model in a long context
spends most of its time there, so that one number per token would be wrong by several times.
What is far from what was expected is set aside, and believed when the next one says the same:
a bad moment changes nothing, and two prefills replace whatever was believed before.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

MIN_MEASURED_TOKENS = 64  # of a smaller prefill most is overhead
_NUM_SMALL, _NUM_PER_KIND = 3, 2
_ALIKE = 2.0  # what differs by less is noise
_MIN_SIZES = 4  # sizes that are so many times apart tell the overhead
_MIN_POSITIONS = 2  # and positions the time for attention
_MIN_FAR = 1024  # positions before this one say little of attention
_COST_OF_A_NUMBER = 0.01  # in squares of relative errors: what does not explain more is left out


_Numbers = tuple[float, float, float]


@dataclass(frozen=True, slots=True)
class Prefill:
    """`num_tokens` behind `start` others took `seconds`."""

    num_tokens: int
    seconds: float
    start: int = 0

    @property
    def middle(self) -> float:
        """The mean position."""
        return self.start + self.num_tokens / 2

    @property
    def is_telling(self) -> bool:
        return self.num_tokens >= MIN_MEASURED_TOKENS

    @property
    def parts(self) -> tuple[float, float, float]:
        """What the three numbers are multiplied with."""
        return 1.0, float(self.num_tokens), self.num_tokens * self.middle

    @property
    def kind(self) -> tuple[int, int]:
        """Equal for prefills of about the same size and place."""
        return self.num_tokens.bit_length() // 2, int(self.middle).bit_length() // 2


class PrefillRate:
    """What is believed of one model on one device."""

    def __init__(self) -> None:
        self._large: list[Prefill] = []
        self._small: list[Prefill] = []
        self._doubt: Prefill | None = None
        self._numbers: _Numbers | None = None

    @property
    def prefills(self) -> tuple[Prefill, ...]:
        """All that counts, for keeping it."""
        return (*self._small, *self._large)

    @property
    def doubt(self) -> Prefill | None:
        """The last one, if it was far from what was expected."""
        return self._doubt

    def restart(self, prefills: Iterable[Prefill], doubt: Prefill | None) -> None:
        """Go on from what was kept."""
        for prefill in prefills:
            self._keep(prefill)
        self._doubt = doubt
        self._numbers = None

    @property
    def is_measured(self) -> bool:
        """Whether a prefill of at least 64 tokens was seen. Until then the quickest small one
        counts, so that no saving is overstated."""
        return bool(self._large)

    def note(self, prefill: Prefill) -> None:
        if prefill.num_tokens <= 0 or prefill.seconds <= 0:
            return
        if not self._is_doubtful(prefill):
            self._keep(prefill)
            self._doubt = None if prefill.is_telling else self._doubt
        elif self._doubt is not None and self._is_quicker(self._doubt) == self._is_quicker(prefill):
            before, self._doubt, self._large, self._small = self._doubt, None, [], []
            self._keep(before)
            self._keep(prefill)
        else:
            self._doubt = prefill
        self._numbers = None

    def seconds(self, num_tokens: int, start: int = 0) -> float | None:
        """The time to read so many tokens behind `start` others; None while nothing was timed."""
        if num_tokens <= 0:
            return 0.0
        if self._numbers is None and self.prefills:
            self._numbers = _fitted(self._small, self._large)
        return None if self._numbers is None else _expected(num_tokens, start, self._numbers)

    def _is_doubtful(self, prefill: Prefill) -> bool:
        """Whether it is far from what large ones say, and no three numbers explain it with them.
        That a small one is slow says nothing."""
        if not self._large:
            return False
        expected = self.seconds(prefill.num_tokens, prefill.start) or 0.0
        if not prefill.is_telling:
            return _ALIKE * prefill.seconds < expected
        if _is_alike(prefill.seconds, expected):
            return False
        together = _with(self._large, prefill)
        numbers = _fitted(self._small, together)
        return not all(
            _is_alike(each.seconds, _expected(each.num_tokens, each.start, numbers))
            for each in together
        )

    def _is_quicker(self, prefill: Prefill) -> bool:
        return prefill.seconds < (self.seconds(prefill.num_tokens, prefill.start) or 0.0)

    def _keep(self, prefill: Prefill) -> None:
        if prefill.is_telling:
            self._large = _with(self._large, prefill)
        else:
            self._small = [*self._small, prefill][-_NUM_SMALL:]


def _with(large: Sequence[Prefill], prefill: Prefill) -> list[Prefill]:
    """One more, and of its kind none but the last ones."""
    same = [index for index, each in enumerate(large) if each.kind == prefill.kind]
    gone = same[: max(0, len(same) + 1 - _NUM_PER_KIND)]
    return [*(each for index, each in enumerate(large) if index not in gone), prefill]


def _is_alike(seconds: float, expected: float) -> bool:
    return expected / _ALIKE <= seconds <= expected * _ALIKE


def _expected(num_tokens: int, start: int, numbers: _Numbers) -> float:
    parts = Prefill(num_tokens, 0.0, start).parts
    return sum(number * part for number, part in zip(numbers, parts, strict=True))


def _fitted(small: Sequence[Prefill], large: Sequence[Prefill]) -> _Numbers:
    """The numbers that explain best what was timed, as few as do."""
    if not large:
        return 0.0, min(each.seconds / each.num_tokens for each in small), 0.0
    seen = [*small, *large]
    choices: list[tuple[int, ...]] = [(1,)]
    if _spread(each.num_tokens for each in seen) >= _MIN_SIZES:
        choices.append((0, 1))
    is_far = max(each.middle for each in seen) >= _MIN_FAR
    if is_far and _spread(each.middle for each in seen) >= _MIN_POSITIONS:
        choices += [(*chosen, 2) for chosen in choices]
    fits = (_fit(seen, chosen) for chosen in choices)
    return min((fit for fit in fits if fit is not None), key=lambda fit: fit[0])[1]


def _spread(values: Iterable[float]) -> float:
    found = list(values)
    return max(found) / min(found)


def _fit(seen: Sequence[Prefill], chosen: Sequence[int]) -> tuple[float, _Numbers] | None:
    """The numbers at `chosen`, the others being 0, with the least squares of relative errors, and
    how bad that is; None where they would be negative or are not determined."""
    rows = [[each.parts[index] / each.seconds for index in chosen] for each in seen]
    count = range(len(chosen))
    squares = [[sum(row[i] * row[j] for row in rows) for j in count] for i in count]
    solved = _solve(squares, [sum(row[i] for row in rows) for i in count])
    if solved is None or min(solved) < 0:
        return None
    errors = (sum(a * b for a, b in zip(row, solved, strict=True)) - 1 for row in rows)
    numbers = dict(zip(chosen, solved, strict=True))
    badness = sum(error * error for error in errors) + _COST_OF_A_NUMBER * len(chosen)
    return badness, (numbers.get(0, 0.0), numbers.get(1, 0.0), numbers.get(2, 0.0))


def _solve(matrix: list[list[float]], right: list[float]) -> list[float] | None:
    """By elimination, for a symmetric matrix; None where it is singular, or nearly."""
    size = len(right)
    rows = [[*row, value] for row, value in zip(matrix, right, strict=True)]
    for at in range(size):
        if rows[at][at] <= 1e-9 * matrix[at][at]:
            return None
        for below, column in itertools.product(range(at + 1, size), range(size, at - 1, -1)):
            rows[below][column] -= rows[at][column] * rows[below][at] / rows[at][at]
    found = [0.0] * size
    for at in reversed(range(size)):
        known = sum(rows[at][column] * found[column] for column in range(at + 1, size))
        found[at] = (rows[at][size] - known) / rows[at][at]
    return found
