"""Models of which no verdict says where they may be cut: they answer, and nothing is reused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from chatcache.backends.local.model.cut_policy import cut_policy
from chatcache.cache.views import CostEstimate
from chatcache.token_ids import TokenIds
from tests.equivalence.engine import IdsEngine
from tests.equivalence.families import family_model

FIRST = [3, 14, 15, 92, 65, 35, 89, 79, 32, 38, 46, 26]
SECOND = [43, 38, 32, 79]


@pytest.fixture
def engine(tmp_path: Path) -> IdsEngine:
    model = family_model("persimmon")
    assert not cut_policy(model.config).is_cuttable
    return IdsEngine(model, tmp_path)


@torch.inference_mode()
def test_every_prompt_is_computed_in_one_piece(engine: IdsEngine) -> None:
    one = engine.turn(FIRST, 4)
    two = engine.turn([*one.ids, *SECOND], 4)
    for said in (one, two):
        output = engine.model(input_ids=torch.tensor([said.ids]), use_cache=False)
        expected = output.logits[0, len(said.ids) - len(said.answer) - 1 : -1]
        assert expected.argmax(-1).tolist() == said.answer
        assert (said.logits - expected).abs().max() <= 5e-3 * expected.std()
        assert said.reuse.num_tokens == 0
    steps = list(engine.context.prefill(TokenIds(two.ids), 0, stops=[4]))
    engine.close()
    assert [step.done for step in steps] == [len(two.ids)]


def test_nothing_is_kept_and_a_fork_costs_all_of_it(engine: IdsEngine) -> None:
    said = engine.turn(FIRST, 4)
    ids = TokenIds(said.ids)
    cost = engine.context.estimate(ids)
    held = engine.prefixes.lookup(ids).num_tokens
    path = engine.context.path
    live = path.kv.num_tokens, path.kv.num_bytes, len(path.ids)
    engine.close()
    assert cost == CostEstimate(0, 0, len(ids), engine.rates.prefill_ms(len(ids)))
    assert (held, live) == (0, (0, 0, 0))
    assert not list(engine.prefixes.rows())
