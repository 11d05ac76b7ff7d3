"""The numbers of an architecture are those of the K and V that it really writes."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from chatcache.backends.local.model.cut_policy import ANY_TOKEN_FAMILIES, CHECKPOINT_FAMILIES
from chatcache.backends.local.run.forward import Forward
from chatcache.backends.local.study.shape import model_shape
from chatcache.backends.questions import ModelShape
from chatcache.cache.tensors.live_kv import LiveKV
from tests.equivalence.families import family_model
from tests.equivalence.stateful import stateful_model

CPU = torch.device("cpu")


def shape_of(model: Any) -> tuple[ModelShape, int]:
    """And the bytes of K and V that a token really takes."""
    config = model.config
    has_states = config.model_type not in ANY_TOKEN_FAMILIES
    kv = LiveKV(config.num_hidden_layers, torch.float32, CPU, config if has_states else None)
    Forward(model, CPU)(kv, [1, 2], 0)
    num_bytes = kv.num_bytes // 2
    kv.truncate(0)
    loaded: Any = SimpleNamespace(
        model=model,
        num_layers=config.num_hidden_layers,
        num_parameters=model.num_parameters(),
        dtype=torch.float32,
    )
    return model_shape(loaded, kv, num_bytes), num_bytes


@pytest.mark.parametrize("family", sorted(ANY_TOKEN_FAMILIES))
def test_bytes_per_token_are_layers_times_heads_times_size(family: str) -> None:
    model = family_model(family)
    shape, num_bytes = shape_of(model)
    num_numbers = 2 * shape.num_layers * shape.num_kv_heads * shape.head_dim
    if shape.latent_dim:
        assert shape.latent_dim == 16 + 8
        assert num_bytes == shape.num_layers * shape.latent_dim * 4
        assert (shape.num_kv_heads, shape.head_dim) == (4, (16 + 8 + 16) // 2)
    else:
        assert shape.kv_bytes_per_token == num_bytes == num_numbers * shape.bytes_per_number
    assert shape.num_heads == 4
    assert shape.num_heads % shape.num_kv_heads == 0
    assert (shape.hidden_size, shape.vocab_size, shape.num_states) == (64, 97, 0)
    assert shape.intermediate_size > 0
    assert len(shape.windows) == shape.num_layers
    hides = getattr(model.config, "sliding_window", None) or "chunk" in str(model.config)
    if getattr(model.config, "use_sliding_window", True) and hides:
        assert 8 in shape.windows


@pytest.mark.parametrize("family", sorted(CHECKPOINT_FAMILIES - {"kimi_linear"}))
def test_layers_with_states_are_counted(family: str) -> None:
    shape, num_bytes = shape_of(stateful_model(family))
    assert shape.num_states > 0
    per_layer = 2 * shape.num_kv_heads * shape.head_dim * shape.bytes_per_number
    assert num_bytes % per_layer == 0
    assert num_bytes <= shape.num_layers * per_layer
