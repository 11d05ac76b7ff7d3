"""The compiled decode step against transformers' modules, on the same weights."""

from __future__ import annotations

from typing import Any

import gguf
import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    MistralConfig,
    MixtralConfig,
    Olmo2Config,
    Qwen2Config,
    Qwen3Config,
    Qwen3MoeConfig,
    SmolLM3Config,
)

from chatcache.backends.local.model.tuning import reorder_linears
from chatcache.backends.local.packed.blocks import KINDS, BlockMatrix
from chatcache.backends.local.packed.decode import DecodeStep
from chatcache.backends.local.packed.install import (
    is_experts,
    is_matrix,
    replace_with_blocks,
    replace_with_stacked_experts,
)
from chatcache.backends.local.packed.known import UnknownStepError, takes_step
from chatcache.cache.tensors.live_kv import LiveKV

SIZES: dict[str, Any] = {
    "vocab_size": 320,
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "max_position_embeddings": 2048,
}
YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0}
YARN["original_max_position_embeddings"] = 64
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 1e4,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
CONFIGS = {
    "llama": LlamaConfig(**SIZES),
    "llama, a key head per head": LlamaConfig(**SIZES | {"num_key_value_heads": 8}),
    "llama, one key head": LlamaConfig(**SIZES | {"num_key_value_heads": 1}),
    "llama, tied": LlamaConfig(**SIZES, tie_word_embeddings=True),
    "llama3 rotary": LlamaConfig(**SIZES, rope_parameters=LLAMA3),
    "yarn": LlamaConfig(**SIZES, rope_parameters=YARN),
    "biases": LlamaConfig(**SIZES, attention_bias=True, mlp_bias=True),
    "wide heads": LlamaConfig(**SIZES, head_dim=80),
    "odd sizes": LlamaConfig(**SIZES | {"vocab_size": 331, "intermediate_size": 2176}),
    "mistral": MistralConfig(**SIZES, sliding_window=None),
    "qwen2": Qwen2Config(**SIZES),
    "qwen3": Qwen3Config(**SIZES, head_dim=64),
    "smollm3": SmolLM3Config(**SIZES, no_rope_layer_interval=2, pad_token_id=0),
}


_EXPERTS = {"num_local_experts": 6, "num_experts": 6, "num_experts_per_tok": 3}
_EXPERTS["moe_intermediate_size"] = 128
MIXTURES = {  # which take it while their experts are packed
    "mixtral": MixtralConfig(**SIZES | _EXPERTS | {"intermediate_size": 128}),
    "qwen3_moe": Qwen3MoeConfig(**SIZES, **_EXPERTS, head_dim=64, norm_topk_prob=True),
    "qwen3_moe, shares as they are": Qwen3MoeConfig(**SIZES, **_EXPERTS, norm_topk_prob=False),
}
ALL = CONFIGS | MIXTURES
REORDERED = "reordered"


