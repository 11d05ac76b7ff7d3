"""`chatcache cache pin/unpin/drop/show/gc` on segments of real sessions, without a model."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from chatcache import cli, compose
from chatcache.backends.base import EngineStatus
from chatcache.cache.prefix import PrefixCache
from chatcache.cache.views import TierUse
from chatcache.commands.cache_engines import use_json, use_lines
from chatcache.config import load_settings
from chatcache.token_ids import TokenIds
from tests.fakes import FakeBackend
from tests.kvfakes import ByteBlock

Cache = Callable[..., dict[str, Any]]


@pytest.fixture
def cache(capsys: pytest.CaptureFixture[str]) -> Cache:
    """Run `chatcache cache ... --json`; returns the object, or the exit code and the message."""

    def run(*words: str) -> dict[str, Any]:
        code = cli.main(["cache", *words, "--json"])
        captured = capsys.readouterr()
        if code:
            return {"code": code, "error": captured.err}
        found: dict[str, Any] = json.loads(captured.out)
        return found

    return run


def test_what_running_engines_hold_is_said_of_each_tier() -> None:
    told: dict[str, Any] = {
        **{"pid": 7, "version": "1", "model": "org/m", "adapter": None, "device": "cuda"},
        **{"dtype": "bfloat16", "cache_dir": "/c", "state": "ready", "started_at": 0.0},
        **{"memory_bytes": 1, "front_ends": (), "is_answering": False},
        **{"keep_alive_seconds": None, "seconds_left": None},
    }
    loading, on_cpu = EngineStatus(**told), EngineStatus(**told, ram=TierUse(10**6, 10**9, 2))
    on_gpu = replace(on_cpu, vram=TierUse(44 * 10**8, 6 * 10**10, 3), pinned_bytes=13 * 10**8)
    assert list(use_lines([loading, on_cpu, on_gpu])) == [
        "in use         1.0 MB of 1.0 GB in memory (org/m)",
        "in use         1.0 MB of 1.0 GB in memory, 1.3 GB locked for copies; "
        "4.4 GB of 60.0 GB on the GPU (org/m)",
    ]
    assert use_json(loading) == {"ram": None, "vram": None, "pinned_bytes": None}
    vram = {"bytes": 44 * 10**8, "budget_bytes": 6 * 10**10, "segments": 3}
    assert use_json(on_gpu)["vram"] == vram


def remember(namespace: str, ids: TokenIds, *ends: int, name: str = "builtin") -> None:
    """Write the segments of a journal as an engine would."""
    cache_dir = load_settings().paths.cache_dir
    segments = PrefixCache(cache_dir, namespace, ram_budget=1 << 20, disk_budget=1 << 20)
    segments.open({"soft.name": name})
    segments.commit(ids, ends, lambda start, stop: ByteBlock(ids, start, stop))
    segments.close()


@pytest.fixture
def chats(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two sessions, `a` and its fork `b`, whose first turn is the same segment."""
    monkeypatch.setattr(compose, "open_backend", lambda settings, **options: FakeBackend())
    monkeypatch.setattr(sys, "stdin", None)
    for words in (
        ["ask", "one", "--session", "a"],
        ["fork", "a", "--name", "b"],
        ["ask", "two", "--session", "a"],
        ["ask", "other", "--session", "b"],
    ):
        assert cli.main(words) == 0
    with compose.opened_service(load_settings(), has_engine=False) as service:
        journals = [
            service.session_journal(service.find_session(name).session_id) for name in ("a", "b")
        ]
    first, second = [journal for journal in journals if journal is not None]
    shared = next(i for i, (x, y) in enumerate(zip(first.ids, second.ids, strict=False)) if x != y)
    for journal in (first, second):
        remember(journal.namespace_id, journal.ids, shared, len(journal.ids))


