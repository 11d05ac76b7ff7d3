"""Conversations kept as 8-bit integers: near the exact ones, and the same after every pause.

Against a cold run they are approximate, which is said; among each other they are not: a resumed
conversation has the bits of the one that never stopped, whichever way it came back. (An answer that
is written again is another matter: its prompt was exact the first time.)
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from chatcache.cache.files.segfile import SegmentFile, write_segment
from tests.equivalence.engine import (
    FIRST,
    OTHER,
    SECOND,
    THIRD,
    Factory,
    IdsEngine,
    Said,
    assert_same_bits,
    check_resuming,
    check_switching,
    three_turns,
)
from tests.equivalence.families import family_model
from tests.equivalence.stateful import stateful_model

TOLERANCE = 0.3  # of the logits' deviation; measured: up to 0.1
FAMILIES = ["deepseek_v3", "gemma3_text", "llama"]
STATEFUL = ["lfm2", "qwen3_next", "zamba2"]


@pytest.fixture(scope="module", params=[*FAMILIES, *STATEFUL])
def model(request: pytest.FixtureRequest) -> Any:
    make = family_model if request.param in FAMILIES else stateful_model
    return make(str(request.param))


@pytest.fixture
def engine(model: Any, engine: Factory) -> Factory:  # pytest looks for the models' names here
    """Engines of integers, unless it is said otherwise."""

    def make(name: str = "cache", precision: str = "int8") -> IdsEngine:
        return engine(name, precision=precision)

    return make


def deviation(said: Said, other: Said) -> float:
    """Of the logits behind the prompt: what follows may be another text."""
    return float((said.logits[0] - other.logits[0]).abs().max() / other.logits[0].std())


def test_a_conversation_is_near_the_exact_one_and_not_equal(engine: Factory) -> None:
    one, two, _ = three_turns(engine("exact", "exact"), 6, is_last_kept=False)
    approximate = engine()
    approximate.turn(FIRST, 6)
    # The same ids, whatever the model would have answered.
    approximate.turn(one.ids + SECOND, 6)
    said = approximate.turn(two.ids + THIRD, 6, is_kept=False)
    assert said.reuse.num_tokens >= len(one.ids)
    exact = engine("exact", "exact").turn(two.ids + THIRD, 6, is_kept=False)
    assert exact.reuse.num_tokens == len(two.ids)
    assert 0 < deviation(said, exact) <= TOLERANCE


def test_the_first_answer_is_exact(engine: Factory) -> None:
    assert_same_bits(engine().turn(FIRST, 6), engine("exact", "exact").turn(FIRST, 6))


def test_resumed_from_ram_and_from_disk_is_never_stopped(engine: Factory) -> None:
    check_resuming(engine)


def test_switching_between_forks_and_back_changes_nothing(engine: Factory) -> None:
    check_switching(engine)


def test_going_on_from_a_regenerated_answer_is_resuming_it(engine: Factory) -> None:
    """Also where the answer is the same again, and was kept before."""
    one = engine("open").turn(FIRST, 6)
    engine("open").turn(one.ids + SECOND, 6)
    opened, closed = engine("open"), engine("open")
    again = opened.turn(one.ids + SECOND, 6)
    goes_on = opened.turn(again.ids + THIRD, 6, is_kept=False)
    assert goes_on.reuse.num_tokens == len(again.ids)
    opened.prefixes.drain()
    resumed = closed.turn(again.ids + THIRD, 6, is_kept=False)
    assert resumed.reuse.disk_tokens == len(again.ids)
    assert_same_bits(goes_on, resumed)


def test_exact_and_approximate_never_meet(engine: Factory) -> None:
    """In one directory, in both orders: the other's segments are not there."""
    one = engine("both", "exact").turn(FIRST, 6)
    int8 = engine("both", "int8").turn(one.ids + SECOND, 6)
    assert int8.reuse.num_tokens == 0
    exact = engine("both", "exact").turn(int8.ids + OTHER, 6)
    assert exact.reuse.num_tokens == len(one.ids)
    again = engine("both", "int8").turn(int8.ids + OTHER, 6)
    assert again.reuse.num_tokens == len(int8.ids)


@pytest.mark.parametrize(("first", "then"), [("exact", "int8"), ("int8", "exact")])
def test_a_file_of_the_other_kind_is_damage(
    engine: Factory, tmp_path: Path, first: str, then: str
) -> None:
    """Even if its header were right: its numbers are not taken for something else."""
    writer, before = engine("writer", first), engine("reader", then)
    said = writer.turn(FIRST, 6)
    assert before.turn(FIRST, 6).ids == said.ids
    before.prefixes.drain()
    (path,) = (tmp_path / "reader").glob(f"segments/*/*-{len(said.ids)}-*.safetensors")
    with SegmentFile(path) as file:
        header = file.header
    block = writer.live.export(header.start, header.stop, writer.live.copy_states())
    with path.open("wb") as stream:
        write_segment(stream, header, block.sources())
    again = engine("reader", then).turn(said.ids + OTHER, 6)
    assert again.reuse.is_damage
    assert again.reuse.num_tokens < len(said.ids)
    cold = engine("cold", then).turn(said.ids + OTHER, 6, is_cold=True, is_kept=False)
    assert deviation(again, cold) <= TOLERANCE
