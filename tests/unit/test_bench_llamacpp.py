"""llama.cpp runs the converted weights to the same logits and the same greedy tokens."""

from __future__ import annotations

import dataclasses
import importlib.util
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from chatcache.bench import llamacpp
from chatcache.bench.gguf_file import refusal
from chatcache.bench.llamacpp import LlamaCpp, converted, why_not
from chatcache.errors import UnavailableError
from tests.models import build_model

# Looked for and not imported: llama_cpp opens files that it never closes.
pytestmark = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("llama_cpp", "gguf")),
    reason="the extra `bench` is not installed",
)

VOCAB = 97
HISTORY = [random.Random(3).randrange(VOCAB) for _ in range(90)]
MESSAGE = [random.Random(4).randrange(VOCAB) for _ in range(7)]


@dataclasses.dataclass(frozen=True)
class Pair:
    """The same weights in both programs."""

    model: Any
    llama: LlamaCpp

    def reference(self, ids: list[int]) -> torch.Tensor:
        with torch.inference_mode():
            logits: torch.Tensor = self.model(torch.tensor([ids])).logits[0, -1].float()
        return logits

    def assert_same_logits(self, ids: list[int]) -> None:
        """Closer than a wrong conversion could ever be, which is off by about one deviation."""
        expected = self.reference(ids)
        difference = (torch.tensor(self.llama.logits()) - expected).abs().max()
        assert difference < 0.02 * expected.std()


def model_of(family: str, **overrides: Any) -> Any:
    model = build_model(
        family, vocab_size=VOCAB, eos_token_id=0, seed=1, num_key_value_heads=2, **overrides
    )
    with torch.no_grad():  # norms and biases that matter
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(torch.randn_like(parameter) * 0.3)
            else:
                parameter.mul_(3)
    return model


def started(model: Any, directory: Path, quantize: str | None = None) -> LlamaCpp:
    weights = converted(model, directory, quantize)
    is_float32 = quantize is None and model.dtype is torch.float32
    return LlamaCpp(weights, directory, num_tokens=128, num_threads=1, is_float32=is_float32)


@pytest.fixture(scope="module", params=["qwen3", "qwen2", "llama"])
def pair(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Pair]:
    model = model_of(request.param)
    directory = tmp_path_factory.mktemp("llama")
    llama = started(model, directory)
    yield Pair(model, llama)
    llama.close()


def test_logits_and_greedy_tokens_agree_with_transformers(pair: Pair) -> None:
    pair.llama.cold(HISTORY)
    pair.assert_same_logits(HISTORY)
    ids, expected = [*HISTORY, 1], []
    for _ in range(8):
        expected.append(int(pair.reference(ids).argmax()))
        ids.append(expected[-1])
    assert pair.llama.greedy(8) == expected


def test_every_way_of_resuming_holds_the_whole_history(pair: Pair) -> None:
    pair.llama.cold(HISTORY)
    _, _, num_bytes = pair.llama.keep(HISTORY)
    config = pair.model.config
    per_token = 2 * config.num_hidden_layers * 2 * config.head_dim * 4
    assert num_bytes >= len(HISTORY) * per_token
    pair.llama.cold(MESSAGE)  # something else in between
    assert pair.llama.from_ram(MESSAGE) > 0
    pair.assert_same_logits(HISTORY + MESSAGE)
    assert pair.llama.live(MESSAGE[:3]) > 0
    pair.assert_same_logits(HISTORY + MESSAGE[:3])
    for is_cold in (True, False):
        pair.llama.cold(MESSAGE)
        assert pair.llama.from_disk(MESSAGE, is_page_cache_cold=is_cold) > 0
        pair.assert_same_logits(HISTORY + MESSAGE)


def test_bfloat16_weights_come_out_bit_for_bit(tmp_path: Path) -> None:
    gguf: Any = importlib.import_module("gguf")
    model = model_of("qwen3").to(torch.bfloat16)
    converted(model, tmp_path)
    tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(tmp_path / "model.gguf").tensors}
    written = torch.from_numpy(tensors["blk.0.ffn_up.weight"].data.copy()).view(torch.bfloat16)
    assert torch.equal(written, model.model.layers[0].mlp.up_proj.weight)


@pytest.mark.parametrize(("quantize", "kind"), [("4bit", "Q4_K"), ("8bit", "Q8_0")])
def test_its_own_quantiser_packs_the_same_weights(quantize: str, kind: str, tmp_path: Path) -> None:
    gguf: Any = importlib.import_module("gguf")
    model = model_of("qwen3", hidden_size=256, intermediate_size=512)
    llama = started(model, tmp_path, quantize)
    llama.cold(HISTORY)
    told, expected = torch.tensor(llama.logits()), Pair(model, llama).reference(HISTORY)
    loading = llama.loading(MESSAGE, HISTORY)
    llama.close()
    (file,) = tmp_path.glob("*.gguf")
    types = {tensor.tensor_type.name for tensor in gguf.GGUFReader(file).tensors}
    assert kind in types
    assert torch.corrcoef(torch.stack([told, expected]))[0, 1] > 0.9
    assert loading.load > 0
    assert loading.first_token > 0
    assert (loading.before is None) == (loading.used is None)


def test_what_is_not_converted_is_refused(tmp_path: Path) -> None:
    gpt2 = build_model("gpt2", vocab_size=VOCAB, eos_token_id=0, seed=1)
    assert "gpt2" in (refusal(gpt2.config) or "")
    with pytest.raises(UnavailableError, match="gpt2"):
        converted(gpt2, tmp_path)
    scaled = model_of("llama", rope_parameters={
        "rope_type": "linear", "rope_theta": 10_000.0, "factor": 2.0})  # fmt: skip
    assert "rope" in (refusal(scaled.config) or "")


def test_a_package_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(llamacpp.importlib.util, "find_spec", lambda name: None)
    assert why_not(None) == f"llama-cpp-python is not installed ({llamacpp.INSTALL})"


def test_a_failure_in_the_process_is_a_sentence(tmp_path: Path) -> None:
    llama = started(model_of("qwen3"), tmp_path)
    with pytest.raises(UnavailableError, match="did not restore"):
        llama.from_disk(MESSAGE, is_page_cache_cold=False)
    llama.close()
