"""What is on disk is computed again where that is clearly quicker, and nothing else changes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from chatcache.backends.local.model.cut_policy import cut_policy
from chatcache.cache.book import rates, transfer_rate
from chatcache.cache.views import to_read
from chatcache.token_ids import TokenIds
from tests.equivalence.engine import IdsEngine
from tests.equivalence.families import family_model

PROMPT = [3, 14, 15, 92, 65, 35, 89, 79, 32, 38, 46, 26] * 8
MORE = [43, 38, 32, 79, 50, 28]


@pytest.fixture(autouse=True)
def small_files_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rates, "MIN_DECLINED_BYTES", 1)
    monkeypatch.setattr(rates, "MIN_TELLING_BYTES", 1)
    monkeypatch.setattr(transfer_rate, "MIN_TELLING_BYTES", 1)


@pytest.fixture(scope="module")
def model() -> Any:
    return family_model("qwen3")


@pytest.fixture
def untold(model: Any, tmp_path: Path) -> Iterator[IdsEngine]:
    """A new process, which knows no rates; what was said before is on disk."""
    assert cut_policy(model.config).kind == "any_token"
    first = IdsEngine(model, tmp_path)
    first.turn(PROMPT, 4)
    first.close()
    engine = IdsEngine(model, tmp_path)
    yield engine
    engine.close()


@pytest.fixture
def later(untold: IdsEngine) -> IdsEngine:
    """The same, which computes quickly as far as it knows."""
    untold.rates.note_prefill(1_000_000, 1.0)
    return untold


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
    assert "computing 100 tokens about <1 ms" in again.reuse.declined
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


def test_after_a_decline_reading_is_tried_and_what_it_tells_is_used(
    later: IdsEngine, model: Any, tmp_path: Path
) -> None:
    one = said_before(model, tmp_path)
    later.rates.note_restore(1_000, 1.0)
    later.rates.note_declined(["disk"])
    for _ in range(2):  # two say that the model is slow
        later.rates.note_prefill(1_000_000, 1e6)
    again = later.turn([*one.ids, *MORE], 4)
    assert (again.reuse.num_tokens, again.reuse.declined) == (len(one.ids), None)
    assert again.reuse.disk_tokens == len(one.ids)
    assert later.rates.restore_bytes_per_second > 10_000
    assert "computing would have taken about" in str(again.reuse.read)


def test_a_trial_that_confirms_reads_one_segment_and_no_more(
    later: IdsEngine, model: Any, tmp_path: Path
) -> None:
    one = said_before(model, tmp_path)
    later.rates.note_restore(1_000, 1_000.0)
    later.rates.note_declined(["disk"])
    again = later.turn([*one.ids, *MORE], 4)
    assert again.reuse.num_tokens == again.reuse.disk_tokens == len(PROMPT)
    assert again.reuse.declined is not None
    assert again.ids[: len(one.ids)] == one.ids


def test_each_tier_is_timed_by_itself(
    untold: IdsEngine, model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = said_before(model, tmp_path)
    noted: dict[str, tuple[int, int]] = {}

    def note(num_bytes: int, seconds: float, tier: str, num_segments: int) -> None:
        assert seconds > 0
        noted[tier] = num_bytes, num_segments

    monkeypatch.setattr(untold.rates, "note_restore", note)
    two = untold.turn([*one.ids, *MORE], 4)
    assert noted == {"disk": (two.reuse.bytes_read, 2)}
    untold.forget_live()
    noted.clear()
    again = untold.turn([*two.ids, *MORE], 4)
    per_token = untold.live.num_bytes // untold.live.num_tokens
    if untold.live.is_queueing:  # what was read stays in slabs
        assert (again.reuse.bytes_read, noted) == (0, {})  # nothing had arrived when it was asked
        assert untold.context.note_brought() > 0
        assert noted == {"ram": (len(two.ids) * per_token, 4)}
        return
    assert noted["disk"] == (again.reuse.bytes_read, 2)
    assert noted["ram"] == ((len(two.ids) - len(one.ids)) * per_token, 2)


def test_what_is_live_already_is_not_counted_as_to_be_read(
    untold: IdsEngine, model: Any, tmp_path: Path
) -> None:
    one = said_before(model, tmp_path)
    untold.context.reuse(TokenIds(one.ids), len(PROMPT))
    with untold.prefixes.acquire(TokenIds(one.ids), len(one.ids)) as lease:
        whole, rest = (to_read(lease.held, start) for start in (0, len(PROMPT)))
    estimate = untold.context.estimate(TokenIds(one.ids))
    assert rest[0] == len(one.ids) - len(PROMPT) == whole[0] - len(PROMPT)
    assert 0 < rest[1] < whole[1]
    assert (estimate.disk_tokens, estimate.disk_bytes) == rest
