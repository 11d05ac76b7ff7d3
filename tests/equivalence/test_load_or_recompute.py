"""What is on disk is computed again where that is clearly quicker, and nothing else changes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from chatcache.backends.local.model.cut_policy import cut_policy
from chatcache.cache.book import rates
from tests.equivalence.engine import IdsEngine
from tests.equivalence.families import family_model

PROMPT = [3, 14, 15, 92, 65, 35, 89, 79, 32, 38, 46, 26] * 8
MORE = [43, 38, 32, 79, 50, 28]


@pytest.fixture(autouse=True)
def small_files_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rates, "MIN_MEASURED_BYTES", 1)


@pytest.fixture(scope="module")
def model() -> Any:
    return family_model("qwen3")


@pytest.fixture
def later(model: Any, tmp_path: Path) -> Iterator[IdsEngine]:
    """A new process; what was said before is on disk."""
    assert cut_policy(model.config).kind == "any_token"
    first = IdsEngine(model, tmp_path)
    first.turn(PROMPT, 4)
    first.close()
    engine = IdsEngine(model, tmp_path)
    engine.rates.note_prefill(1_000_000, 1.0)
    yield engine
    engine.close()


def said_before(model: Any, tmp_path: Path) -> Any:
    engine = IdsEngine(model, tmp_path / "other")
    said = engine.turn(PROMPT, 4)
    engine.close()
    return said


def test_a_slow_disk_is_not_waited_for(later: IdsEngine, model: Any, tmp_path: Path) -> None:
    one = said_before(model, tmp_path)
    later.rates.note_restore(1_000, 1.0)
    again = later.turn([*one.ids, *MORE], 4)
    assert (again.reuse.num_tokens, again.reuse.bytes_read) == (0, 0)
    assert again.reuse.declined is not None
    assert "computing 100 tokens" in again.reuse.declined
    assert again.ids[: len(one.ids)] == one.ids


def test_what_is_known_is_not_written_again(later: IdsEngine, model: Any, tmp_path: Path) -> None:
    one = said_before(model, tmp_path)
    later.rates.note_restore(1_000, 1.0)
    before = later.prefixes.use()[1].num_bytes
    later.turn([*one.ids, *MORE], 4)
    later.prefixes.drain()
    per_token = later.live.num_bytes / later.live.num_tokens
    written = later.prefixes.use()[1].num_bytes - before
    assert written <= 1.02 * (len(MORE) + 4) * per_token + 65_536


def test_a_quick_disk_is_read(later: IdsEngine, model: Any, tmp_path: Path) -> None:
    one = said_before(model, tmp_path)
    later.rates.note_restore(1_000_000_000, 1.0)
    again = later.turn([*one.ids, *MORE], 4)
    assert (again.reuse.num_tokens, again.reuse.declined) == (len(one.ids), None)


def test_what_was_never_measured_is_read(later: IdsEngine, model: Any, tmp_path: Path) -> None:
    one = said_before(model, tmp_path)
    again = later.turn([*one.ids, *MORE], 4)
    assert again.reuse.disk_tokens == len(one.ids)


def test_what_is_in_memory_is_used_however_slow_the_disk(model: Any, tmp_path: Path) -> None:
    engine = IdsEngine(model, tmp_path)
    engine.rates.note_prefill(1_000_000, 1.0)
    engine.rates.note_restore(1_000, 1.0)
    one = engine.turn(PROMPT, 4)
    engine.forget_live()
    again = engine.turn([*one.ids, *MORE], 4)
    engine.close()
    assert again.reuse.num_tokens == len(one.ids)


def test_one_bad_moment_of_the_disk_does_not_decide_for_ever() -> None:
    book = rates.RateBook()
    book.note_prefill(1_000, 1.0)
    book.note_restore(1_000, 1.0)
    declined = 0
    while book.is_restore_dearer(100_000, 100):
        book.note_declined()
        declined += 1
    assert 5 < declined < 100
