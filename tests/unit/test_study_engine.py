"""Real engines are asked between turns: what they answer, and that no turn is another for it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from chatcache.backends.local.run.turn_runner import TurnRunner
from chatcache.backends.questions import (
    Answer,
    AskAttention,
    AskNextTokens,
    AskTree,
    AttentionRows,
    DescribeModel,
    DescribeTokens,
    ModelShape,
    NextTokens,
    Question,
    Tokenize,
    TokenPieces,
    TreeShape,
)
from chatcache.cache.book.policy import TierPolicy
from chatcache.errors import UsageError
from chatcache.token_ids import NO_IDS, TokenIds
from tests.models import build_model_dir
from tests.talks import Engine, Talk

SIZES: dict[str, Any] = {"hidden_size": 256, "intermediate_size": 512, "num_attention_heads": 8}


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_model_dir(tmp_path_factory.mktemp("model") / "m", "llama", **SIZES)


def ask(engine: Engine, question: Question) -> Answer:
    assert isinstance(engine.runner, TurnRunner)
    work = engine.runner.study(question)
    while True:
        try:
            next(work)
        except StopIteration as end:
            answer: Answer = end.value
            return answer


@torch.inference_mode()
def eager(engine: Engine, ids: TokenIds) -> torch.Tensor:
    """`[num_layers, num_heads, num_tokens, num_tokens]`, computed by the model that it has."""
    assert isinstance(engine.runner, TurnRunner)
    model = engine.runner.loaded.model
    usual = model.config._attn_implementation
    model.set_attn_implementation("eager")
    told = model(input_ids=torch.tensor([list(ids)]), output_attentions=True, use_cache=False)
    model.set_attn_implementation(usual)
    return torch.cat(told.attentions).float()


WAYS: dict[str, tuple[dict[str, Any], float]] = {
    "float32, compiled steps": ({}, 1e-3),
    "bfloat16, packed by oneDNN": ({"dtype": "bfloat16"}, 3e-2),
    "8 bits": ({"quantize": "8bit"}, 2e-2),
    "int8 cache": ({"policy": TierPolicy(precision="int8")}, 3e-2),
}


@pytest.mark.parametrize("way", WAYS)
def test_weights_are_true_however_the_model_computes(
    model_dir: Path, tmp_path: Path, way: str
) -> None:
    settings, tolerance = WAYS[way]
    engine, talk = Engine(model_dir, tmp_path, **settings), Talk()
    talk.say(engine, "What is the answer?")
    ids = talk.journal
    last = len(ids) - 1
    told = ask(engine, AskAttention(ids, last - 7, last, layer=1, head=5))
    assert isinstance(told, AttentionRows)
    truth = eager(engine, ids)[1, 5]
    for row, at in zip(told.rows, range(last - 7, last + 1), strict=True):
        assert (torch.tensor(row) - truth[at, : at + 1]).abs().max() <= tolerance
    assert (told.num_layers, told.num_heads) == (2, 8)
    assert (told.num_computed, told.num_reused) == (8, last - 7)
    engine.close()


def test_turns_are_the_same_whether_anything_was_asked_or_not(
    model_dir: Path, tmp_path: Path
) -> None:
    plain, asked = Engine(model_dir, tmp_path / "a"), Engine(model_dir, tmp_path / "b")
    talks = Talk(), Talk()
    for text in ("What is the answer?", "And why is that so?", "Is it there?"):
        results = [
            talk.say(engine, text) for talk, engine in zip(talks, (plain, asked), strict=True)
        ]
        for figure in ("usage", "text", "answer_ids"):
            assert getattr(results[0], figure) == getattr(results[1], figure)
        assert results[0].cache.bytes_written == results[1].cache.bytes_written
        assert results[0].cache.runs == results[1].cache.runs
        assert isinstance(asked.runner, TurnRunner)
        asked.runner.drain()  # the writer has its own news
        num_events = len(asked.events)
        ids = talks[1].journal
        for question in (
            AskAttention(ids, 3, 12),
            AskAttention(ids[:9] + TokenIds([50, 51]), 5, 10),
            AskNextTokens(ids, temperature=0.7, top_k=5),
            DescribeModel(),
            DescribeTokens(ids),
            Tokenize("the key"),
            AskTree(),
        ):
            ask(asked, question)
        assert len(asked.events) == num_events
    for engine in (plain, asked):
        engine.close()


def test_what_an_engine_says_of_itself(model_dir: Path, tmp_path: Path) -> None:
    engine, talk = Engine(model_dir, tmp_path), Talk()
    result = talk.say(engine, "What is the answer?")
    shape = ask(engine, DescribeModel())
    assert isinstance(shape, ModelShape)
    assert (shape.num_heads, shape.num_kv_heads, shape.head_dim) == (8, 2, 16)
    told = 2 * shape.num_layers * shape.num_kv_heads * shape.head_dim * shape.bytes_per_number
    assert shape.kv_bytes_per_token == told == 2 * 2 * 2 * 16 * 4
    pieces = ask(engine, DescribeTokens(talk.journal))
    assert isinstance(pieces, TokenPieces)
    text = {piece.token_id: piece.text for piece in pieces.pieces}
    spelled = "".join(text[token_id] for token_id in talk.journal[: result.usage.prompt_tokens])
    assert spelled == ("<|im_start|>user\nWhat is the answer?<|im_end|>\n<|im_start|>assistant\n")
    tree = ask(engine, AskTree())
    assert isinstance(tree, TreeShape)
    assert sum(len(edge.ids) for edge in tree.edges) == len(talk.journal)
    engine.close()


def test_the_first_token_of_the_answer_is_the_one_that_was_most_probable(
    model_dir: Path, tmp_path: Path
) -> None:
    engine, talk = Engine(model_dir, tmp_path), Talk()
    result = talk.say(engine, "What is the answer?")
    told = ask(engine, AskNextTokens(talk.journal[: result.usage.prompt_tokens], 3))
    assert isinstance(told, NextTokens)
    assert told.candidates[0].piece.token_id == result.answer_ids[0]
    assert (told.candidates[0].sampled, told.num_left) == (1.0, 1)
    assert told.num_computed == 1
    engine.close()


@pytest.mark.parametrize(
    ("ids", "said"),
    [
        (NO_IDS, "Nothing was read"),
        (TokenIds([1 << 20]), "another model's vocabulary"),
        (TokenIds(range(40)) + TokenIds([7] * 5000), "reads at most 4,096"),
    ],
)
def test_a_path_that_the_model_cannot_have_read_is_said(
    model_dir: Path, tmp_path: Path, ids: TokenIds, said: str
) -> None:
    engine = Engine(model_dir, tmp_path)
    for question in (AskAttention(ids, 0, 0), AskNextTokens(ids)):
        with pytest.raises(UsageError, match=said):
            ask(engine, question)
    engine.close()


def test_what_was_deleted_is_forgotten_here_too(model_dir: Path, tmp_path: Path) -> None:
    engine, talk = Engine(model_dir, tmp_path), Talk()
    talk.say(engine, "What is the answer?")
    question = AskAttention(talk.journal, 5, 8)
    ask(engine, question)
    engine.runner.forget_deleted(is_all=True)
    again = ask(engine, question)
    assert isinstance(again, AttentionRows)
    assert again.num_computed >= 4
    engine.close()
