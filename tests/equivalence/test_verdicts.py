"""The verdict on each family: what `cut.py` allows is right, and what it refuses is refused.

The truth is plain transformers: one forward over all tokens, without any cache.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from chatcache.backends.local.model.cut_policy import ANY_TOKEN_FAMILIES, cut_policy
from tests.equivalence.engine import THIRD, IdsEngine, three_turns
from tests.equivalence.families import VOCAB, family_model
from tests.models import build_model

TOLERANCE = 5e-3


@torch.inference_mode()
def truth(model: Any, ids: list[int], num_answer: int) -> torch.Tensor:
    """The logits behind the last `num_answer` prefixes of `ids`."""
    output = model(input_ids=torch.tensor([ids]), use_cache=False)
    logits: torch.Tensor = output.logits[0, len(ids) - num_answer - 1 : -1]
    return logits


@pytest.mark.parametrize("family", sorted(ANY_TOKEN_FAMILIES))
def test_the_family_may_be_cut_at_any_token(family: str, tmp_path: Path) -> None:
    model = family_model(family)
    assert cut_policy(model.config).is_cuttable
    first = IdsEngine(model, tmp_path)
    _, two, three = three_turns(first, 6, is_last_kept=False)
    first.close()
    again = IdsEngine(model, tmp_path)
    resumed = again.turn([*two.ids, *THIRD], 6)
    again.close()
    assert resumed.reuse.disk_tokens == len(two.ids)
    assert torch.equal(resumed.logits, three.logits)
    expected = truth(model, three.ids, 6)
    assert expected.argmax(-1).tolist() == three.answer
    assert (three.logits - expected).abs().max() <= TOLERANCE * expected.std()


REFUSED: dict[str, dict[str, Any]] = {
    "llama": {"layer_types": ["full_attention", "linear_attention"], "num_hidden_layers": 2},
    "minimax": {},
    "recurrent_gemma": {},
}


@pytest.mark.parametrize("family", sorted(REFUSED))
def test_what_was_not_found_right_is_refused_with_a_sentence(family: str) -> None:
    from transformers import AutoConfig

    policy = cut_policy(AutoConfig.for_model(family, **REFUSED[family]))
    assert not policy.is_cuttable
    assert policy.detail


def test_shared_layers_are_refused() -> None:
    config = build_model("llama", vocab_size=VOCAB, eos_token_id=0).config
    config.num_kv_shared_layers = 1
    assert not cut_policy(config).is_cuttable
