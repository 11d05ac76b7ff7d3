"""How long an engine that nobody uses stays, by a clock and a memory that the test sets."""

from __future__ import annotations

from pathlib import Path

import pytest

from chatcache import machine
from chatcache.backends.local.engine import lifetime
from chatcache.backends.local.engine.lifetime import (
    FILES_SECONDS,
    MEMORY_SECONDS,
    NO_MEMORY,
    NO_PLACE,
    NOT_USED,
    OTHER_FILES,
    Lifetime,
)


class World:
    """What an engine sees of the machine."""

    def __init__(self) -> None:
        self.now = 100.0
        self.is_memory_short = False
        self.is_reachable = True
        self.files: tuple[object, ...] = ("as they were",)

    def lifetime(self, keep_alive: float | None) -> Lifetime:
        found = Lifetime(
            lambda: self.is_reachable,
            is_memory_short=lambda: self.is_memory_short,
            stamp=lambda: self.files,
            clock=lambda: self.now,
        )
        found.keep_alive_seconds = keep_alive
        return found


@pytest.fixture
def world() -> World:
    return World()


def test_it_stays_for_its_time(world: World) -> None:
    engine = world.lifetime(300.0)
    engine.unused()
    assert engine.seconds_left == 300.0
    world.now += 299.0
    assert engine.why_end() is None
    assert engine.tick_seconds() == 1.0
    world.now += 1.0
    assert engine.why_end() == NOT_USED


def test_whoever_comes_gives_it_its_whole_time_again(world: World) -> None:
    engine = world.lifetime(300.0)
    engine.unused()
    world.now += 299.0
    engine.used()
    world.now += 1000.0
    assert (engine.why_end(), engine.seconds_left, engine.tick_seconds()) == (None, None, None)
    engine.unused()
    assert engine.seconds_left == 300.0


def test_for_ever_is_not_over(world: World) -> None:
    engine = world.lifetime(None)
    engine.unused()
    world.now += 1e9
    assert engine.why_end() is None
    assert engine.seconds_left is None
    assert engine.tick_seconds() == MEMORY_SECONDS


def test_one_in_use_is_not_ended_for_memory(world: World) -> None:
    engine = world.lifetime(None)
    world.is_memory_short = True
    assert engine.why_end() is None
    engine.unused()
    assert engine.why_end() == NO_MEMORY


@pytest.mark.parametrize("what", [NO_PLACE, OTHER_FILES])
def test_what_happens_to_its_files_is_seen_now_and_then(world: World, what: str) -> None:
    engine = world.lifetime(None)
    engine.unused()
    if what == NO_PLACE:
        world.is_reachable = False
    else:
        world.files = ("others",)
    assert engine.why_end() is None  # it is not looked at each time
    world.now += FILES_SECONDS
    assert engine.why_end() == what


def test_a_changed_program_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "chatcache" / "a" / "b" / "c"
    package.mkdir(parents=True)
    (package / "lifetime.py").write_text("1")
    monkeypatch.setattr(lifetime, "__file__", str(package / "lifetime.py"))
    before = lifetime.program_stamp()
    assert lifetime.program_stamp() == before
    (package / "lifetime.py").write_text("22")
    assert lifetime.program_stamp() != before


MEMINFO = "MemTotal:       16000000 kB\nMemFree: 1 kB\nMemAvailable:   {} kB\n"


@pytest.mark.parametrize(("available", "is_short"), [(8_000_000, False), (700_000, True)])
def test_little_memory_of_the_machine_is_short(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, available: int, is_short: bool
) -> None:
    (tmp_path / "meminfo").write_text(MEMINFO.format(available))
    told = machine.memory_left(tmp_path, tmp_path / "no groups")
    monkeypatch.setattr(lifetime, "memory_left", lambda: told)
    assert lifetime.memory_is_short() is is_short


def test_the_limit_of_a_group_counts_and_its_files_can_be_had(tmp_path: Path) -> None:
    proc, groups = tmp_path / "proc", tmp_path / "groups"
    (proc / "self").mkdir(parents=True)
    (proc / "meminfo").write_text(MEMINFO.format(8_000_000))
    (proc / "self" / "cgroup").write_text("0::/box\n")
    box = groups / "box"
    box.mkdir(parents=True)
    (box / "memory.max").write_text(str(1 << 30))
    (box / "memory.current").write_text(str(1000 << 20))
    (box / "memory.stat").write_text(f"anon 1\ninactive_file {300 << 20}\n")
    assert machine.memory_left(proc, groups)[1] == (1 << 30, (1 << 30) - (700 << 20))


def test_a_system_that_tells_nothing_has_no_short_memory(tmp_path: Path) -> None:
    assert machine.memory_left(tmp_path, tmp_path) == []
