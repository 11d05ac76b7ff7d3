"""`cache verify --deep`: wrong numbers with right checksums are told by the model alone."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from chatcache import cli
from chatcache.backends.local.engine.settings import EngineSettings
from chatcache.backends.local.model.cut_policy import cut_policy
from chatcache.backends.local.model.loader import LoadedModel, load_model
from chatcache.backends.local.run.assemble import build_context, build_live
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
from chatcache.cache.book.rates import RateBook
from chatcache.cache.files.segfile import SegmentFile, TensorSource, write_segment
from chatcache.cache.files.store import SegmentStore
from chatcache.cache.prefix import PrefixCache
from chatcache.token_ids import TokenIds
from tests.models import build_model_dir

PATHS = (list(range(5, 105)), [*range(5, 65), *range(200, 240)])


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_model_dir(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module", params=["float32", "bfloat16"])
def filled(
    request: pytest.FixtureRequest, model_dir: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, LoadedModel]:
    """A cache directory with two branches: prompts in one piece, answers token by token."""
    cache_dir = tmp_path_factory.mktemp("cache")
    loaded = load_model(str(model_dir), device="cpu", dtype=request.param, cache_dir=cache_dir)
    fields = loaded.namespace_fields()
    cut = cut_policy(loaded.model.config.get_text_config())
    prefixes = PrefixCache(cache_dir, namespace_id(fields), ram_budget=1 << 30, disk_budget=1 << 30)
    prefixes.open(fields)
    path = LivePath(Forward(loaded.model, loaded.device), build_live(loaded, cut))
    context = build_context(cut, path, prefixes, RateBook(), 16, loaded.model.config)
    for ids in PATHS:
        prompt = len(ids) - 10
        reuse = context.reuse(TokenIds(ids), prompt - 1)
        for _ in context.prefill(TokenIds(ids[:prompt]), reuse.num_tokens):
            pass
        for position in range(prompt, len(ids)):
            context.step(ids[position], position)
        context.commit(TokenIds(ids), [prompt, len(ids)])
    prefixes.close()
    return cache_dir, loaded


@pytest.fixture
def cache(filled: tuple[Path, LoadedModel], home: Path) -> Path:
    """A copy for one test, where the commands look."""
    return Path(shutil.copytree(filled[0], home / "cache"))


@pytest.fixture
def dtype(filled: tuple[Path, LoadedModel]) -> str:
    return str(filled[1].dtype).removeprefix("torch.")


def events_of(cache: Path, model_dir: Path, dtype: str, **options: Any) -> list[RecheckEvent]:
    settings = EngineSettings(
        str(model_dir), cache, cache / "engine.log", device="cpu", dtype=dtype
    )
    events: list[Any] = []
    recheck_process.run(RecheckRequest(settings, **{"num_samples": 99, **options}), events.append)
    return events


def checks_of(events: list[RecheckEvent]) -> list[SegmentCheck]:
    return [event for event in events if isinstance(event, SegmentCheck)]


def store_of(cache: Path) -> SegmentStore:
    (directory,) = (path for path in (cache / "segments").iterdir() if path.is_dir())
    return SegmentStore(cache, directory.name)


def rewrite(path: Path, name: str, change: Any) -> None:
    """Change the numbers of a tensor and write the file anew: all its checksums hold."""
    dtypes = {"F32": torch.float32, "BF16": torch.bfloat16}
    sources = []
    with SegmentFile(path) as file:
        header = file.header
        for one in file.tensor_names:
            tensor = torch.empty(file.shape(one), dtype=dtypes[file.dtype(one)])
            file.read_into(one, [memory(tensor)])
            tensor = change(tensor).contiguous() if one == name else tensor
            shape = tuple(tensor.shape)
            sources.append(TensorSource(one, file.dtype(one), shape, (memory(tensor),)))
    with path.open("wb") as stream:
        write_segment(stream, header, sources)


def memory(tensor: torch.Tensor) -> memoryview:
    return memoryview(tensor.view(-1).view(torch.uint8).numpy())


def one_token_zeroed(tensor: torch.Tensor) -> torch.Tensor:
    changed = tensor.clone()
    changed[:, 3] = 0
    return changed


FAULTS = {
    "zeroed token": one_token_zeroed,
    "shifted by a token": lambda tensor: tensor.roll(1, dims=1),
    "heads exchanged": lambda tensor: tensor.flip(0),
    "not a number": lambda tensor: tensor.fill_(float("nan")),
}


def test_sound_segments_pass(cache: Path, model_dir: Path, dtype: str) -> None:
    events = events_of(cache, model_dir, dtype)
    started = next(event for event in events if isinstance(event, RecheckStarted))
    checks = checks_of(events)
    assert started.num_segments == started.num_chosen == len(checks) == 4
    assert {check.problem for check in checks} == {None}
    assert all(check.top1_agrees for check in checks)
    assert all(check.deviation < started.tolerance / 2 for check in checks)


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("name", ["key.0", "value.1"])
def test_wrong_numbers_with_right_checksums_are_found(
    cache: Path, model_dir: Path, dtype: str, name: str, fault: str
) -> None:
    """In a file in the middle: those behind it were computed from what was right."""
    path = max(store_of(cache).paths(), key=lambda path: int(path.name.split("-")[0]))
    rewrite(path, name, FAULTS[fault])
    wrong = [check for check in checks_of(events_of(cache, model_dir, dtype)) if check.problem]
    assert [check.segment_id for check in wrong] == [path.stem.split("-")[2]]
    assert wrong[0].worst == name
    assert wrong[0].deviation > 1.0


def test_a_sample_depends_on_the_seed_alone(cache: Path, model_dir: Path, dtype: str) -> None:
    def chosen(seed: int) -> list[str]:
        events = events_of(cache, model_dir, dtype, num_samples=2, seed=seed)
        return [check.segment_id for check in checks_of(events)]

    assert chosen(1) == chosen(1)
    assert len({tuple(chosen(seed)) for seed in range(5)}) > 1


def test_a_tensor_that_the_model_does_not_have(cache: Path, model_dir: Path, dtype: str) -> None:
    path = store_of(cache).paths()[0]
    rewrite(path, "key.0", lambda tensor: tensor[:, :, :8])
    problems = [check.problem for check in checks_of(events_of(cache, model_dir, dtype))]
    assert "key.0 is not a tensor of this model" in problems


# the command


def in_this_process(request: RecheckRequest) -> Iterator[RecheckEvent]:
    events: list[Any] = []
    recheck_process.run(request, events.append)
    yield from events


def run(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str]:
    capsys.readouterr()
    code = cli.main(["cache", "verify", *words])
    return code, capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize("filled", ["float32"], indirect=True)
def test_the_command_finds_what_verify_alone_cannot(
    cache: Path, model_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With the real process, from the planted fault to the file that is put aside."""
    deep = ("--deep", "--model", str(model_dir), "--device", "cpu", "--dtype", "float32")
    store = store_of(cache)
    path = store.paths()[-1]
    rewrite(path, "value.0", FAULTS["shifted by a token"])
    assert run(capsys)[0] == 0
    code, out = run(capsys, *deep, "--json")
    found = json.loads(out)
    assert code == 5
    assert [one["segment_id"] for one in found["damaged"]] == [path.stem.split("-")[2]]
    assert found["deep"]["namespace"] == store.namespace
    assert found["deep"]["unchecked_namespaces"] == []
    assert len(found["deep"]["segments"]) == 4
    assert run(capsys, *deep, "--fix")[0] == 0
    assert not path.exists()


@pytest.mark.parametrize("filled", ["float32"], indirect=True)
def test_segments_of_other_settings_are_named_as_unchecked(
    cache: Path,
    model_dir: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("chatcache.commands.cache_recompute.recheck", in_this_process)
    words = ("--deep", "--model", str(model_dir), "--device", "cpu")
    code, out = run(capsys, *words, "--dtype", "bfloat16")
    assert code == 0
    assert "has no segments to compute again" in out
    assert "Not computed again: 4 segments" in out
    code, out = run(capsys, *words, "--dtype", "float32", "--sample", "2")
    assert code == 0
    assert "2 of 4 segments" in out
    assert run(capsys, *words, "--sample", "0")[0] == 2


def test_a_model_that_cannot_be_loaded_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(capsys, "--deep", "--model", "./nowhere")[0] == 4
