"""The writer rests while a turn computes, and only then."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from chatcache.cache.files import pace as pace_module
from chatcache.cache.files.pace import Pace
from chatcache.cache.prefix import PrefixCache
from tests.kvfakes import FIELDS, ByteBlock, ids_of

FOREVER = 3600.0


@pytest.fixture
def pace(monkeypatch: pytest.MonkeyPatch) -> Pace:
    """One whose rests do not end by themselves."""
    monkeypatch.setattr(pace_module, "_REST_PER_WORK", 1e12)
    monkeypatch.setattr(pace_module, "_LONGEST_REST_SECONDS", FOREVER)
    return Pace()


def breathing(pace: Pace) -> tuple[threading.Thread, threading.Event]:
    """A writer that has worked and takes a breath, and whether it has gone on."""
    has_gone_on = threading.Event()

    def write() -> None:
        pace.begin()
        sum(range(1000))
        pace.breathe()
        has_gone_on.set()

    thread = threading.Thread(target=write, daemon=True)
    thread.start()
    return thread, has_gone_on


def test_nothing_rests_while_nothing_computes(pace: Pace) -> None:
    thread, has_gone_on = breathing(pace)
    thread.join(FOREVER)
    assert has_gone_on.is_set()


def test_a_rest_ends_with_the_turn(pace: Pace) -> None:
    with pace.computing():
        thread, has_gone_on = breathing(pace)
        assert not has_gone_on.wait(0.05)
    thread.join(FOREVER)
    assert has_gone_on.is_set()


def test_a_rest_ends_when_somebody_waits(pace: Pace) -> None:
    with pace.computing():
        thread, has_gone_on = breathing(pace)
        assert not has_gone_on.wait(0.05)
        with pace.waited_for():
            thread.join(FOREVER)
        assert has_gone_on.is_set()


def test_short_memory_knows_no_rest(pace: Pace) -> None:
    pace.is_pressed = True
    with pace.computing():
        thread, has_gone_on = breathing(pace)
        thread.join(FOREVER)
    assert has_gone_on.is_set()


def test_what_is_drained_in_mid_turn_is_written_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pace_module, "_REST_PER_WORK", 1e12)
    monkeypatch.setattr(pace_module, "_LONGEST_REST_SECONDS", FOREVER)
    cache = PrefixCache(tmp_path, "pace", ram_budget=1 << 30, disk_budget=1 << 30)
    cache.open(FIELDS)
    with cache.computing():
        ids = ids_of("What was said. ")
        cache.commit(ids, [len(ids) // 4], lambda start, stop: ByteBlock(ids, start, stop))
        assert cache.drain(FOREVER)
    cache.close()
    assert list(tmp_path.rglob("*.safetensors"))
