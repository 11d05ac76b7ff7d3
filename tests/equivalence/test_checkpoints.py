"""Conversations on models with states: a path is gone on with from a checkpoint, or not at all.

The truth is transformers with a cache of its own, given the same pieces: two of these families
answer a little differently token by token than in one call (zamba2 by up to 6e-2 of the logits'
deviation), with or without chatcache. Resumed is bit-identical to never stopped.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import DynamicCache

from chatcache.backends.local.model.cut_policy import (
    CHECKPOINT_FAMILIES,
    STEPWISE_FAMILIES,
    cut_policy,
)
from chatcache.backends.local.run.forward import Forward
from chatcache.cache.tensors.live_kv import LiveKV
from chatcache.errors import UnavailableError
from chatcache.token_ids import TokenIds
from tests.equivalence.engine import (
    FIRST,
    OTHER,
    SECOND,
    TAIL_TOKENS,
    THIRD,
    Factory,
    IdsEngine,
    Said,
    assert_same_bits,
    three_turns,
)
from tests.equivalence.stateful import stateful_model
from tests.machines import Machine

TOLERANCE = 5e-3
NUM_ANSWER = 5
THOROUGHLY = ["falcon_h1", "jamba", "lfm2", "mamba2", "qwen3_next"]


@pytest.fixture(scope="module", params=THOROUGHLY)
def model(request: pytest.FixtureRequest) -> Any:
    return stateful_model(str(request.param))


@pytest.fixture(scope="module")
def straight(
    model: Any, machine: Machine, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Said, Said, Said]:
    """Three turns that were never stopped, with the steps of the machine and no tier of its own."""
    engine = IdsEngine(model, tmp_path_factory.mktemp("straight"), is_plain=True)
    said = three_turns(engine, NUM_ANSWER)
    engine.close()
    return said


def truth(model: Any, turns: Sequence[Sequence[int]], said: Said) -> torch.Tensor:
    """The logits of the last answer, from transformers alone: each message in one call, each token
    of an answer in a call of its own. Behind a state, stepwise families are given single tokens."""
    forward, cache = Forward(model, torch.device("cpu")), DynamicCache(config=model.config)
    is_stepwise = model.config.model_type in STEPWISE_FAMILIES
    position, kept, ids = 0, [], said.ids
    for message in turns:
        kept = []
        end = position + len(message)
        whole = end - TAIL_TOKENS if is_stepwise else end
        first = whole if position == 0 or not is_stepwise else position + 1
        logits = forward(cache, ids[position:first], position)
        for at in range(first, end):
            logits = forward(cache, ids[at : at + 1], at)
        for at in range(end, end + NUM_ANSWER):
            kept.append(logits)
            logits = forward(cache, ids[at : at + 1], at)
        position = end + NUM_ANSWER
    return torch.cat(kept)


@pytest.mark.parametrize("family", sorted(CHECKPOINT_FAMILIES | STEPWISE_FAMILIES))
def test_the_family_resumes_from_a_checkpoint(family: str, tmp_path: Path) -> None:
    model = stateful_model(family)
    policy = cut_policy(model.config)
    assert (policy.kind, policy.is_stepwise) == ("turn_boundary", family in STEPWISE_FAMILIES)
    first = IdsEngine(model, tmp_path)
    one = first.turn(FIRST, NUM_ANSWER)
    two = first.turn([*one.ids, *SECOND], NUM_ANSWER)
    three = first.turn([*two.ids, *THIRD], NUM_ANSWER, is_kept=False)
    first.close()
    again = IdsEngine(model, tmp_path)
    resumed = again.turn([*two.ids, *THIRD], NUM_ANSWER)
    again.close()
    assert resumed.reuse.disk_tokens == resumed.reuse.num_tokens == len(two.ids)
    assert_same_bits(resumed, three)
    expected = truth(model, [FIRST, SECOND, THIRD], three)
    assert expected.argmax(-1).tolist() == three.answer
    assert (three.logits - expected).abs().max() <= TOLERANCE * expected.std()


def test_what_is_live_is_gone_on_with_in_place(engine: Factory) -> None:
    _, two, three = three_turns(engine(), NUM_ANSWER)
    assert (three.reuse.num_tokens, three.reuse.bytes_read) == (len(two.ids), 0)


def test_resumed_from_ram_is_never_stopped(
    engine: Factory, straight: tuple[Said, Said, Said]
) -> None:
    _, two, three = straight
    other = engine("other")
    one = other.turn(FIRST, NUM_ANSWER)
    other.turn(one.ids + SECOND, NUM_ANSWER)
    other.forget_live()
    again = other.turn(two.ids + THIRD, NUM_ANSWER)
    assert (again.reuse.num_tokens, again.reuse.disk_tokens) == (len(two.ids), 0)
    assert_same_bits(again, three)


def test_a_fork_begins_at_the_end_of_the_answer_before_it(
    engine: Factory, straight: tuple[Said, Said, Said]
) -> None:
    one, two, three = straight
    forked = engine()
    forked.turn(FIRST, NUM_ANSWER)
    forked.turn(one.ids + OTHER, 9)
    branch = forked.turn(one.ids + SECOND, NUM_ANSWER)
    assert branch.reuse.num_tokens == len(one.ids)
    assert_same_bits(branch, two)
    forked.turn(one.ids + OTHER, 9)
    again = forked.turn(two.ids + THIRD, NUM_ANSWER)
    assert again.reuse.num_tokens == len(two.ids)
    assert_same_bits(again, three)


def test_a_regenerated_answer_begins_at_the_end_of_the_message(engine: Factory) -> None:
    one, two, _ = three_turns(engine(), NUM_ANSWER)
    prompt = one.ids + SECOND
    again = engine().turn(prompt, NUM_ANSWER)
    assert again.reuse.num_tokens == len(prompt) - TAIL_TOKENS
    assert_same_bits(again, two)


def test_a_template_that_rewrites_the_answer_falls_back_to_the_message(engine: Factory) -> None:
    talker = engine()
    one = talker.turn(FIRST, NUM_ANSWER)
    rewritten = [*one.ids[: len(FIRST) - TAIL_TOKENS], 5, 6, *one.answer[2:], *SECOND]
    said = talker.turn(rewritten, NUM_ANSWER)
    assert said.reuse.num_tokens == len(FIRST) - TAIL_TOKENS
    fresh = engine("other")
    fresh.turn(FIRST, NUM_ANSWER)
    fresh.forget_live()
    assert_same_bits(said, fresh.turn(rewritten, NUM_ANSWER))


def test_an_edited_message_is_not_cut_inside(engine: Factory) -> None:
    one, *_ = three_turns(engine(), NUM_ANSWER)
    edited = [*one.ids, *SECOND[:3], *OTHER]
    said = engine().turn(edited, NUM_ANSWER)
    assert said.reuse.num_tokens == len(one.ids)
    assert said.reuse.num_matched == len(one.ids) + 3
    fresh = engine("other")
    fresh.turn(FIRST, NUM_ANSWER)
    assert_same_bits(said, fresh.turn(edited, NUM_ANSWER))


def test_a_prefill_that_was_stopped_is_gone_on_with(engine: Factory) -> None:
    one, *_ = three_turns(engine("straight"), NUM_ANSWER)
    long = one.ids + SECOND * 6
    whole = engine("straight").turn(long, NUM_ANSWER)
    talker = engine()
    talker.turn(FIRST, NUM_ANSWER)
    stopped = talker.turn(long, NUM_ANSWER, stop_after=len(one.ids) + 2)
    assert not stopped.answer
    again = engine().turn(long, NUM_ANSWER)
    assert again.reuse.num_tokens == len(stopped.ids) < len(long)
    assert again.answer == whole.answer
    assert (again.logits - whole.logits).abs().max() <= TOLERANCE * whole.logits.std()


def test_without_its_checkpoint_nothing_is_reused(engine: Factory) -> None:
    small = engine(ram_budget=1, is_spilling=False)
    one = small.turn(FIRST, NUM_ANSWER)
    small.forget_live()
    two = small.turn(one.ids + SECOND, NUM_ANSWER)
    assert two.reuse.num_tokens == 0
    cold = engine("other").turn(one.ids + SECOND, NUM_ANSWER, is_cold=True, is_kept=False)
    assert_same_bits(two, cold)


def test_a_damaged_checkpoint_costs_time_only(engine: Factory, tmp_path: Path) -> None:
    _, two, three = three_turns(engine(), NUM_ANSWER)
    engine()
    for path in sorted((tmp_path / "cache").rglob(f"{len(two.ids)}-*.safetensors")):
        content = bytearray(path.read_bytes())
        content[-3] ^= 0xFF  # states are the last in a file
        path.write_bytes(content)
    again = engine().turn(two.ids + THIRD, NUM_ANSWER)
    assert again.reuse.is_damage
    assert again.reuse.num_tokens == len(two.ids)
    assert_same_bits(again, three)


@contextlib.contextmanager
def without_memory(model: Any) -> Iterator[None]:
    """The last layer finds no memory, when those before it have computed already."""

    def fail(*_: Any) -> None:
        raise torch.OutOfMemoryError("out of memory")

    layers = next(part for part in model.modules() if isinstance(part, torch.nn.ModuleList))
    hook = layers[-1].register_forward_pre_hook(fail)
    try:
        with pytest.raises(UnavailableError, match="not enough memory"):
            yield
    finally:
        hook.remove()


def test_a_prompt_that_memory_ran_out_for_leaves_no_state(engine: Factory) -> None:
    talker = engine()
    one = talker.turn(FIRST, NUM_ANSWER)
    with without_memory(talker.model):
        talker.turn(one.ids + OTHER, NUM_ANSWER)
    said = talker.turn(one.ids + SECOND, NUM_ANSWER)
    expected = truth(talker.model, [FIRST, SECOND], said)
    assert (said.logits - expected).abs().max() <= TOLERANCE * expected.std()


def test_an_answer_that_memory_ran_out_for_is_no_checkpoint(engine: Factory) -> None:
    talker = engine()
    one = talker.turn(FIRST, NUM_ANSWER)
    prompt = one.ids + SECOND
    reuse = talker.context.reuse(TokenIds(prompt), len(prompt) - 1)
    list(talker.context.prefill(TokenIds(prompt), reuse.num_tokens, stops=[len(prompt)]))
    with without_memory(talker.model):
        talker.context.step(OTHER[0], len(prompt))
    talker.context.commit(TokenIds([*prompt, OTHER[0]]), [len(prompt), len(prompt) + 1])
    said = engine().turn(prompt + OTHER, NUM_ANSWER)
    expected = truth(talker.model, [FIRST, SECOND + OTHER], said)
    assert (said.logits - expected).abs().max() <= TOLERANCE * expected.std()


def test_many_steps_are_not_taken_where_one_prefill_is_quicker(tmp_path: Path) -> None:
    engine = IdsEngine(stateful_model("jamba"), tmp_path)
    one = engine.turn(FIRST, NUM_ANSWER)
    engine.rates.note_prefill(1_000_000, 1.0)
    said = engine.turn(one.ids + SECOND * 4, NUM_ANSWER)
    expected = truth(engine.model, [said.ids[:-NUM_ANSWER]], said)
    engine.close()
    assert said.reuse.num_tokens == 0
    assert "24 tokens one by one" in str(said.reuse.declined)
    assert expected.argmax(-1).tolist() == said.answer


def test_a_checkpoint_of_another_shape_is_refused(model: Any) -> None:
    live = LiveKV(model.config.num_hidden_layers, torch.float32, torch.device("cpu"), model.config)
    Forward(model, torch.device("cpu"))(live, [0], 0)
    name = next(iter(live.copy_states()))
    with pytest.raises(ValueError, match="not a state"):
        live.writable_state(name, "F32", (1, 2, 3))
    with pytest.raises(ValueError, match="not a state"):
        live.writable_state("conv.99.0", "F32", (1, 2, 3))
    with pytest.raises(ValueError, match="other states"):
        live.states_written()


def test_half_of_a_checkpoint_that_was_damaged_completes_no_other(model: Any) -> None:
    live = LiveKV(model.config.num_hidden_layers, torch.float32, torch.device("cpu"), model.config)
    Forward(model, torch.device("cpu"))(live, [0], 0)
    states = live.copy_states()
    first, *others = states
    live.writable_state(first, "F32", tuple(states[first].shape))
    live.truncate(0)
    for name in others:
        live.writable_state(name, "F32", tuple(states[name].shape))
    with pytest.raises(ValueError, match="other states"):
        live.states_written()


@pytest.mark.parametrize("harm", ["zeroed state", "state of another branch", "state too early"])
def test_a_planted_fault_is_found_by_these_comparisons(
    engine: Factory, straight: tuple[Said, Said, Said], harm: str
) -> None:
    one, two, three = straight
    victim = engine()
    victim.turn(FIRST, NUM_ANSWER)
    victim.turn(one.ids + SECOND, NUM_ANSWER)
    states = victim.live.copy_states()
    other = engine("other")
    other.turn(FIRST, NUM_ANSWER)
    if harm == "state of another branch":
        other.turn(one.ids + OTHER, NUM_ANSWER)
    wrong = other.live.copy_states()
    with torch.inference_mode():
        for name in states:
            layer, index = victim.live.layers[int(name.split(".")[1])], int(name.split(".")[2])
            kind = layer.conv_states if name.startswith("conv") else layer.recurrent_states
            kind[index].copy_(wrong[name] if harm != "zeroed state" else 0 * wrong[name])
    said = victim.turn(two.ids + THIRD, NUM_ANSWER, is_kept=False)
    assert said.reuse.num_tokens == len(two.ids)
    assert not torch.equal(said.logits, three.logits)
    deviation = (said.logits[0] - three.logits[0]).abs().max() / three.logits.std()
    assert deviation > TOLERANCE
