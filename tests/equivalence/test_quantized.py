"""Conversations on packed weights: a resumed one has the bits of the one that never stopped."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from chatcache.backends.local.model.loader import load_model
from tests.equivalence.engine import (
    Factory,
    check_resuming,
    check_switching,
)
from tests.gguf_models import MIXTURES, write_mixture
from tests.models import build_model_dir

SHAPE = {"hidden_size": 256, "intermediate_size": 512, "num_attention_heads": 4, "head_dim": 64}


@pytest.fixture(scope="module", params=["4bit", "8bit", "qwen3_moe", "gpt_oss"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Quantised, or a GGUF file with packed experts."""
    place: Path = tmp_path_factory.mktemp("quantized")
    if request.param in MIXTURES:
        experts = ("MXFP4",) * 3 if request.param == "gpt_oss" else ("Q4_K", "Q4_K", "Q6_K")
        write_mixture(place / "model.gguf", request.param, experts=experts)
        return load_model(str(place / "model.gguf"), dtype="float32", cache_dir=place).model
    directory = build_model_dir(place / "model", num_hidden_layers=2, **SHAPE)
    return load_model(str(directory), quantize=request.param, cache_dir=place / "cache").model


def test_resumed_from_ram_and_from_disk_is_never_stopped(engine: Factory) -> None:
    check_resuming(engine)


def test_switching_between_forks_and_back_changes_nothing(engine: Factory) -> None:
    check_switching(engine)
