"""How many tokens of a prompt a GPU is given at once: chosen once, by its pace and its memory."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from chatcache.backends.local.model import device_attention
from chatcache.backends.local.run import chunk_choice
from chatcache.backends.local.run.chunk_choice import ChunkChoice, bytes_per_token, longest_chunk
from tests.equivalence.families import family_model


@dataclass
class OnCard:
    """As much of a loaded model as the choice looks at."""

    model: Any
    device: torch.device
    dtype: torch.dtype = torch.bfloat16
    max_context_tokens: int = 100_000


@pytest.fixture
def loaded(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(chunk_choice, "_card", lambda device: "a card")
    monkeypatch.setattr(chunk_choice, "_free_bytes", lambda device: 80 << 30)
    model = family_model("qwen3")
    model.config._attn_implementation = device_attention.NAME
    return OnCard(model, torch.device("cuda"))


@pytest.mark.parametrize(
    ("rate", "most", "expected"),
    [
        (60_000, 8192, 8192),
        (6_000, 8192, 2048),
        (100, 8192, 512),
        (1e9, 3000, 2048),
        (1e9, 300, 300),
        (math.inf, 8192, 8192),
    ],
)
def test_a_chunk_ends_before_a_stop_is_overdue(rate: float, most: int, expected: int) -> None:
    assert longest_chunk(rate, most) == expected


def test_it_is_measured_once_and_kept(loaded: Any, tmp_path: Path) -> None:
    directory = tmp_path / "namespace"
    choice = ChunkChoice(loaded, directory)
    assert choice.is_open
    paces = iter([9.0, 0.05])  # the first run is slow: kernels are loaded
    choice.measure(lambda num_tokens: next(paces))
    assert not choice.is_open
    assert choice.num_tokens == 2048
    again = ChunkChoice(loaded, directory)
    assert not again.is_open
    assert again.num_tokens == 2048


def test_it_fits_the_memory_that_is_there(
    loaded: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    choice = ChunkChoice(loaded, tmp_path)
    choice.measure(lambda num_tokens: 0.001)
    assert choice.num_tokens == 8192
    per_token = bytes_per_token(loaded.model.config, 2)
    monkeypatch.setattr(chunk_choice, "_free_bytes", lambda device: 4 * 3000 * per_token)
    assert choice.num_tokens == 2048
    loaded.max_context_tokens = 700
    assert choice.num_tokens == 512


def test_the_stock_kernels_keep_to_short_chunks(loaded: Any, tmp_path: Path) -> None:
    loaded.model.config._attn_implementation = "sdpa"
    choice = ChunkChoice(loaded, tmp_path)
    choice.measure(lambda num_tokens: 0.001)
    assert choice.num_tokens == 1024


@pytest.mark.parametrize("content", ["", "[]", '{"a card": "many"}', '{"a card": -1}', "{"])
def test_a_damaged_note_is_measured_anew(loaded: Any, tmp_path: Path, content: str) -> None:
    (tmp_path / chunk_choice.FILE_NAME).write_text(content)
    choice = ChunkChoice(loaded, tmp_path)
    assert choice.is_open
    choice.measure(lambda num_tokens: 0.05)
    assert choice.num_tokens == 2048


def test_cards_do_not_share_a_note(loaded: Any, tmp_path: Path) -> None:
    (tmp_path / chunk_choice.FILE_NAME).write_text(json.dumps({"another": 4096}))
    choice = ChunkChoice(loaded, tmp_path)
    choice.measure(lambda num_tokens: 0.05)
    found = json.loads((tmp_path / chunk_choice.FILE_NAME).read_text())
    assert found == {"another": 4096, "a card": 2048}


def test_a_cpu_has_nothing_to_choose(loaded: Any, tmp_path: Path) -> None:
    choice = ChunkChoice(OnCard(loaded.model, torch.device("cpu")), tmp_path)  # type: ignore[arg-type]
    assert not choice.is_open
    assert choice.num_tokens == 512
