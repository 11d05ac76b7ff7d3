"""The growth of a turn's keys and values, step by step, and the arithmetic of what is saved."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chatcache import formatting as fmt
from chatcache.backends.questions import ModelShape
from chatcache.backends.usage import TierRun
from chatcache.chat.readings import TurnReading
from chatcache.frontend.lens import growth_view as view
from chatcache.frontend.lens.arithmetic import Work, keepings, work, work_before_each
from chatcache.frontend.lens.growth_view import GrowthFacts
from chatcache.frontend.lens.page import text_of
from chatcache.frontend.lens.state import LensKey, LensState
from chatcache.frontend.lens.views import view_named
from tests.lens_facts import reading, readings

QWEN = ModelShape(
    num_layers=28,
    num_heads=16,
    num_kv_heads=8,
    head_dim=128,
    hidden_size=1024,
    intermediate_size=3072,
    vocab_size=151_936,
    num_parameters=596_049_920,
    bytes_per_number=2,
    kv_bytes_per_token=114_688,
    prefill_chunk=512,
)
SHAPES = st.builds(
    ModelShape,
    num_layers=st.just(4),
    num_heads=st.sampled_from([4, 8]),
    num_kv_heads=st.sampled_from([1, 2, 4]),
    head_dim=st.just(16),
    hidden_size=st.just(64),
    intermediate_size=st.just(128),
    vocab_size=st.just(100),
    num_parameters=st.integers(6_400, 10**9),
    bytes_per_number=st.sampled_from([2, 4]),
    kv_bytes_per_token=st.integers(0, 10_000),
    windows=st.sampled_from([(), (0, 3, 0, 3), (7, 7, 7, 7)]),
    num_states=st.integers(0, 4),
    latent_dim=st.sampled_from([0, 40]),
    has_tied_embeddings=st.booleans(),
    prefill_chunk=st.sampled_from([0, 5, 64]),
)


@given(readings(), SHAPES | st.none(), st.integers(0, 400), st.integers(40, 110))
def test_no_line_is_wider_and_rows_are_those_of_usage(
    turn: TurnReading, shape: ModelShape | None, step: int, width: int
) -> None:
    page = view.page(GrowthFacts(turn, shape), width, None, step)
    for line in page.lines:
        assert fmt.width(text_of(line)) <= width
    assert turn.figures is not None
    usage, data = turn.figures.usage, page.data
    assert data["rows_reused"] == usage.cached_tokens
    assert data["rows_computed"] == usage.computed_tokens
    assert data["rows_written"] == usage.completion_tokens
    assert 1 <= data["step"] <= data["steps"]


@given(readings(), SHAPES | st.none())
def test_the_steps_add_every_row_once_and_in_order(
    turn: TurnReading, shape: ModelShape | None
) -> None:
    facts = GrowthFacts(turn, shape)
    steps = [view.step_at(facts, index) for index in range(view.num_steps(facts))]
    assert [step.start for step in steps] == [0, *(step.stop for step in steps[:-1])]
    assert steps[-1].stop == len(turn.ids)
    chunk = shape.prefill_chunk if shape else 0
    for step in steps:
        assert step.num_rows > 0
        assert step.kind != "prefill" or not chunk or step.num_rows <= chunk

    def after(key: LensKey, step: int) -> int:
        state = LensState(own={"growth": step})
        return int(view_named("growth").press(facts, state, key, 80).own["growth"])

    assert after("left", 0) == 0
    assert after("end", 0) == len(steps) - 1
    assert after("right", len(steps) - 1) == len(steps) - 1


@given(SHAPES, st.integers(0, 40), st.integers(0, 40))
def test_the_sums_are_those_of_counting_one_by_one(
    shape: ModelShape, start: int, more: int
) -> None:
    stop = start + more
    windows = shape.windows or (0,) * 4
    if shape.num_states:
        windows = (0,) * 4  # which of the layers keep a state is not told
        shape = replace(shape, windows=())
    per_layer = shape.latent_dim or 2 * shape.num_kv_heads * shape.head_dim
    per_layer *= shape.bytes_per_number
    shape = replace(shape, kv_bytes_per_token=(4 - shape.num_states) * per_layer)
    layers = windows[shape.num_states :]
    keys = sum(min(at + 1, w or at + 1) for at in range(start, stop) for w in layers)
    assert work(shape, start, stop).attention == 2 * shape.num_heads * shape.head_dim * keys
    again = sum((work(shape, 0, at, num_scored=0) for at in range(start, stop)), Work())
    assert work_before_each(shape, start, stop) == again


@settings(max_examples=25)
@given(readings(), SHAPES)
def test_what_is_done_up_to_a_step_is_the_sum_of_the_steps(
    turn: TurnReading, shape: ModelShape
) -> None:
    facts = GrowthFacts(turn, shape)
    done, saved = Work(), Work()
    for index in range(view.num_steps(facts)):
        more_done, more_saved = view.step_work(shape, view.step_at(facts, index))
        done, saved = done + more_done, saved + more_saved
        assert view.work_up_to(facts, shape, index) == (done, saved)


def test_the_bytes_of_a_row_are_told_with_the_numbers_put_in() -> None:
    turn = reading(1_800, 60, (TierRun(790, "ram"),))
    page = view.page(GrowthFacts(turn, QWEN), 80)
    told = " ".join(page.sentences)
    assert "28 layers x 2 (K and V) x 8 KV heads x 128 numbers x 2 bytes = 114,688 bytes" in told
    assert {way.name: way.num_bytes for way in keepings(QWEN)} == {
        "MHA": 229_376,
        "GQA": 114_688,
        "MQA": 14_336,
        "MLA": 28 * 576 * 2,
    }
    assert [way.name for way in keepings(QWEN) if way.is_own] == ["GQA"]
    assert "GQA 8 KV heads" in "\n".join(text_of(line) for line in page.lines)


@pytest.mark.parametrize(
    ("changes", "own", "words"),
    [
        ({"num_kv_heads": 16, "kv_bytes_per_token": 229_376}, "MHA", "16 KV heads"),
        ({"num_kv_heads": 1, "kv_bytes_per_token": 14_336}, "MQA", "1 KV head"),
        (
            {"latent_dim": 576, "kv_bytes_per_token": 32_256},
            "MLA",
            "x one latent of 576 numbers x 2",
        ),
        ({"windows": (512,) * 20 + (0,) * 8}, "GQA", "In 20 of 28 layers a token looks back 512"),
        ({"num_states": 20, "kv_bytes_per_token": 32_768}, "GQA", "20 of 28 layers keep a state"),
        ({"kv_bytes_per_token": 100_001}, "GQA", "100,001 bytes, as measured"),
    ],
)
def test_kinds_of_attention_are_told(changes: dict[str, int], own: str, words: str) -> None:
    shape = replace(QWEN, **changes)
    assert [way.name for way in keepings(shape) if way.is_own] == [own]
    assert words in " ".join(view.page(GrowthFacts(reading(20, 4), shape), 80).sentences)


def test_each_step_says_what_was_there_and_what_it_added() -> None:
    facts = GrowthFacts(reading(1_812, 2, (TierRun(600, "ram"), TierRun(790, "disk"))), QWEN)
    reuse, first, _, third, _, last = (
        view.page(facts, 80, None, step).sentences for step in (0, 1, 2, 3, 4, 9)
    )
    assert "rows 0 to 789 are there: they were reused" in reuse[0]
    assert "Multiplications of this step: 0; saved" in reuse[2]
    assert "computes rows 790 to 1,301 in one pass" in first[0]
    assert "790 were there, 512 added, 1,302 now, 1,814 at the end" in first[1]
    assert "token 1 of the answer is read, and adds row 1,812" in third[0]
    assert "Step 5 of 5" in last[0]


def test_without_a_model_rows_are_shown_and_the_rest_is_asked_for() -> None:
    page = view.page(GrowthFacts(reading(20, 4, (TierRun(10, "ram"),))), 80)
    drawn = "\n".join(text_of(line) for line in page.lines)
    assert "RRRR" in drawn
    assert view.ASK_FOR_MODEL in drawn
    assert page.data["multiplications"] is None
    unanswered = view.page(GrowthFacts(replace(reading(20), figures=None)), 80)
    assert "not recorded" in unanswered.sentences[0]
