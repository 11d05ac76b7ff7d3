"""What is computed ahead of a turn, in pieces and live only: resumed is still never stopped."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from chatcache.token_ids import TokenIds
from tests.equivalence.engine import FIRST, Factory, IdsEngine, Said, assert_same_bits
from tests.equivalence.families import family_model

DRAFT = [43, 38, 32, 79, 50, 28, 84, 19, 71, 69, 39, 93, 75, 10]
SENT = [*DRAFT, 58, 20]
THIRD = [84, 49, 44, 59]
TOLERANCE = 5e-3


@pytest.fixture(scope="module")
def model() -> Any:
    return family_model("qwen3")


def ahead(engine: IdsEngine, ids: Sequence[int], chunk: int = 3) -> None:
    """Compute ids as idle work does: live, in small pieces, and keep nothing."""
    start = engine.context.ready(TokenIds(ids)).num_tokens
    for _ in engine.context.prefill(TokenIds(ids), start, chunk):
        pass


def drafted(engine: IdsEngine) -> tuple[Said, Said]:
    """Two turns; the second message was computed while it was typed, word by word."""
    one = engine.turn(FIRST, 6)
    for stop in (2, 7, len(DRAFT)):
        ahead(engine, [*one.ids, *DRAFT[:stop]])
    return one, engine.turn([*one.ids, *SENT], 6)


def test_a_draft_is_reused_and_says_what_a_cold_run_says(engine: Factory) -> None:
    one, two = drafted(engine())
    assert two.reuse.num_tokens == len(one.ids) + len(DRAFT)
    cold = engine("other").turn([*one.ids, *SENT], 6, is_cold=True, is_kept=False)
    assert two.answer == cold.answer
    assert (two.logits - cold.logits).abs().max() / cold.logits.std() <= TOLERANCE


@pytest.mark.parametrize("where", ["ram", "disk"])
def test_resumed_after_a_drafted_turn_is_never_stopped(engine: Factory, where: str) -> None:
    first = engine()
    _, two = drafted(first)
    straight = first.turn([*two.ids, *THIRD], 6, is_kept=False)
    again = first if where == "ram" else engine()
    again.forget_live()
    resumed = again.turn([*two.ids, *THIRD], 6)
    assert resumed.reuse.num_tokens == len(two.ids)
    assert_same_bits(resumed, straight)


def test_a_branch_that_was_drafted_has_its_own_bits(engine: Factory) -> None:
    """The other branch holds the first tokens of the draft already, computed in another piece."""
    forked = engine()
    one = forked.turn(FIRST, 6)
    forked.turn([*one.ids, *DRAFT[:5], 1, 2], 6)
    ahead(forked, [*one.ids, *DRAFT])
    branch = forked.turn([*one.ids, *SENT], 6)
    assert branch.reuse.num_tokens == len(one.ids) + len(DRAFT)
    last = forked.turn([*branch.ids, *THIRD], 6, is_kept=False)
    resumed = engine().turn([*branch.ids, *THIRD], 6)
    assert resumed.reuse.disk_tokens == len(branch.ids)
    assert_same_bits(resumed, last)


def test_what_segments_hold_is_preferred_to_what_was_computed_ahead(engine: Factory) -> None:
    """The same message once more: the turn is bit by bit the one that was never drafted."""
    plain = engine("plain")
    one = plain.turn(FIRST, 6)
    two = plain.turn([*one.ids, *SENT], 6)
    again = engine("plain")
    ahead(again, [*one.ids, *DRAFT])
    assert_same_bits(again.turn([*one.ids, *SENT], 6), two)


def test_a_draft_that_is_given_up_leaves_no_trace(engine: Factory) -> None:
    plain, other = engine("plain"), engine("other")
    one = plain.turn(FIRST, 6)
    other.turn(FIRST, 6)
    ahead(other, [*one.ids, *DRAFT])
    assert_same_bits(other.turn([*one.ids, *THIRD], 6), plain.turn([*one.ids, *THIRD], 6))


def test_only_a_turn_keeps_what_was_computed_ahead(engine: Factory) -> None:
    first = engine()
    one = first.turn(FIRST, 6)
    ahead(first, [*one.ids, *DRAFT])
    assert first.prefixes.lookup(TokenIds([*one.ids, *DRAFT])).num_tokens == len(one.ids)
    first.forget_live()
    assert first.context.ready(TokenIds([*one.ids, *DRAFT])).num_tokens == len(one.ids)


def test_the_same_question_after_a_drafted_one_resumes_to_the_bit(engine: Factory) -> None:
    """Answered once more, its prompt is computed in one piece, but held in pieces."""
    first = engine()
    one, _ = drafted(first)
    regenerated = first.turn([*one.ids, *SENT], 9)
    straight = first.turn([*regenerated.ids, *THIRD], 6, is_kept=False)
    resumed = engine().turn([*regenerated.ids, *THIRD], 6)
    assert resumed.reuse.disk_tokens == len(regenerated.ids)
    assert_same_bits(resumed, straight)


@pytest.mark.parametrize("where", ["ram", "disk"])
def test_a_long_question_answered_once_more_resumes_to_the_bit(engine: Factory, where: str) -> None:
    """Of a long prompt that is held, only the last token is computed: alone, with other bits."""
    first = engine()
    one = first.turn(FIRST, 6)
    long = [*one.ids, *DRAFT * 5]
    first.turn(long, 6)
    again = first.turn(long, 9)
    assert again.reuse.num_tokens == len(long) - 1
    straight = first.turn([*again.ids, *THIRD], 6, is_kept=False)
    if where == "disk":
        first = engine()
    first.forget_live()
    assert_same_bits(first.turn([*again.ids, *THIRD], 6), straight)


def test_a_damaged_segment_costs_the_settling_a_recomputation(
    engine: Factory, tmp_path: Path
) -> None:
    first = engine()
    one, two = drafted(first)
    first.prefixes.drain()
    other = engine()
    held = other.prefixes.lookup(TokenIds([*one.ids, *SENT])).spans[-1].segment_id
    path = next(path for path in tmp_path.rglob("*.safetensors") if held in path.name)
    content = bytearray(path.read_bytes())
    content[-5] ^= 0xFF
    path.write_bytes(content)
    again = other.turn([*one.ids, *SENT], 6)
    assert again.answer == two.answer
    cold = engine("other").turn([*one.ids, *SENT], 6, is_cold=True, is_kept=False)
    assert (again.logits - cold.logits).abs().max() / cold.logits.std() <= TOLERANCE


def test_a_turn_without_the_cache_does_not_look_at_it(engine: Factory) -> None:
    first = engine()
    one, two = drafted(first)
    fresh = engine("fresh").turn(two.ids[: len(one.ids) + len(SENT)], 6, is_cold=True)
    again = first.turn(two.ids[: len(one.ids) + len(SENT)], 6, is_cold=True, is_kept=False)
    assert_same_bits(again, fresh)
