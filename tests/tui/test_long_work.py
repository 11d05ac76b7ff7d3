"""Work that takes a while: what is seen of it, how Esc ends it, and what is left then."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from chatcache.backends.base import Prepared, RestoreBegan
from chatcache.cache.inspect import CacheInspector
from chatcache.frontend import exports
from chatcache.frontend.desk import SegmentDesk
from chatcache.frontend.progress import CalledOffError, Report, unheard
from chatcache.tui.screens.dialogs import ConfirmScreen
from tests.tui.conftest import Bench


@pytest.fixture
def cache_dir(tmp_path: Path) -> Path:
    """A cache with a damaged file set aside, and the namespace of a model that is gone."""
    directory = tmp_path / "cache"
    (directory / "quarantine").mkdir(parents=True)
    (directory / "quarantine" / "n-0-4-abc.safetensors").write_bytes(b"x" * 1000)
    namespace = directory / "segments" / "gone"
    namespace.mkdir(parents=True)
    (namespace / "namespace.json").write_text(json.dumps({"soft.name": "/no/such/model"}))
    (namespace / f"0-4-{'0' * 32}.safetensors").write_bytes(b"x" * 500)
    return directory


def desk_of(cache_dir: Path) -> SegmentDesk:
    return SegmentDesk(lambda: CacheInspector(cache_dir, 1, 1))


async def test_what_nothing_can_use_is_removed_after_a_question(
    bench: Bench, cache_dir: Path
) -> None:
    async with bench.run(desk=desk_of(cache_dir)) as chat:
        await chat.type("/gc")
        await chat.press("enter")
        await chat.until(lambda: isinstance(chat.app.screen, ConfirmScreen))
        assert "Remove 2 files" in chat.text
        assert "/no/such/model is gone" in chat.text
        assert "1 file that had been set aside as damaged" in chat.text
        await chat.press("n")
        await chat.idle()
        assert len(list(cache_dir.rglob("*.safetensors"))) == 2
        await chat.type("/gc")
        await chat.press("enter")
        await chat.until(lambda: isinstance(chat.app.screen, ConfirmScreen))
        await chat.press("y")
        await chat.idle()
        assert list(cache_dir.rglob("*.safetensors")) == []
        assert "Removed 2 files, 1.5 kB." in chat.toasts
        await chat.say("/gc")
        assert "Nothing to remove" in chat.toasts[-1]


async def test_progress_is_shown_and_escape_calls_it_off(bench: Bench) -> None:
    may_go_on = threading.Event()

    def examine(report: Report) -> Iterator[str]:
        yield "ok  python"
        report("reading segments", 300_000, 1_200_000, is_bytes=True)
        may_go_on.wait(10)
        report("reading segments", 600_000, 1_200_000, is_bytes=True)
        yield "ok  segments"

    async with bench.run(examine=examine) as chat:
        await chat.type("/doctor")
        await chat.press("enter")
        await chat.until(lambda: "300 kB / 1.2 MB · Esc stops" in chat.status)
        await chat.type("/gc")
        await chat.press("enter")
        await chat.until(lambda: chat.notices)
        assert "not on this machine" in chat.notices[0]
        await chat.press("escape")
        await chat.until(lambda: "stopping" in chat.status)
        may_go_on.set()
        await chat.idle()
        assert "Called off." in chat.toasts
        assert chat.notices[-1] == "· ok  python"
        assert chat.status == "ready"


async def test_one_long_work_at_a_time(bench: Bench) -> None:
    may_end = threading.Event()

    def examine(report: Report) -> Iterator[str]:
        yield "ok  python"
        may_end.wait(10)

    async with bench.run(examine=examine) as chat:
        await chat.type("/doctor")
        await chat.press("enter")
        await chat.until(lambda: "checking" in chat.status)
        await chat.type("/doctor")
        await chat.press("enter")
        await chat.until(lambda: chat.notices)
        assert "still being done" in chat.notices[0]
        may_end.set()
        await chat.idle()


class StopAt:
    """A report that calls the work off at a stage, once so much is done."""

    def __init__(self, stage: str, done: int) -> None:
        self._at = (stage, done)

    def __call__(
        self, stage: str, done: int = 0, total: int = 0, *, is_bytes: bool = False
    ) -> None:
        if (stage, done) == self._at:
            raise CalledOffError


async def test_what_is_called_off_leaves_nothing_behind(bench: Bench, tmp_path: Path) -> None:
    path = tmp_path / "chat.json"
    async with bench.run() as chat:
        await chat.say("one", "two")
        service, session = chat.service, chat.screen.parts.chat.require_session()
        with pytest.raises(CalledOffError):
            exports.export_chat(service, session, str(path), StopAt("writing", 2))
        assert not path.exists()
        written, num_bytes = exports.export_chat(service, session, str(path), unheard)
        assert written.stat().st_size == num_bytes
        document = service.export_session(session.session_id)
        assert json.loads(path.read_text())["messages"] == document["messages"]
        for step in (2, 6):
            with pytest.raises(CalledOffError):
                exports.import_chat(service, str(path), StopAt("importing", step))
        assert len(service.list_sessions()) == 1


async def test_a_long_restore_is_seen_until_the_turn_begins(bench: Bench) -> None:
    async with bench.run() as chat:
        await chat.say("one")
        plan = bench.backend.gate("plan")
        await chat.type("two")
        await chat.press("enter")
        await chat.until(plan.arrived.is_set)
        bench.backend.emit(RestoreBegan(4_096, 470_000_000))
        words = "restoring 4,096 tokens from disk, 470 MB"
        await chat.until(lambda: chat.status == f"{words} · Esc stops")
        assert words in chat.footers[-1]
        assert "RESTORING" in chat.text
        plan.open()
        await chat.idle()
        assert "RESTORING" not in chat.text
        bench.backend.emit(RestoreBegan(4_096, 470_000_000))
        await chat.until(lambda: chat.status == words)
        bench.backend.emit(Prepared("1", "restore", tokens_restored=4_096))
        await chat.until(lambda: chat.status == "ready")