def build(config: Any, dtype: torch.dtype, kind: str | None) -> Any:
    """A model with weights that say something, in blocks of one kind if there is one, or in the
    order that this processor wants: the large ones, as an engine has them."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval().requires_grad_(False)
    for name, parameter in model.named_parameters():
        if "norm" in name:
            parameter.data = torch.rand_like(parameter) + 0.5
        elif parameter.dim() == 1:
            parameter.data = torch.randn_like(parameter) * 0.1
        else:
            parameter.data *= 4
    model = model.to(dtype)
    if kind == REORDERED:
        reorder_linears(model, torch.device("cpu"))
    elif kind is not None:
        for name, module in list(model.named_modules()):
            if is_matrix(module):
                replace_with_blocks(model, name, blocks_of(module.weight, kind), dtype)
            elif is_experts(module):
                parts = (module.gate_up_proj, module.down_proj)
                both, down = (blocks_of(part.flatten(0, 1), kind) for part in parts)
                replace_with_stacked_experts(model, name, both, down)
    return model


def blocks_of(weight: torch.Tensor, kind: str) -> BlockMatrix:
    weights = weight.float().numpy()
    data = gguf.quantize(weights, gguf.GGMLQuantizationType[kind])
    blocks = torch.from_numpy(data.view("uint8").reshape(len(weights), -1))
    return BlockMatrix(KINDS[kind], blocks, weights.shape[1])


def live(model: Any) -> LiveKV:
    return LiveKV(model.config.num_hidden_layers, model.dtype, torch.device("cpu"))


@torch.inference_mode()
def through_modules(model: Any, ids: torch.Tensor, kv: LiveKV) -> torch.Tensor:
    output = model(input_ids=ids[None], past_key_values=kv, use_cache=True)
    logits: torch.Tensor = output.logits[0].float()
    return logits


FORMS = [(torch.float32, "Q4_0"), (torch.bfloat16, "Q4_0"), (torch.bfloat16, REORDERED)]
IDS = torch.randint(0, 320, (60,), generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("name", CONFIGS)
def test_a_step_in_float32_gives_the_logits_and_the_cache_of_the_modules(name: str) -> None:
    model = build(CONFIGS[name], torch.float32, None)
    step, kv, expected = DecodeStep(model), live(model), live(model)
    logits = through_modules(model, IDS, expected)
    through_modules(model, IDS[:20], kv)
    for position in range(20, 60):
        got = step(kv, [int(IDS[position])], position)[0]
        assert (got - logits[position]).abs().max() < 2e-4 * logits.abs().max()
    for ours, theirs in zip(kv.growing, expected.growing, strict=True):
        for kind in ("key", "value"):
            assert torch.allclose(ours.view(kind), theirs.view(kind), atol=2e-4, rtol=1e-3)


@pytest.mark.parametrize("name", ["llama", "qwen3", "smollm3", *MIXTURES])
@pytest.mark.parametrize("kind", ["Q4_0", "Q8_0", "BF16"])
def test_a_step_with_blocks_from_the_first_token_on(name: str, kind: str) -> None:
    model = build(ALL[name], torch.float32, kind)
    step, kv = DecodeStep(model), live(model)
    logits = through_modules(model, IDS, live(model))
    got = torch.cat([step(kv, [int(token)], at) for at, token in enumerate(IDS)])
    assert (got - logits).abs().max() < 5e-3 * logits.abs().max()
    # Two that are nearly as likely may change places: the modules' own bits differ by processor.
    assert (got.argmax(-1) == logits.argmax(-1)).sum() >= len(IDS) - 2


@pytest.mark.parametrize(
    ("name", "kind"),
    [("qwen3", None), ("qwen3", "Q4_1"), *((name, REORDERED) for name in CONFIGS)],
)
def test_a_step_in_bfloat16_is_nearer_to_the_exact_logits_than_the_modules(
    name: str, kind: str | None
) -> None:
    model = build(CONFIGS[name], torch.bfloat16, kind)
    exact = build(CONFIGS[name], torch.float32, None if kind == REORDERED else kind)
    step, kv = DecodeStep(model), live(model)
    ids = torch.cat([IDS, IDS])  # more than are multiplied with the blocks as they lie
    got = torch.cat([step(kv, [int(token)], at) for at, token in enumerate(ids)])
    rounded = through_modules(model, ids, live(model))
    if kind == REORDERED:
        exact.load_state_dict(build(CONFIGS[name], torch.bfloat16, None).state_dict())
    else:
        weights = {k: v.float() for k, v in model.state_dict().items() if v.dtype is torch.bfloat16}
        exact.load_state_dict(weights, strict=False)
    logits = through_modules(exact, ids, live(exact))
    assert (got - logits).pow(2).mean() < (rounded - logits).pow(2).mean()


@pytest.mark.parametrize(
    ("name", "dtype", "kind"),
    [*(("qwen3", *form) for form in FORMS), ("qwen3_moe", torch.bfloat16, "Q4_0")],
)
def test_bits_depend_neither_on_threads_nor_on_the_room_nor_on_where_a_path_was_cut(
    name: str, dtype: torch.dtype, kind: str
) -> None:
    model = build(ALL[name], dtype, kind)
    before, results = torch.get_num_threads(), []
    try:
        for num_threads, room in ((1, 0), (2, 1000), (3, 300), (5, 0)):
            torch.set_num_threads(num_threads)
            step, kv = DecodeStep(model), live(model)
            kv.reserve(room)
            for at, token in enumerate(IDS):
                logits = step(kv, [int(token)], at)
            kv.truncate(30)
            for at in range(30, 60):
                logits = step(kv, [int(IDS[at])], at)
            results.append(logits)
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(result, results[0]) for result in results)


_NAMES = ["llama", "biases", "llama, one key head", "odd sizes", "qwen3", "smollm3"]


@pytest.mark.parametrize(
    ("name", "dtype", "kind"),
    [
        *((name, *form) for name in _NAMES for form in FORMS),
        *((name, *form) for name in ("mixtral", "qwen3_moe") for form in FORMS[:2]),
    ],
)
def test_a_token_gets_the_same_bits_alone_and_among_others(
    name: str, dtype: torch.dtype, kind: str
) -> None:
    model = build(ALL[name], dtype, kind)
    step, alone = DecodeStep(model), live(model)
    logits = [step(alone, [int(token)], at) for at, token in enumerate(IDS)]
    for sizes in ((60,), (7, 1, 2, 3, 47), (33, 4, 23)):
        kv, stop = live(model), 0
        for size in sizes:
            ids = IDS[stop : stop + size].tolist()
            got = step(kv, ids, stop)
            stop += size
            assert torch.equal(got, logits[stop - 1])
        for ours, theirs in zip(kv.growing, alone.growing, strict=True):
            for kind in ("key", "value"):
                assert torch.equal(ours.view(kind), theirs.view(kind))


def test_a_path_that_grows_past_its_buffers_and_its_scores() -> None:
    model = build(CONFIGS["llama"], torch.float32, "Q8_0")
    ids = torch.randint(0, 320, (1100,), generator=torch.Generator().manual_seed(4))
    step, kv = DecodeStep(model), live(model)
    through_modules(model, ids[:1000], kv)
    for position in range(1000, 1100):
        got = step(kv, [int(ids[position])], position)
    expected = through_modules(model, ids, live(model))[-1]
    assert (got[0] - expected).abs().max() < 5e-3 * expected.abs().max()


@torch.inference_mode()
def test_numbers_that_are_not_finite_are_not_hidden() -> None:
    model = build(CONFIGS["llama"], torch.float32, "Q8_0")
    step, kv = DecodeStep(model), live(model)
    step(kv, [1], 0)
    next(iter(kv.growing)).view("key")[0, 0, 0, 3] = float("nan")
    assert torch.isnan(step(kv, [2], 1)).any()


@pytest.mark.parametrize(
    "config",
    [
        Olmo2Config(**SIZES),  # norms behind the layers
        MistralConfig(**SIZES, sliding_window=16),
        LlamaConfig(**SIZES, hidden_act="gelu"),
        LlamaConfig(**SIZES, rope_parameters={"rope_type": "dynamic", "factor": 2.0}),
        MIXTURES["qwen3_moe"],  # experts that are not packed
    ],
)
def test_what_is_different_goes_through_the_modules(config: Any) -> None:
    model = build(config, torch.float32, None)
    with pytest.raises(UnknownStepError):
        DecodeStep(model)
    assert not takes_step(model)
