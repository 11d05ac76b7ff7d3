"""The eviction policy is a pure function; these are its promises."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from chatcache.cache.book.eviction import Candidate, choose_victims


def names(victims: list[Candidate]) -> list[str]:
    return [victim.segment_id for victim in victims]


def test_leaves_go_before_their_parents_even_if_younger() -> None:
    parent = Candidate("parent", None, 10, last_used=1)
    child = Candidate("child", "parent", 10, last_used=9)
    assert names(choose_victims([parent, child], 15, now=10)) == ["child", "parent"]


def test_the_least_recently_used_leaf_goes_first_and_no_more_than_needed() -> None:
    old, new = Candidate("old", None, 10, 1), Candidate("new", None, 10, 2)
    assert names(choose_victims([new, old], 5, now=10)) == ["old"]


def test_a_held_segment_protects_itself_and_its_ancestors() -> None:
    parent = Candidate("parent", None, 10, 1)
    child = Candidate("child", "parent", 10, 2, is_held=True)
    assert choose_victims([parent, child], 100, now=10) == []


def test_expired_segments_go_even_when_nothing_must_be_freed() -> None:
    expired = Candidate("expired", None, 10, last_used=9, expires_at=5)
    fresh = Candidate("fresh", None, 10, last_used=1, expires_at=50)
    assert names(choose_victims([expired, fresh], 0, now=10)) == ["expired"]
    assert names(choose_victims([expired, fresh], 10, now=10)) == ["expired"]


@st.composite
def forests(draw: st.DrawFn) -> list[Candidate]:
    candidates = []
    for index in range(draw(st.integers(1, 12))):
        parent = draw(st.none() | st.integers(0, index - 1)) if index else None
        candidates.append(
            Candidate(
                f"c{index}",
                None if parent is None else f"c{parent}",
                draw(st.integers(1, 20)),
                draw(st.integers(0, 9)),
                draw(st.booleans()),
            )
        )
    return candidates


@given(forests(), st.integers(0, 200))
def test_victims_are_never_held_and_never_leave_an_orphan(
    candidates: list[Candidate], needed: int
) -> None:
    victims = choose_victims(candidates, needed, now=100)
    gone = set(names(victims))
    assert not any(victim.is_held for victim in victims)
    for candidate in candidates:
        if candidate.parent_id in gone:
            assert candidate.segment_id in gone
    if sum(victim.num_bytes for victim in victims) < needed:
        kept = [candidate for candidate in candidates if candidate.segment_id not in gone]
        parents = {candidate.parent_id for candidate in kept}
        assert all(c.is_held or c.segment_id in parents for c in kept)
