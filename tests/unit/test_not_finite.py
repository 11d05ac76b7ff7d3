"""A model whose numbers overflow answers nothing, says what helps, and leaves nothing behind."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from chatcache.backends.base import ChatMessage, Prepare, TextDelta, TurnFailed
from chatcache.cache.files.finite import are_finite
from chatcache.cache.files.segfile import (
    SegmentDamagedError,
    SegmentFile,
    SegmentHeader,
    write_segment,
)
from chatcache.cache.inspect import CacheInspector
from chatcache.cache.prefix import PrefixCache
from chatcache.cache.segments import TensorSource
from chatcache.errors import NotFiniteError
from tests.equivalence.stateful import OVERRIDES
from tests.kvfakes import ids_of
from tests.models import build_model_dir
from tests.talks import Engine, Talk

KINDS: dict[str, dict[str, Any]] = {"qwen3": {}, "lfm2": OVERRIDES["lfm2"], "persimmon": {}}


def change(model: Path, name: str, rows: Any, value: float) -> None:
    """Set rows of a weight, and keep the file whole."""
    path = model / "model.safetensors"
    weights = load_file(path)
    weights[name] = weights[name].clone()
    weights[name][rows] = value
    save_file(weights, path, metadata={"format": "pt"})


def overflowing(place: Path, family: str = "qwen3") -> Path:
    """A sound float32 model, one of whose weights is too large for float16."""
    model = build_model_dir(place / family, family, **KINDS[family])
    names = [name for name in load_file(model / "model.safetensors") if "norm.weight" in name]
    change(model, names[-1], 0, 1e6)
    return model


@pytest.mark.parametrize("family", KINDS)
def test_an_overflow_is_said_and_leaves_nothing(family: str, tmp_path: Path) -> None:
    model = overflowing(tmp_path, family)
    engine = Engine(model, tmp_path, dtype="float16")
    error = Talk().fail(engine, "What is the answer?")
    engine.close()
    assert isinstance(error, NotFiniteError)
    assert "float16" in error.message
    assert "--dtype bfloat16" in error.hint
    assert not list(tmp_path.rglob("segments/*/*.safetensors"))
    engine = Engine(model, tmp_path, dtype="bfloat16")
    assert Talk().say(engine, "What is the answer?").answer_ids
    engine.close()


@pytest.fixture
def breaking(tmp_path: Path) -> Iterator[tuple[Engine, Talk]]:
    """A model that answers for some tokens, and reads one of its own that has no numbers."""
    model = build_model_dir(tmp_path / "model", seed=3, tie_word_embeddings=False)
    engine = Engine(model, tmp_path / "sound")
    answer = Talk().say(engine, "Why?").answer_ids.to_list()
    engine.close()
    late = next(token_id for token_id in answer if answer.index(token_id) > 3)
    change(model, "model.embed_tokens.weight", late, float("nan"))
    engine = Engine(model, tmp_path / "broken")
    yield engine, Talk()
    engine.close()


def test_what_was_said_before_is_told(breaking: tuple[Engine, Talk], tmp_path: Path) -> None:
    engine, talk = breaking
    events = talk.events(engine, "Why?")
    failed = events[-1]
    assert isinstance(failed, TurnFailed)
    assert isinstance(failed.error, NotFiniteError)
    assert "damaged" in failed.error.hint
    assert failed.partial is not None
    shown = [event.text for event in events if isinstance(event, TextDelta)]
    assert failed.partial.text.startswith("".join(shown))
    assert failed.partial.cache.bytes_written == 0
    assert not list(tmp_path.rglob("broken/**/*.safetensors"))
    # The turn after it begins on clean ground.
    after = Talk().events(engine, "Why?")[-1]
    assert isinstance(after, TurnFailed)
    assert after.partial is not None
    assert after.partial.text == failed.partial.text
    assert after.partial.usage.cached_tokens == 0


def test_idle_work_keeps_nothing_of_it(tmp_path: Path) -> None:
    engine = Engine(overflowing(tmp_path), tmp_path, dtype="float16")
    turn = Talk().request("The key and the value of every token are kept. " * 4)
    list(engine.runner.prepare(Prepare("p", "draft", turn), lambda: True))
    error = Talk([ChatMessage("system", "Be brief.")]).fail(engine, "Why?")
    engine.close()
    assert isinstance(error, NotFiniteError)
    assert not list(tmp_path.rglob("segments/*/*.safetensors"))


# what older versions have left on disk

FORMATS = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


@given(
    dtype=st.sampled_from(sorted(FORMATS)),
    numbers=st.lists(st.floats(width=16), min_size=1, max_size=40),
)
def test_numbers_are_told_from_what_is_none(dtype: str, numbers: list[float]) -> None:
    tensor = torch.tensor(numbers, dtype=FORMATS[dtype])
    content = bytes(tensor.view(torch.uint8).numpy())
    assert are_finite(content, dtype) == bool(tensor.isfinite().all())
    assert are_finite(content, "I8")


def segment(ids: str, *numbers: float) -> tuple[SegmentHeader, list[TensorSource]]:
    header = SegmentHeader("ab" * 16, None, "ns", 0, len(ids), ids_of(ids), 1000.0, "test")
    packed = memoryview(struct.pack(f"<{len(numbers)}e", *numbers))
    shape = (1, len(ids), len(numbers) // len(ids))
    return header, [TensorSource(name, "F16", shape, (packed,)) for name in ("key.0", "value.0")]


@pytest.mark.parametrize("number", [float("nan"), float("inf"), float("-inf")])
def test_a_file_with_such_numbers_is_damaged(number: float, tmp_path: Path) -> None:
    path = tmp_path / "segment"
    for last in (65504.0, number):
        with path.open("wb") as written:
            write_segment(written, *segment("ab", 1.0, 2.0, -3.0, last))
        with SegmentFile(path) as file:
            if last == 65504.0:
                file.verify()
                continue
            with pytest.raises(SegmentDamagedError, match="not finite"):
                file.verify()


class BrokenBlock:
    """A block as an engine of an older version kept it."""

    def __init__(self, start: int, stop: int):
        self.num_bytes, self.has_states = 2 * (stop - start), False
        self._shape = (1, stop - start, 1)
        self._packed = memoryview(b"\xff\xff" * (stop - start))

    def sources(self) -> list[TensorSource]:
        return [TensorSource("key.0", "F16", self._shape, (self._packed,))]


def test_verify_finds_them_and_puts_them_aside(tmp_path: Path) -> None:
    prefixes = PrefixCache(tmp_path, "ns", ram_budget=1 << 20, disk_budget=1 << 20)
    prefixes.open({})
    prefixes.commit(ids_of("hello"), (5,), lambda start, stop: BrokenBlock(start, stop))  # type: ignore[arg-type,return-value]
    prefixes.close()
    inspector = CacheInspector(tmp_path, 1 << 20, 1 << 20)
    ((_, problem),) = inspector.verify(fix=True).damaged
    assert "not finite" in problem
    assert inspector.verify().num_checked == 0
