"""Compiled code that computes something else than the model is found out, and not used.

Kernels are broken here as a compiler could break them: they leave out the end of each row."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from numba import carray, cfunc
from numba.core.errors import LoweringError
from transformers import LlamaConfig, LlamaForCausalLM, Qwen3Config, Qwen3ForCausalLM

from chatcache.backends.local.model import tuning
from chatcache.backends.local.model.loader import load_model
from chatcache.backends.local.packed import kernels, proof
from chatcache.backends.local.packed.blocks import KINDS, BlockMatrix
from chatcache.backends.local.packed.install import is_matrix, replace_with_blocks
from chatcache.backends.local.packed.intrinsics import floats_at, words_at
from chatcache.backends.local.packed.kernel_store import KernelStore, Verdict, num_refused
from chatcache.backends.local.packed.known import takes_step
from chatcache.backends.local.packed.mixture import Gating
from chatcache.backends.local.packed.products import FLOATS, NUM_WORDS, float_dot, integer_dot
from chatcache.backends.local.run.forward import Forward
from chatcache.cache.tensors.live_kv import LiveKV
from tests.gguf_models import write_mixture
from tests.models import build_model_dir
from tests.talks import Engine, Talk
from tests.unit.test_packed_experts import experts_of

CPU = torch.device("cpu")
SIZES: dict[str, Any] = {
    "vocab_size": 160,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "head_dim": 16,
    "num_key_value_heads": 2,
}
IDS = [3, 14, 15, 92, 65, 35, 89, 79, 32]


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> KernelStore:
    """Where nothing is known yet."""
    store = KernelStore()
    store.keep_in(tmp_path / "kernels")
    monkeypatch.setattr(proof, "STORE", store)
    return store


@functools.cache
def broken_rows(kind: str) -> int:
    number, size = KINDS[kind].ggml_type, KINDS[kind].num_weights

    if kind == "F32":

        def rows(weights, row_bytes, num_rows, num_columns, activations, out):  # type: ignore[no-untyped-def]
            values = carray(words_at(activations), NUM_WORDS)
            target = carray(floats_at(out), num_rows)
            for row in range(num_rows):
                place = weights + row * row_bytes
                target[row] = float_dot(number, place, values[FLOATS], num_columns - 1)

    else:

        def rows(weights, row_bytes, num_rows, num_columns, activations, out):  # type: ignore[no-untyped-def]
            for row in range(num_rows):
                place, num_blocks = weights + row * row_bytes, num_columns // size - 1
                integer_dot(number, place, activations, num_blocks, out + 4 * row)

    _KEPT.append(made := cfunc(kernels._ROWS)(rows))
    return int(made.address)


_KEPT: list[Any] = []


def break_rows(monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    sound: Callable[[int], np.ndarray] = kernels.product_functions
    words = sound(KINDS[kind].ggml_type).copy()
    words[kernels.F_ROWS] = broken_rows(kind)
    broken = {KINDS[kind].ggml_type: words}
    monkeypatch.setattr(
        kernels, "product_functions", lambda number: broken.get(number, sound(number))
    )


def build(dtype: torch.dtype, kind: str | None = None, config: Any = None) -> Any:
    torch.manual_seed(0)
    made = LlamaForCausalLM(LlamaConfig(**SIZES)) if config is None else Qwen3ForCausalLM(config)
    model = made.to(dtype).eval().requires_grad_(False)
    if kind is not None:
        for name, module in list(model.named_modules()):
            if is_matrix(module):
                data = gguf.quantize(module.weight.float().numpy(), gguf.GGMLQuantizationType[kind])
                blocks = torch.from_numpy(data.view("uint8").reshape(len(data), -1))
                matrix = BlockMatrix(KINDS[kind], blocks, module.weight.shape[1])
                replace_with_blocks(model, name, matrix, dtype)
    return model


def answer(model: Any) -> torch.Tensor:
    """Logits behind a prompt and some single tokens."""
    forward, kv = Forward(model, CPU), LiveKV(SIZES["num_hidden_layers"], model.dtype, CPU)
    logits = forward(kv, IDS, 0)
    for token in (7, 5, 3):
        logits = forward(kv, [token], kv.num_tokens)
    return logits


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", [None, "Q8_0"])
def test_what_is_right_is_looked_at_once(
    dtype: torch.dtype, kind: str | None, store: KernelStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    tuned = tuning.tune(build(dtype, kind), CPU, said.append)
    assert (tuned.remarks, len(said)) == ((), 1)
    assert tuned.kernels.endswith(", step 2")
    monkeypatch.setattr(proof, "_looked_at", lambda *_: pytest.fail("it is known"))
    again = build(dtype, kind)
    assert tuning.tune(again, CPU, said.append) == tuned
    assert takes_step(again)
    assert len(said) == 1


def test_another_shape_is_looked_at_too(store: KernelStore) -> None:
    said: list[str] = []
    for heads in (1, 2):
        config = Qwen3Config(**SIZES | {"num_key_value_heads": heads})
        assert proof.settle(build(torch.float32, config=config), said.append) == Verdict.RIGHT
    assert len(said) == 2


def test_a_wrong_step_is_not_taken_and_that_is_remembered(
    store: KernelStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = build(torch.float32)
    with monkeypatch.context() as sound:
        sound.setattr(proof, "STORE", KernelStore())
        kernels_when_right = tuning.tune(right, CPU).kernels
    expected = answer(right)
    break_rows(monkeypatch, "F32")
    model = build(torch.float32)
    tuned = tuning.tune(model, CPU)
    assert not takes_step(model)
    assert tuned.kernels != kernels_when_right
    assert "step" not in tuned.kernels
    (remark,) = tuned.remarks
    assert "not used" in remark
    assert torch.allclose(answer(model), expected, atol=1e-5)
    assert num_refused(tmp_path / "kernels") == 1
    monkeypatch.setattr(proof, "_looked_at", lambda *_: pytest.fail("it is known"))
    again = build(torch.float32)
    assert tuning.tune(again, CPU) == tuned
    assert not takes_step(again)


def test_wrong_kernels_of_packed_weights_are_done_without(
    store: KernelStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = answer(build(torch.float32, "Q8_0"))
    break_rows(monkeypatch, "Q8_0")
    model = build(torch.float32, "Q8_0")
    tuned = tuning.tune(model, CPU)
    assert "kernel" in tuned.remarks[0]
    assert tuned.kernels.endswith("unpacked by torch")
    assert not takes_step(model)
    assert torch.allclose(answer(model), expected, atol=2e-3 * float(expected.abs().max()))


@pytest.mark.parametrize("kind", [None, "Q8_0"])
def test_what_cannot_be_compiled_is_done_without(
    kind: str | None, store: KernelStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(number: int) -> np.ndarray:
        raise LoweringError("this processor has no such instruction")

    expected = answer(build(torch.float32, kind))
    monkeypatch.setattr(kernels, "product_functions", refused)
    model = build(torch.float32, kind)
    (remark,) = tuning.tune(model, CPU).remarks
    assert "not used" in remark
    assert not takes_step(model)
    assert torch.allclose(answer(model), expected, atol=2e-3 * float(expected.abs().max()))


@pytest.mark.parametrize("is_broken", [False, True])
def test_experts_are_looked_at_too(is_broken: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    experts = experts_of("Q8_0", "Q8_0", "Q8_0", Gating(), has_bias=False)
    if is_broken:
        break_rows(monkeypatch, "Q8_0")
    assert proof._are_experts_right(experts) is not is_broken
    assert not experts.is_plain


def test_an_engine_answers_all_the_same_and_says_so(
    store: KernelStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = build_model_dir(tmp_path / "model")
    answers, namespaces, remarks = [], [], []
    for is_broken in (False, True):
        if is_broken:
            break_rows(monkeypatch, "F32")
            store.keep_in(tmp_path / "other")
        engine = Engine(model, tmp_path)
        answers.append(Talk().say(engine, "Hello").text)
        namespaces.append(engine.runner.info.namespace)
        remarks.append(engine.runner.info.remarks)
        engine.close()
    assert answers[0] == answers[1]
    assert namespaces[0] != namespaces[1]
    assert (len(remarks[0]), len(remarks[1])) == (0, 1)


def test_a_step_through_experts_is_judged_by_most_of_its_tokens(
    tmp_path: Path, store: KernelStore
) -> None:
    """Where two experts are nearly as good, rounding chooses; a router that differs is found."""
    write_mixture(tmp_path / "model.gguf", "qwen3_moe", num_experts=16, num_local_experts=16)
    model = load_model(str(tmp_path / "model.gguf"), dtype="bfloat16").model
    matrices = proof._matrices(model)
    assert proof._looked_at(model, matrices) == Verdict.RIGHT
    router = model.model.layers[0].mlp.gate
    router.weight = torch.nn.Parameter(-router.weight, requires_grad=False)
    assert proof._looked_at(model, matrices) == Verdict.STEP_IS_WRONG
