"""Perplexity: which tokens are scored, and what the command says."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch

from chatcache.assets import dialogues_file
from chatcache.backends.local.model.loader import load_model
from chatcache.backends.local.study.perplexity import chunks_of, perplexity_of, weight_bytes
from chatcache.cli import main
from chatcache.errors import UsageError
from tests.models import build_model_dir


def test_it_is_exp_of_the_mean_surprise(tmp_path: Path) -> None:
    loaded = load_model(str(build_model_dir(tmp_path / "model")))
    text = "what is a cache? " * 30
    (chunk, *rest) = chunks_of(text, loaded.tokenizer, 64, None)
    ids = torch.tensor([chunk.ids])
    with torch.inference_mode():
        chances = loaded.model(ids).logits[0, :-1].log_softmax(-1)
    mean = -chances.gather(1, ids[0, 1:, None]).mean()
    assert perplexity_of(loaded, [chunk]).perplexity == pytest.approx(math.exp(mean), rel=1e-4)
    found = perplexity_of(loaded, [chunk, *rest])
    assert found.num_scored == sum(len(each.ids) - 1 for each in (chunk, *rest))
    assert weight_bytes(loaded) == 4 * loaded.num_parameters


def test_of_dialogues_the_answers_alone_are_scored() -> None:
    tokenizer = load_model("builtin").tokenizer
    text = dialogues_file().read_text()
    for line, chunk in zip(text.splitlines(), chunks_of(text, tokenizer, 8192, None), strict=True):
        messages = json.loads(line)["messages"]
        answers = [m["content"] for m in messages if m["role"] == "assistant"]
        scored = tokenizer.decode([chunk.ids[position] for position in chunk.scored])
        users = [m["content"] for m in messages if m["role"] == "user" and len(m["content"]) > 30]
        assert all(answer in scored for answer in answers)
        assert not any(user in scored for user in users)


def test_no_more_is_read_than_wanted() -> None:
    tokenizer = load_model("builtin").tokenizer
    chunks = chunks_of("a b c d e f g h " * 500, tokenizer, 100, 350)
    assert [len(chunk.ids) for chunk in chunks] == [100, 100, 100]
    with pytest.raises(UsageError, match="too short"):
        chunks_of("", tokenizer, 100, None)


def test_the_command_measures_the_exact_weights_beside(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    places = ["--data-dir", str(tmp_path / "data"), "--cache-dir", str(tmp_path / "cache")]
    words = ["models", "perplexity", "--quantize", "4bit", "--tokens", "2000", "--json", *places]
    assert main(words) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["model"] == "builtin"
    packed, exact = report["measured"]
    assert (packed["quantization"], exact["quantization"]) == ("4bit", None)
    assert 0.9 < packed["ratio"] < 1.1
    assert exact["ratio"] == 1.0
    assert packed["bytes_per_weight"] < 0.8 < exact["bytes_per_weight"] == 4.0
    assert packed["scored_tokens"] == exact["scored_tokens"] > 300


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        (["--text", "/nowhere/text"], 3, "There is no file"),
        (["--chunk", "1"], 2, "--chunk"),
        (["--quantize", "3bit"], 2, "--quantize"),
    ],
)
def test_bad_input_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], code: int, words: str
) -> None:
    places = ["--data-dir", str(tmp_path / "data"), "--cache-dir", str(tmp_path / "cache")]
    assert main(["models", "perplexity", *options, *places]) == code
    assert words in capsys.readouterr().err
