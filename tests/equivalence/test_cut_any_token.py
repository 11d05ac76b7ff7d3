"""Conversations on families of every kind, cold against restored, on tiny float32 models.

Two promises: a restored turn is within rounding of a cold one (5e-3 of the logits' deviation, the
greedy text equal), and bit-identical to the conversation that never stopped. The last tests plant
faults and check that these comparisons would find them.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from chatcache.backends.local.model.cut_policy import cut_policy
from chatcache.cache.tensors.live_kv import LiveKV
from tests.equivalence.engine import (
    FIRST,
    OTHER,
    SECOND,
    THIRD,
    Factory,
    IdsEngine,
    Said,
    assert_same_bits,
    check_switching,
    three_turns,
)
from tests.equivalence.families import THOROUGHLY, family_model
from tests.machines import Machine

TOLERANCE = 5e-3
NUM_ANSWER = 6


@pytest.fixture(scope="module", params=THOROUGHLY)
def model(request: pytest.FixtureRequest) -> Any:
    return family_model(str(request.param))


@pytest.fixture(scope="module")
def straight(
    model: Any, machine: Machine, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Said, Said, Said]:
    """Three turns that were never stopped, with the steps of the machine and no tier of its own."""
    engine = IdsEngine(model, tmp_path_factory.mktemp("straight"), is_plain=True)
    said = three_turns(engine, NUM_ANSWER)
    engine.close()
    return said


def assert_close_to_cold(said: Said, cold: Said) -> None:
    deviation = (said.logits - cold.logits).abs().max() / cold.logits.std()
    assert said.answer == cold.answer
    assert deviation <= TOLERANCE


def test_the_family_is_cuttable(model: Any) -> None:
    assert cut_policy(model.config).is_cuttable


def test_a_device_with_memory_of_its_own_is_given_the_same_bits(
    engine: Factory, straight: tuple[Said, Said, Said], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Files are read into host memory and copied from there, as for a GPU; whole and in parts."""
    one = engine().turn(FIRST, 6)
    two = engine().turn(one.ids + SECOND, 6)
    monkeypatch.setattr(LiveKV, "is_staged", True)
    resumed = engine().turn(two.ids + THIRD, 6)
    assert resumed.reuse.disk_tokens == len(two.ids)
    assert_same_bits(resumed, straight[2])
    half_live = engine()
    half_live.turn(FIRST, 2)
    assert_same_bits(half_live.turn(two.ids + THIRD, 6), straight[2])


def test_a_conversation_in_memory_is_what_a_cold_run_says(engine: Factory) -> None:
    _, two, three = three_turns(engine(), NUM_ANSWER)
    assert three.reuse.num_tokens == len(two.ids)
    cold = engine("other").turn(two.ids + THIRD, 6, is_cold=True, is_kept=False)
    assert_close_to_cold(three, cold)


def test_resumed_from_ram_is_never_stopped(
    engine: Factory, straight: tuple[Said, Said, Said]
) -> None:
    _, two, three = straight
    other = engine("other")
    one = other.turn(FIRST, 6)
    other.turn(one.ids + SECOND, 6)
    other.forget_live()
    again = other.turn(two.ids + THIRD, 6)
    assert (again.reuse.num_tokens, again.reuse.disk_tokens) == (len(two.ids), 0)
    assert_same_bits(again, three)


def test_resumed_from_disk_in_a_new_process_is_never_stopped(
    engine: Factory, straight: tuple[Said, Said, Said]
) -> None:
    _, two, three = straight
    first = engine()
    one = first.turn(FIRST, 6)
    first.turn(one.ids + SECOND, 6)
    again = engine().turn(two.ids + THIRD, 6)
    assert again.reuse.disk_tokens == again.reuse.num_tokens == len(two.ids)
    assert_same_bits(again, three)


