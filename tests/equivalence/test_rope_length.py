"""Rotary embeddings that change with the length of the prompt: reused below, rebuilt on crossing.

The truth is plain transformers, one forward over all tokens without any cache.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from chatcache.backends.local.model.cut_policy import cut_policy
from tests.equivalence.engine import IdsEngine, Said
from tests.equivalence.families import family_model

TOLERANCE = 5e-3
ORIGINAL = 24
FIRST = [3, 14, 15, 92, 65, 35, 89, 79]
SECOND = [43, 38, 32, 79]
LONG = [84, 19, 71, 69, 39, 93, 75, 10, 58, 20, 61, 62]
LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 1e4,
    "short_factor": [1.0] * 8,
    "long_factor": [1.0, 1.5, 2.0, 3.0, 5.0, 8.0, 13.0, 21.0],
    "original_max_position_embeddings": ORIGINAL,
}
DYNAMIC = {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 1e4}


def new_model(kind: str) -> Any:
    if kind == "longrope":
        return family_model(
            "phi3",
            sliding_window=None,
            max_position_embeddings=4 * ORIGINAL,
            original_max_position_embeddings=ORIGINAL,
            rope_parameters=LONGROPE,
        )
    return family_model("llama", max_position_embeddings=ORIGINAL, rope_parameters=DYNAMIC)


@pytest.fixture(params=["longrope", "dynamic"])
def model(request: pytest.FixtureRequest) -> Any:
    return new_model(str(request.param))


@pytest.fixture
def engine(model: Any, tmp_path: Path) -> Iterator[IdsEngine]:
    made = IdsEngine(model, tmp_path)
    yield made
    made.close()


@torch.inference_mode()
def truth(model: Any, said: Said) -> torch.Tensor:
    """The logits behind each prefix of the answer, each from one forward of its own.

    By a model that has seen nothing longer: a dynamic embedding remembers the longest prompt."""
    fresh = new_model("longrope" if model.config.model_type == "phi3" else "dynamic")
    begin = len(said.ids) - len(said.answer)
    return torch.cat(
        [
            fresh(input_ids=torch.tensor([said.ids[:stop]]), use_cache=False).logits[:, -1]
            for stop in range(begin, len(said.ids))
        ]
    )


def assert_true(model: Any, said: Said) -> None:
    expected = truth(model, said)
    assert expected.argmax(-1).tolist() == said.answer
    assert (said.logits - expected).abs().max() <= TOLERANCE * expected.std()


def test_the_policy_names_the_length(model: Any) -> None:
    policy = cut_policy(model.config)
    assert policy.kind == "any_token"
    assert policy.max_tokens in (ORIGINAL, ORIGINAL - 1)
    assert f"behind {policy.max_tokens} tokens" in policy.detail


def test_short_conversations_are_reused(model: Any, engine: IdsEngine) -> None:
    one = engine.turn(FIRST, 3)
    two = engine.turn(one.ids + SECOND, 3)
    assert two.reuse.num_tokens == len(one.ids)
    assert_true(model, two)


def test_a_long_prompt_is_computed_in_one_piece(model: Any, engine: IdsEngine) -> None:
    one = engine.turn(FIRST, 3)
    two = engine.turn([*one.ids, *SECOND, *LONG], 1)
    assert two.reuse.num_tokens == 0
    assert_true(model, two)


def test_an_answer_that_crosses_is_rebuilt_there(model: Any, engine: IdsEngine) -> None:
    most = cut_policy(model.config).max_tokens or 0
    one = engine.turn(FIRST, 3)
    prompt = [*one.ids, *SECOND, *LONG][: most - 3]
    said = engine.turn(prompt, 5)
    assert said.reuse.num_tokens == len(one.ids)
    # transformers goes on with a dynamic embedding as it was at each token: compared up to there.
    is_longrope = model.config.model_type == "phi3"
    expected = truth(model, said)
    last = 5 if is_longrope else 4
    deviation = (said.logits - expected)[:last].abs().max()
    assert deviation <= TOLERANCE * expected.std()
    assert expected[:last].argmax(-1).tolist() == said.answer[:last]


def test_what_crossed_keeps_its_short_part(model: Any, engine: IdsEngine) -> None:
    most = cut_policy(model.config).max_tokens or 0
    one = engine.turn(FIRST, 3)
    prompt = [*one.ids, *SECOND, *LONG][: most - 3]
    engine.turn(prompt, 5)
    again = engine.turn(prompt, 2)
    assert again.reuse.num_tokens >= len(one.ids)
    assert_true(model, again)


def test_a_short_chat_behind_a_long_one_is_right(model: Any, engine: IdsEngine) -> None:
    one = engine.turn(FIRST, 3)
    engine.turn([*one.ids, *SECOND, *LONG], 2)
    again = engine.turn(one.ids + SECOND, 3)
    assert again.reuse.num_tokens == len(one.ids)
    assert_true(model, again)


def test_without_the_cache_nothing_of_it_is_kept(model: Any, engine: IdsEngine) -> None:
    most = cut_policy(model.config).max_tokens or 0
    prompt = [*FIRST, *SECOND, *LONG][: most - 2]
    engine.turn(prompt, 4, is_cold=True, is_kept=False)
    assert engine.prefixes.use()[0].num_segments == 0
