"""`cache verify --deep` where segments are not plain K and V: 8-bit integers, and checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from chatcache.backends.local.engine.settings import EngineSettings
from chatcache.backends.local.model.cut_policy import cut_policy
from chatcache.backends.local.model.loader import load_model
from chatcache.backends.local.run.assemble import build_context, build_live, warm_up
from chatcache.backends.local.run.forward import Forward
from chatcache.backends.local.run.live_context import LivePath
from chatcache.backends.local.study import recheck_process
from chatcache.backends.local.study.recheck import (
    RecheckEvent,
    RecheckRequest,
    RecheckStarted,
    SegmentCheck,
)
from chatcache.cache.book.namespace import namespace_id
from chatcache.cache.book.policy import Precision, TierPolicy
from chatcache.cache.book.rates import RateBook
from chatcache.cache.files.segfile import SegmentFile, TensorSource, write_segment
from chatcache.cache.prefix import PrefixCache
from chatcache.token_ids import TokenIds
from tests.equivalence.stateful import OVERRIDES
from tests.models import build_model_dir

PATHS = (list(range(5, 105)), [*range(5, 65), *range(200, 240)])
NUM_ANSWER = 10
DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "I8": torch.int8}


def fill(model_dir: Path, cache_dir: Path, dtype: str, precision: Precision) -> None:
    """Two branches: prompts in pieces, answers token by token."""
    loaded = load_model(str(model_dir), device="cpu", dtype=dtype, cache_dir=cache_dir)
    fields = loaded.namespace_fields(precision)
    cut = cut_policy(loaded.model.config.get_text_config())
    prefixes = PrefixCache(
        cache_dir,
        namespace_id(fields),
        ram_budget=1 << 30,
        disk_budget=1 << 30,
        needs_states=cut.needs_states,
    )
    prefixes.open(fields)
    path = LivePath(Forward(loaded.model, loaded.device), build_live(loaded, cut, precision))
    rates = RateBook()
    warm_up(cut, path, rates)
    context = build_context(cut, path, prefixes, rates, 16, loaded.model.config)
    for ids in PATHS:
        prompt = len(ids) - NUM_ANSWER
        reuse = context.reuse(TokenIds(ids), prompt - 1)
        stops = [60, prompt - 4]
        for _ in context.prefill(TokenIds(ids[:prompt]), reuse.num_tokens, stops=stops):
            pass
        for position in range(prompt, len(ids)):
            context.step(ids[position], position)
        context.commit(TokenIds(ids), [prompt, len(ids)])
    prefixes.close()


def events_of(
    model_dir: Path, cache_dir: Path, dtype: str, precision: Precision
) -> list[RecheckEvent]:
    settings = EngineSettings(
        str(model_dir),
        cache_dir,
        cache_dir / "engine.log",
        device="cpu",
        dtype=dtype,
        policy=TierPolicy(precision=precision),
    )
    events: list[Any] = []
    recheck_process.run(RecheckRequest(settings, num_samples=99), events.append)
    return events


def checks_of(events: list[RecheckEvent]) -> list[SegmentCheck]:
    return [event for event in events if isinstance(event, SegmentCheck)]


def memory(tensor: torch.Tensor) -> memoryview:
    return memoryview(tensor.view(-1).view(torch.uint8).numpy())


def zero_a_token(path: Path, name: str) -> None:
    """Wrong numbers with right checksums."""
    sources = []
    with SegmentFile(path) as file:
        header = file.header
        for one in file.tensor_names:
            tensor = torch.empty(file.shape(one), dtype=DTYPES[file.dtype(one)])
            file.read_into(one, [memory(tensor)])
            if one == name:
                tensor[:, 3] = 0
            sources.append(
                TensorSource(one, file.dtype(one), tuple(tensor.shape), (memory(tensor),))
            )
    with path.open("wb") as stream:
        write_segment(stream, header, sources)


def last_file(cache_dir: Path) -> Path:
    found = cache_dir.glob("segments/*/*.safetensors")
    return max(found, key=lambda path: int(path.name.split("-")[0]))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_integers_are_approximate_and_no_damage(tmp_path: Path, dtype: str) -> None:
    model_dir, cache_dir = build_model_dir(tmp_path / "model"), tmp_path / "cache"
    fill(model_dir, cache_dir, dtype, "int8")
    events = events_of(model_dir, cache_dir, dtype, "int8")
    started = next(event for event in events if isinstance(event, RecheckStarted))
    checks = checks_of(events)
    assert started.precision == "int8"
    assert len(checks) == started.num_segments > 0
    assert {check.problem for check in checks} == {None}
    assert all(0 < check.deviation < started.tolerance / 2 for check in checks)
    path = last_file(cache_dir)
    zero_a_token(path, "value.1")
    wrong = [
        one for one in checks_of(events_of(model_dir, cache_dir, dtype, "int8")) if one.problem
    ]
    assert [one.segment_id for one in wrong] == [path.stem.split("-")[2]]
    assert "8 bits" in (wrong[0].problem or "")


def test_exact_segments_are_not_looked_at_as_integers(tmp_path: Path) -> None:
    model_dir, cache_dir = build_model_dir(tmp_path / "model"), tmp_path / "cache"
    fill(model_dir, cache_dir, "float32", "exact")
    assert checks_of(events_of(model_dir, cache_dir, "float32", "int8")) == []
    assert len(checks_of(events_of(model_dir, cache_dir, "float32", "exact"))) > 0


@pytest.mark.parametrize(
    ("family", "precision"),
    [("lfm2", "exact"), ("lfm2", "int8"), ("mamba2", "exact"), ("qwen3_next", "int8")],
)
def test_checkpoints_are_compared_as_well(
    tmp_path: Path, family: str, precision: Precision
) -> None:
    model_dir = build_model_dir(tmp_path / "model", family, **OVERRIDES[family])
    cache_dir = tmp_path / "cache"
    fill(model_dir, cache_dir, "float32", precision)
    checks = checks_of(events_of(model_dir, cache_dir, "float32", precision))
    assert len(checks) >= 4
    assert {check.problem for check in checks} == {None}
    path = last_file(cache_dir)
    with SegmentFile(path) as file:
        state = next(one for one in file.tensor_names if one.startswith(("conv.", "recurrent.")))
    zero_a_token(path, state)
    wrong = [
        one
        for one in checks_of(events_of(model_dir, cache_dir, "float32", precision))
        if one.problem
    ]
    assert [one.worst for one in wrong] == [state]
