"""How many threads a decode step gets, on machines that are simulated: no clock, no torch."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chatcache.backends.local.run.thread_choice import ThreadChooser, counts_to_try, quickest

Machine = Callable[[int, float], float]  # the seconds of a step, by threads and by the time


def run(chooser: ThreadChooser, machine: Machine, seconds: float, start: float = 0.0) -> list[int]:
    """The count of each step for so long."""
    counts, now = [], start
    while now < start + seconds:
        counts.append(chooser.count)
        took = machine(chooser.count, now)
        now += took
        chooser.note(took, now)
    return counts


def num_changes(counts: list[int]) -> int:
    return sum(left != right for left, right in pairwise(counts))


def quiet(count: int, now: float) -> float:
    return {1: 0.006, 2: 0.005, 4: 0.004, 8: 0.0035}[count]


def busy(count: int, now: float) -> float:
    """The built-in model beside four busy loops: 50 tokens per second with one thread."""
    return {1: 0.02, 2: 0.285, 4: 0.5, 8: 0.9}[count]


@pytest.mark.parametrize(
    ("most", "counts"),
    [(1, (1,)), (2, (2, 1)), (3, (3, 1)), (8, (8, 4, 2, 1)), (12, (12, 6, 3, 1)), (0, (1,))],
)
def test_fewer_are_tried_by_halves(most: int, counts: tuple[int, ...]) -> None:
    assert counts_to_try(most) == counts


@pytest.mark.parametrize(
    ("seconds", "count"),
    [
        ({2: 0.005, 1: 0.006}, 2),
        ({2: 0.0055, 1: 0.005}, 2),  # a little is not worth it
        ({2: 0.285, 1: 0.02}, 1),
        ({16: 0.02, 8: 0.009, 4: 0.004, 2: 0.0038, 1: 0.006}, 4),
        ({8: 0.3}, 8),
    ],
)
def test_what_was_measured_decides_at_first(seconds: dict[int, float], count: int) -> None:
    assert quickest(seconds) == count
    assert ThreadChooser(tuple(seconds), seconds).count == count


def test_on_a_quiet_machine_nothing_changes() -> None:
    chooser = ThreadChooser((8, 4, 2, 1), {})
    assert set(run(chooser, quiet, 100)) == {8}


def test_a_context_that_grows_is_no_reason() -> None:
    chooser = ThreadChooser((2, 1), {2: 0.005, 1: 0.006})
    growing: Machine = lambda count, now: quiet(count, now) * (1 + now)  # noqa: E731
    assert set(run(chooser, growing, 20)) == {2}


@pytest.mark.parametrize("most", [2, 4, 8])
def test_where_others_want_the_cores_fewer_are_taken_and_later_more_again(most: int) -> None:
    chooser = ThreadChooser(counts_to_try(most), {})
    assert set(run(chooser, quiet, 1)) == {most}
    counts = run(chooser, busy, 60, start=1)
    lost = sum(busy(count, 0) for count in counts if count != 1)
    assert counts[-1] == 1
    assert lost < 60 / 4
    assert num_changes(counts) < 20
    after = run(chooser, quiet, 200, start=61)
    assert after[-1] == most
    assert num_changes(after) <= 5


def test_where_fewer_are_no_quicker_the_count_stays() -> None:
    chooser = ThreadChooser((2, 1), {})
    run(chooser, quiet, 1)
    counts = run(chooser, lambda count, now: 0.1, 200, start=1)
    assert counts.count(1) < len(counts) / 50
    assert counts[-1] == 2


def test_a_machine_that_is_busy_from_the_beginning() -> None:
    """What it should take is known from an earlier start."""
    chooser = ThreadChooser((2, 1), {2: 0.005, 1: 0.006})
    counts = run(chooser, busy, 10)
    assert counts[:4] == [2] * 4
    assert counts[4:8] == [1] * 4
    assert counts.count(2) < 10


@given(st.lists(st.floats(0.001, 2.0), min_size=1, max_size=400))
def test_whatever_steps_take_it_never_goes_quickly_to_and_fro(times: list[float]) -> None:
    chooser = ThreadChooser((4, 2, 1), {})
    counts, now = [], 0.0
    for seconds in times:
        counts.append(chooser.count)
        now += seconds
        chooser.note(seconds, now)
    assert set(counts) <= {4, 2, 1}
    # Down to the fewest at once; then a trial, there and back, for each pause.
    assert num_changes(counts) <= 8 + 2 * now / 5.0