@pytest.fixture(autouse=True)
def _quiet(chats: None, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()


def rows(cache: Cache) -> list[dict[str, Any]]:
    return sorted(cache("list")["segments"], key=lambda row: int(row["start"]))


def test_a_session_is_pinned_with_all_it_builds_on(cache: Cache) -> None:
    done = cache("pin", "a")
    assert (done["session"], done["segments"], done["newly_pinned"]) == ("a", 2, 2)
    assert [row["pinned"] for row in rows(cache)].count(True) == 2
    assert cache("pin", "a")["newly_pinned"] == 0
    assert cache("pin", "b")["newly_pinned"] == 1
    assert cache("unpin", "a") == {"session": "a", "unpinned": 1, "still_pinned": 1}
    assert cache("unpin", "b") == {"session": "b", "unpinned": 2, "still_pinned": 0}
    assert not any(row["pinned"] for row in rows(cache))


def test_a_segment_is_pinned_by_the_beginning_of_its_id(cache: Cache) -> None:
    first = rows(cache)[0]["segment_id"]
    assert cache("pin", first[:12])["segment_id"] == first
    assert [row["pinned"] for row in rows(cache)] == [True, False, False]
    assert cache("unpin", first)["unpinned"] == 1


def test_spill_tells_what_of_a_session_is_on_disk(
    cache: Cache, capsys: pytest.CaptureFixture[str]
) -> None:
    done = cache("spill", "a")
    assert done["tokens"] == done["disk_tokens"] > 0
    last = max(rows(cache), key=lambda row: int(row["stop"]))
    assert cache("spill", last["segment_id"])["tokens"] == 0
    cache("drop", "a")
    assert cli.main(["cache", "spill", "a", "--json"]) == 4
    told = json.loads(capsys.readouterr().out)
    assert 0 < told["disk_tokens"] < told["tokens"] == done["tokens"]


def test_unknown_names_are_not_found(cache: Cache) -> None:
    for word in ("pin", "unpin", "spill", "drop"):
        done = cache(word, "nobody")
        assert (done["code"], "no session and no segment" in done["error"]) == (3, True)


def test_a_drop_leaves_what_other_sessions_use(cache: Cache) -> None:
    done = cache("drop", "a")
    assert (done["dropped"], done["shared"]) == (1, 1)
    assert len(rows(cache)) == 2
    assert cache("drop", "a")["dropped"] == 0


def test_a_dropped_segment_takes_along_what_builds_on_it(cache: Cache) -> None:
    first = rows(cache)[0]["segment_id"]
    cache("pin", "a")
    refused = cache("drop", first)
    assert (refused["code"], "--force" in refused["error"]) == (2, True)
    assert len(rows(cache)) == 3
    assert cache("drop", first, "--force")["dropped"] == 3
    assert rows(cache) == []
    assert cache("pin", "a")["code"] == 3


def test_show_reads_the_header_and_the_checksums(cache: Cache) -> None:
    row = rows(cache)[1]
    shown = cache("show", row["segment_id"][:10])
    assert (shown["checksums"], shown["tensors"], shown["dtypes"]) == ("sound", 2, "U8")
    assert (shown["parent_id"], shown["creator"]) == (rows(cache)[0]["segment_id"], "chatcache")
    path = Path(shown["path"])
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    assert "checksum" in cache("show", row["segment_id"])["checksums"]


def test_gc_frees_what_belonged_to_a_model_that_is_gone(cache: Cache, tmp_path: Path) -> None:
    model = tmp_path / "model"
    model.mkdir()
    remember("dead", TokenIds((1, 2, 3)), 3, name=str(model))
    remember("hub", TokenIds((1, 2, 3)), 3, name="owner/model")
    assert cache("gc") == {"removed": 0, "bytes": 0, "namespaces": []}
    model.rmdir()
    pinned = cache("pin", next(r["segment_id"] for r in rows(cache) if r["namespace"] == "dead"))
    assert cache("gc")["namespaces"] == []
    cache("unpin", pinned["segment_id"])
    done = cache("gc")
    assert [one["namespace"] for one in done["namespaces"]] == ["dead"]
    assert (done["removed"], done["bytes"]) == (1, done["namespaces"][0]["bytes"])
    names = {one["namespace"] for one in cache("stats")["namespaces"]}
    assert ("dead" in names, "hub" in names) == (False, True)


def test_the_tree_tells_what_each_branch_owns_and_deleting_it_frees_exactly_that(
    cache: Cache, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(*words: str) -> dict[str, Any]:
        assert cli.main([*words, "--json"]) == 0
        found: dict[str, Any] = json.loads(capsys.readouterr().out)
        return found

    (root,) = run("sessions", "tree", "a")["tree"]
    total = sum(row["bytes"] for row in rows(cache))
    assert root["kv"]["bytes_owned"] == total
    assert root["kv"]["bytes_shared"] == 0
    branches = {child["sessions"][0]["session"]: child["kv"] for child in root["children"]}
    first = rows(cache)[0]["bytes"]
    assert {kv["bytes_shared"] for kv in branches.values()} == {first}
    assert sum(kv["bytes_owned"] for kv in branches.values()) == total - first
    assert run("sessions", "show", "b")["kv"] == branches["b"]
    run("sessions", "delete", "b")
    assert sum(row["bytes"] for row in rows(cache)) == total - branches["b"]["bytes_owned"]
    (left,) = run("sessions", "tree", "a")["tree"]
    assert left["kv"] == {**branches["a"], "bytes_owned": first + branches["a"]["bytes_owned"]} | {
        "bytes_shared": 0
    }
    run("sessions", "delete", "a")
    assert rows(cache) == []
