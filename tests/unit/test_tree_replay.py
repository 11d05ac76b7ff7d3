"""Undoing the last changes of a tree gives the trees that there were."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from chatcache.cache.book.events import MAX_EVENTS
from chatcache.cache.book.policy import TierPolicy
from chatcache.cache.views import TreeShape
from chatcache.frontend.lens.tree_replay import after_event
from tests.kvfakes import BYTES_PER_TOKEN, Bench

PARTS = st.text("ab", min_size=1, max_size=4)
TALKS = st.lists(st.lists(PARTS, min_size=2, max_size=4), min_size=1, max_size=8)


def held(shape: TreeShape) -> dict[str, tuple[str, int, tuple[str, ...]]]:
    """By segment: its path, from where on it holds it, and in which tiers."""
    tiers = {segment.segment_id: segment.tiers for segment in shape.segments}
    paths: list[str] = []
    found: dict[str, tuple[str, int, tuple[str, ...]]] = {}
    for edge in shape.edges:
        above = paths[edge.parent] if edge.parent >= 0 else ""
        assert len(above) == edge.start
        paths.append(above + "".join(map(chr, edge.ids)))
        for label in edge.segments:
            known = found.get(label, ("", edge.start, ()))
            found[label] = (max(known[0], paths[-1], key=len), known[1], tiers[label])
    assert len(paths) == len(set(paths))
    return found


def edges(shape: TreeShape) -> list[tuple[int, int, bytes, tuple[str, ...]]]:
    return [(edge.parent, edge.start, edge.ids.packed, edge.segments) for edge in shape.edges]


def check_all(bench: Bench, talks: list[list[str]], *, is_exact: bool) -> None:
    seen: list[tuple[int, TreeShape]] = []
    for talk in talks:
        bench.turn(*talk)
        shape = bench.cache.tree(num_events=MAX_EVENTS)
        seen.append((len(shape.events), shape))
    now = seen[-1][1]
    for num_events, shape in seen:
        was = after_event(now, num_events - 1)
        assert held(was) == held(shape)
        if is_exact:
            assert edges(was) == edges(shape)
            hits = {segment.segment_id: segment.hits for segment in shape.segments}
            assert {segment.segment_id: segment.hits for segment in was.segments} == hits
    assert after_event(now, -1).edges == ()


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(TALKS)
def test_while_nothing_is_given_up_each_tree_is_the_one_that_was(talks: list[list[str]]) -> None:
    with tempfile.TemporaryDirectory() as directory:
        bench = Bench(Path(directory), is_spilling=False)
        check_all(bench, talks, is_exact=True)
        bench.close()


@pytest.mark.parametrize("has_disk", [False, True])
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(talks=TALKS)
def test_what_was_evicted_is_back_where_it_was(talks: list[list[str]], has_disk: bool) -> None:
    with tempfile.TemporaryDirectory() as directory:
        bench = Bench(
            Path(directory),
            ram_budget=12 * BYTES_PER_TOKEN,
            is_spilling=has_disk,
            policy=TierPolicy(spill="pressure"),
        )
        check_all(bench, talks, is_exact=False)
        bench.close()
