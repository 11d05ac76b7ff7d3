"""Slabs: whatever is carved and given back, pieces never overlap and nothing is lost."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from chatcache.cache.tensors.slabs import SlabPiece, Slabs
from tests.lazy_link import LazyLink

SLAB = 4096


def slabs(budget: int, link: LazyLink, warnings: list[str] | None = None) -> Slabs:
    heard = [] if warnings is None else warnings
    return Slabs(link.pinned, budget, lambda: False, heard.append, SLAB)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.one_of(st.integers(1, 5000), st.integers(-20, -1)), max_size=60))
def test_pieces_never_overlap_and_come_back(steps: list[int]) -> None:
    """A positive step carves so many bytes, a negative one gives one of the pieces back."""
    link = LazyLink()
    made = slabs(1 << 20, link)
    held: list[tuple[SlabPiece, int]] = []
    for number, step in enumerate(steps):
        if step > 0:
            piece = made.carve(step)
            piece.memory.fill_(number)
            held.append((piece, number))
        elif held:
            del held[step % len(held)]
        for piece, content in held:
            assert bool((piece.memory == content).all())
        assert made.check() == []
    num_pins = link.num_pins
    piece = None  # type: ignore[assignment]
    held.clear()
    assert made.has_room(1 << 20)
    assert made.num_used_bytes == 0
    for _ in range(num_pins):
        held.append((made.carve(SLAB), 0))
    assert link.num_pins == num_pins  # what came back is joined again, and used again


def test_slabs_are_made_once_and_not_beyond_the_budget() -> None:
    link = LazyLink()
    made = slabs(4 * SLAB, link)
    held = [made.carve(SLAB) for _ in range(8)]
    assert link.num_pins == 5  # a quarter more than the budget
    assert made.num_bytes == 5 * SLAB
    held.clear()
    held += [made.carve(SLAB) for _ in range(5)]
    assert link.num_pins == 5


def test_slabs_that_were_made_ahead_are_used() -> None:
    link = LazyLink()
    made = slabs(4 * SLAB, link)
    made.prepare(100 * SLAB)
    assert (link.num_pins, made.num_used_bytes, made.check()) == (4, 0, [])
    held = [made.carve(SLAB) for _ in range(4)]
    assert (link.num_pins, len(held)) == (4, 4)


def test_what_is_larger_than_a_slab_has_one_of_its_own() -> None:
    link = LazyLink()
    made = slabs(100 * SLAB, link)
    assert made.carve(10 * SLAB).memory.nbytes == 10 * SLAB
    assert made.num_bytes == 10 * SLAB


def test_memory_that_cannot_be_locked_is_replaced_by_ordinary_memory_and_said_once() -> None:
    warnings: list[str] = []
    made = slabs(100 * SLAB, LazyLink(num_pinnable_bytes=SLAB), warnings)
    held = [made.carve(SLAB) for _ in range(3)]
    assert [piece.memory.nbytes for piece in held] == [SLAB] * 3
    (warning,) = warnings
    assert warning.endswith("from and to the GPU are slower: CUDA error: out of memory")
    assert made.num_used_bytes == SLAB


def test_a_full_budget_waits_for_copies_that_end() -> None:
    link = LazyLink()
    under_way: list[SlabPiece] = []

    def reclaim() -> bool:
        had_one = bool(under_way)
        under_way.clear()
        return had_one

    made = Slabs(link.pinned, SLAB, reclaim, lambda text: None, SLAB)
    under_way.append(made.carve(SLAB))
    assert made.carve(SLAB).memory.data_ptr() % 64 == 0
    assert (link.num_pins, under_way) == (1, [])


def test_a_piece_holds_any_dtype() -> None:
    made = slabs(100 * SLAB, LazyLink())
    first, second = made.carve(3), made.carve(8)
    assert first.memory.nbytes == 3
    assert second.memory.view(torch.float64).shape == (1,)
