"""The bytes of K and V that a config promises are those that a model keeps."""

from __future__ import annotations

import pytest
import torch

from chatcache.backends.local.model.cut_policy import (
    ANY_TOKEN_FAMILIES,
    CHECKPOINT_FAMILIES,
    STEPWISE_FAMILIES,
)
from chatcache.backends.local.model.needs import kv_bytes_per_token, text_config
from chatcache.backends.local.run.forward import Forward
from chatcache.backends.local.study.probe import kv_values_per_token, layer_kinds
from chatcache.cache.tensors.live_kv import LiveKV
from tests.equivalence.families import family_model
from tests.equivalence.stateful import stateful_model

NUM_TOKENS = 5


@pytest.mark.parametrize("family", sorted(ANY_TOKEN_FAMILIES))
def test_a_config_tells_what_a_model_keeps(family: str) -> None:
    from transformers import DynamicCache

    model = family_model(family)
    config = model.config.get_text_config()
    cache = DynamicCache()
    Forward(model, torch.device("cpu"))(cache, list(range(1, NUM_TOKENS + 1)), 0)
    kept = sum(layer.keys.numel() + layer.values.numel() for layer in cache.layers)
    assert kept == NUM_TOKENS * kv_values_per_token(config)
    assert kept == NUM_TOKENS * kv_bytes_per_token(text_config(model.config.to_dict()), 1)
    assert sum(layer_kinds(config).values()) == config.num_hidden_layers


@pytest.mark.parametrize("family", sorted(CHECKPOINT_FAMILIES | STEPWISE_FAMILIES))
def test_a_config_tells_what_a_model_with_states_keeps_per_token(family: str) -> None:
    model = stateful_model(family)
    config = model.config.get_text_config()
    cpu = torch.device("cpu")
    live = LiveKV(config.num_hidden_layers, torch.float32, cpu, model.config)
    Forward(model, cpu)(live, list(range(1, NUM_TOKENS + 1)), 0)
    assert live.num_bytes == NUM_TOKENS * kv_values_per_token(config) * torch.float32.itemsize
    assert live.has_states
    assert sum(layer_kinds(config).values()) == config.num_hidden_layers
