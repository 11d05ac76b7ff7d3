"""Damaged files are set aside, but not for ever and not without end."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from chatcache import cli
from chatcache.cache.files import quarantine
from chatcache.cache.files.quarantine import Quarantine
from chatcache.config import load_settings
from tests.kvfakes import Bench, ByteSink, ids_of


def damage_all(bench: Bench, at: float | None = None) -> None:
    for path in bench.files():
        path.write_bytes(b"damaged" * 10)
        if at is not None:
            os.utime(path, (at, at))


def num_restored(bench: Bench, text: str) -> int:
    with bench.cache.acquire(ids_of(text), len(text)) as lease:
        return bench.cache.restore(lease, ByteSink(), 0).num_tokens


def test_no_more_than_so_many_files_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quarantine, "MAX_FILES", 3)
    bench = Bench(tmp_path)
    for number in range(6):
        text = f"{number} asks. "
        bench.turn(text, "Answer. ")
        bench.close()
        damage_all(bench, at=1.0)
        bench.reopen()
        assert num_restored(bench, text) == 0
    assert Quarantine(tmp_path).use().num_files == 3
    assert len({file.segment_id for file in bench.cache.damaged}) >= 3
    bench.close()


def test_no_more_than_so_many_bytes_are_kept_and_the_oldest_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quarantine, "MAX_BYTES", 250)
    place = Quarantine(tmp_path)
    for number in range(4):
        path = tmp_path / f"0-1-{number:032x}.safetensors"
        path.write_bytes(bytes(100))
        place.put(path, "ns")
        os.utime(place.paths()[-1], (1000 + number, 1000 + number))
    assert place.names("ns") == [f"0-1-{number:032x}.safetensors" for number in (2, 3)]
    assert (place.use().num_bytes, place.use().num_files) == (200, 2)


def test_stats_tell_of_it_and_gc_empties_it(capsys: pytest.CaptureFixture[str]) -> None:
    bench = Bench(load_settings().paths.cache_dir)
    bench.turn("Hello! ", "Hi! ")
    bench.close()
    damage_all(bench)
    bench.reopen()
    assert num_restored(bench, "Hello! ") == 0
    bench.close()
    assert cli.main(["cache", "stats", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["quarantine"] == {"bytes": 70, "segments": 1}
    assert cli.main(["cache", "stats"]) == 0
    assert "1 damaged segment, 70 B" in capsys.readouterr().out
    assert cli.main(["cache", "gc"]) == 0
    capsys.readouterr()
    assert cli.main(["cache", "stats"]) == 0
    assert "set aside" not in capsys.readouterr().out
