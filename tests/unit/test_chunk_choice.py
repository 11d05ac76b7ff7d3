"""How many tokens of a prompt a GPU is given at once: chosen once, by its pace and its memory."""

from __future__ import annotations

import json
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
    monkeypatch.setattr(chunk_choice, "card_name", lambda device: "a card")
    monkeypatch.setattr(chunk_choice, "_free_bytes", lambda device: 80 << 30)
    model = family_model("qwen3")
    model.config._attn_implementation = device_attention.NAME
    return OnCard(model, torch.device("cuda"))


@pytest.mark.parametrize(("most", "expected"), [(8192, 8192), (3000, 2048), (300, 300)])
def test_a_little_less_memory_makes_no_other_plan(most: int, expected: int) -> None:
    assert longest_chunk(most) == expected


@pytest.mark.parametrize(
    ("fixed", "per_token", "expected"),
    [(0.0, 1e-6, 8192), (0.05, 4e-5, 8192), (0.0, 1e-4, 4096), (0.2, 1e-3, 512)],
)
def test_a_chunk_ends_before_a_stop_is_overdue(
    loaded: Any, tmp_path: Path, fixed: float, per_token: float, expected: int
) -> None:
    """A fast card takes as long for few tokens as for some more: launches cost time, too."""
    choice = ChunkChoice(loaded, tmp_path)
    choice.measure(lambda num_tokens: max(fixed, per_token * num_tokens))
    assert choice.num_tokens == expected


def test_it_is_measured_once_and_kept(loaded: Any, tmp_path: Path) -> None:
    directory = tmp_path / "namespace"
    choice = ChunkChoice(loaded, directory)
    assert choice.is_open
    slow = {512, 1024, 2048}  # the first run of a length: kernels are loaded

    def seconds_of(num_tokens: int) -> float:
        first = num_tokens in slow
        slow.discard(num_tokens)
        return 9.0 if first else num_tokens * 1.5e-4

    choice.measure(seconds_of)
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
    choice.measure(lambda num_tokens: num_tokens * 1.5e-4)
    assert choice.num_tokens == 2048


def test_cards_do_not_share_a_note(loaded: Any, tmp_path: Path) -> None:
    (tmp_path / chunk_choice.FILE_NAME).write_text(json.dumps({"another": 4096}))
    choice = ChunkChoice(loaded, tmp_path)
    choice.measure(lambda num_tokens: num_tokens * 1.5e-4)
    found = json.loads((tmp_path / chunk_choice.FILE_NAME).read_text())
    assert found == {"another": 4096, "a card": 2048}


def test_a_cpu_has_nothing_to_choose(loaded: Any, tmp_path: Path) -> None:
    choice = ChunkChoice(OnCard(loaded.model, torch.device("cpu")), tmp_path)  # type: ignore[arg-type]
    assert not choice.is_open
    assert choice.num_tokens == 512