def test_a_fork_is_the_conversation_that_went_there(
    engine: Factory, straight: tuple[Said, Said, Said]
) -> None:
    one, two, _ = straight
    forked = engine()
    forked.turn(FIRST, 6)
    forked.turn(one.ids + OTHER, 9)
    again = forked.turn(one.ids + SECOND, 6)
    assert again.reuse.num_tokens == len(one.ids)
    assert_same_bits(again, two)


def test_a_fork_resumed_from_disk_has_the_bits_of_the_fork(
    engine: Factory, straight: tuple[Said, Said, Said]
) -> None:
    """Both branches begin their next turn with the same tokens, as templates do."""
    one, *_ = straight
    forked = engine()
    forked.turn(FIRST, 6)
    forked.turn([*one.ids, 7, 8, 9, *OTHER], 6)
    branch = forked.turn([*one.ids, 7, 8, 9, *SECOND], 6)
    last = forked.turn([*branch.ids, *THIRD], 6, is_kept=False)
    again = engine().turn([*branch.ids, *THIRD], 6)
    assert again.reuse.disk_tokens == len(branch.ids)
    assert_same_bits(again, last)


def test_switching_between_forks_and_back_changes_nothing(
    engine: Factory, straight: tuple[Said, Said, Said]
) -> None:
    check_switching(engine, straight)


def test_a_regenerated_answer_is_the_answer_bit_by_bit(engine: Factory) -> None:
    one, two, _ = three_turns(engine(), NUM_ANSWER)
    again = engine().turn(one.ids + SECOND, 6)
    assert again.reuse.num_tokens == len(one.ids)
    assert_same_bits(again, two)


def test_an_edited_turn_does_not_depend_on_what_was_said_instead(engine: Factory) -> None:
    one, *_ = three_turns(engine(), NUM_ANSWER)
    edited = [*one.ids, *SECOND[:3], *OTHER]
    said = engine().turn(edited, 6)
    assert said.reuse.num_tokens == len(one.ids)
    fresh = engine("other")
    fresh.turn(FIRST, 6)
    assert_same_bits(said, fresh.turn(edited, 6))


def test_a_long_message_that_changes_at_its_end_is_cut_inside(engine: Factory) -> None:
    long = FIRST * 9
    engine().turn([*long, 1, 2, 3], 3)
    said = engine().turn([*long, 4, 5], 6)
    assert said.reuse.num_tokens == len(long)
    cold = engine("other").turn([*long, 4, 5], 6, is_cold=True, is_kept=False)
    assert_close_to_cold(said, cold)


def test_eviction_in_mid_chat_costs_time_only(
    engine: Factory, straight: tuple[Said, Said, Said]
) -> None:
    one, _, three = straight
    small = engine(ram_budget=1, is_spilling=False)
    small.turn(FIRST, 6)
    small.forget_live()
    two = small.turn(one.ids + SECOND, 6)
    assert two.reuse.num_tokens == 0
    said = small.turn(two.ids + THIRD, 6)
    assert_close_to_cold(said, three)


@pytest.mark.parametrize("harm", ["zero", "other branch", "other weights"])
def test_a_planted_fault_is_found_by_these_comparisons(
    engine: Factory, straight: tuple[Said, Said, Said], harm: str
) -> None:
    _, two, three = straight
    victim = engine()
    victim.turn(two.ids[:-6], 6)
    with torch.inference_mode():
        values = victim.live.layers[0].values
        if harm == "zero":
            values[:, :, -3] = 0
        elif harm == "other branch":
            values[:, :, -4:] = values[:, :, -8:-4].clone()
        else:
            values.copy_(values.flip(-1))
    said = victim.turn(two.ids + THIRD, 6, is_kept=False)
    assert said.reuse.num_tokens == len(two.ids)
    assert not torch.equal(said.logits, three.logits)
    deviation = (said.logits[0] - three.logits[0]).abs().max() / three.logits.std()
    assert deviation > TOLERANCE
