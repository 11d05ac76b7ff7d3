"""What segments may take where nobody has said it, and that nobody loses by a new default."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chatcache.backends.local.packed.kernel_store import KernelStore, Verdict
from chatcache.budgets import (
    LEAST_DISK,
    LEAST_RAM,
    MOST_DISK,
    disk_budget,
    disk_kept,
    disk_size,
    ram_budget,
    vram_words,
)
from chatcache.cache.book.policy import TierPolicy
from chatcache.cache.inspect import CacheInspector
from chatcache.config import Settings, load_settings
from chatcache.doctor.examination import _made_files
from tests.kvfakes import Bench

GIB = 1 << 30
SIZES = st.integers(64 << 20, 1 << 46)


def settings(tmp_path: Path, text: str = "") -> Settings:
    (tmp_path / "config.toml").write_text(f"[cache]\n{text}")
    return load_settings(
        {"paths.config_file": tmp_path / "config.toml", "paths.data_dir": tmp_path / "data"}, {}
    )


@pytest.fixture(scope="module")
def default(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    return settings(tmp_path_factory.mktemp("default"))


@given(memory=SIZES)
def test_a_quarter_of_the_memory_by_default(memory: int, default: Settings) -> None:
    found = ram_budget(default, memory).num_bytes
    assert found <= memory // 2
    assert found >= min(LEAST_RAM, memory // 2)
    if memory >= 4 * LEAST_RAM:
        assert found == memory // 4
    assert found >= min(2 * GIB, memory // 2)  # as it was


@given(disk=SIZES)
def test_a_tenth_of_the_disk_by_default(disk: int, default: Settings) -> None:
    found = disk_budget(default, disk).num_bytes
    assert found <= min(disk // 2, MOST_DISK)
    assert found >= min(LEAST_DISK, disk // 2)
    if 10 * LEAST_DISK <= disk <= 10 * MOST_DISK:
        assert found == disk // 10


@pytest.mark.parametrize(
    ("memory", "words"),
    [
        (32 * GIB, "at most 8.6 GB: 25% of the 34.4 GB of memory (default)"),
        (
            6 * GIB,
            "at most 2.1 GB: the least that is taken by itself; "
            "25% of the 6.4 GB of memory would be less (default)",
        ),
        (2 * GIB, "at most 1.1 GB: half of the 2.1 GB of memory (default)"),
    ],
)
def test_the_figure_says_where_it_comes_from(memory: int, words: str, default: Settings) -> None:
    assert ram_budget(default, memory).words == words


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("ram_budget = 100\ndisk_budget = 7", (100, 7)),
        ("ram_budget = '1 GB'\ndisk_budget = '3 MiB'", (10**9, 3 << 20)),
        ("ram_budget = '25%'\ndisk_budget = '90 %'", (GIB // 4, 9 * GIB // 10)),
        ("ram_budget = '100%'\ndisk_budget = 0", (GIB, 0)),
    ],
)
def test_what_was_chosen_is_taken_as_it_is(
    text: str, expected: tuple[int, int], tmp_path: Path
) -> None:
    chosen = settings(tmp_path, text)
    ram, disk = ram_budget(chosen, GIB), disk_budget(chosen, GIB)
    assert (ram.num_bytes, disk.num_bytes) == expected
    assert ram.is_chosen
    assert str(tmp_path) in ram.words
    assert disk_kept(chosen) == 0


def test_a_cache_directory_that_is_not_there_yet_is_on_a_disk(tmp_path: Path) -> None:
    assert disk_size(tmp_path / "not" / "yet") == disk_size(tmp_path) > 0


@pytest.mark.parametrize("is_kept", [False, True])
def test_a_default_that_became_smaller_takes_nothing_away(is_kept: bool, tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.turn("a" * 100, "b" * 50)
    bench.turn("c" * 100, "d" * 50)
    before = bench.cache.use()[1].num_bytes
    bench.close()
    policy = TierPolicy(disk_kept=before + 1 if is_kept else 0)
    later = Bench(tmp_path, disk_budget=before // 2, policy=policy)
    use = later.cache.use()[1]
    later.close()
    assert (use.num_bytes == before) == is_kept
    assert use.budget_bytes == (before if is_kept else before // 2)
    if is_kept:
        inspector = CacheInspector(tmp_path, 1, before // 2, replace(policy))
        assert inspector.tiers()[1].budget_bytes == before


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "at most 50% of what the model leaves free (default)"),
        ('vram_budget = "3GB"\n', "at most 3.0 GB"),
    ],
)
def test_what_segments_may_take_of_a_gpu_is_said(text: str, words: str, tmp_path: Path) -> None:
    assert vram_words(settings(tmp_path, text)).startswith(words)


def test_the_doctor_says_what_was_made_of_models(tmp_path: Path) -> None:
    found = settings(tmp_path)
    report = list(_made_files(found.paths))
    assert report == []
    folder = found.paths.cache_dir / "quantized" / "a model"
    folder.mkdir(parents=True)
    (folder / "weights.safetensors").write_bytes(bytes(2_000_000))
    (finding,) = _made_files(found.paths)
    assert finding.status == "ok"
    assert "quantised weights 2.0 MB" in finding.detail
    assert "kernels" not in finding.detail


def test_the_doctor_says_where_compiled_code_is_wrong(tmp_path: Path) -> None:
    found = settings(tmp_path)
    found.paths.cache_dir.mkdir(parents=True)
    store = KernelStore()
    store.keep_in(found.paths.cache_dir / "kernels")
    for key, verdict in (("a", Verdict.RIGHT), ("b", Verdict.STEP_IS_WRONG)):
        store.keep_verdict(key, verdict)
    *_, finding = _made_files(found.paths)
    assert finding.status == "note"
    assert "wrong on this processor for 1 model" in finding.detail
