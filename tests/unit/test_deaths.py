"""An engine that died is started again, but never into the memory that killed it."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from chatcache.backends.local.engine.deaths import MAX_RESTARTS, RESTART_WINDOW_SECONDS, Deaths

LOG = Path("engine.log")


def test_a_load_that_memory_killed_is_not_repeated() -> None:
    death = Deaths("/models/big", LOG).note(-signal.SIGKILL, 0.0, was_loading=True)
    assert not death.may_restart
    assert "memory" in death.error.message
    assert "/models/big" in death.error.message
    assert "--dtype bfloat16" in death.error.hint


@pytest.mark.parametrize(
    ("code", "was_loading"), [(-signal.SIGKILL, False), (-signal.SIGSEGV, True), (1, True)]
)
def test_other_deaths_are_outlived_a_few_times(code: int, was_loading: bool) -> None:
    deaths = Deaths("/models/big", LOG)
    found = [deaths.note(code, float(at), was_loading=was_loading) for at in range(5)]
    assert [death.may_restart for death in found] == [True] * MAX_RESTARTS + [False] * 2
    assert "engine.log" in found[0].error.hint
    later = deaths.note(code, 5.0 + RESTART_WINDOW_SECONDS, was_loading=was_loading)
    assert later.may_restart


def test_memory_kills_a_turn_and_then_the_load() -> None:
    deaths = Deaths("/models/big", LOG)
    assert deaths.note(-signal.SIGKILL, 0.0, was_loading=False).may_restart
    assert not deaths.note(-signal.SIGKILL, 1.0, was_loading=True).may_restart


def test_a_load_that_others_started_and_that_ended_without_a_word_is_not_repeated() -> None:
    death = Deaths("/models/big", LOG).note(None, 0.0, was_loading=True)
    assert not death.may_restart
    assert "probably for memory" in death.error.message


def test_the_system_says_that_it_was_the_memory() -> None:
    deaths = Deaths("/models/big", LOG, lambda: 14_200_000_000)
    death = deaths.note(1, 0.0, was_loading=True, was_memory_full=True)
    assert not death.may_restart
    assert "killed while it loaded /models/big, for memory: it needs about 14.2 GB" in (
        death.error.message
    )
    death = deaths.note(-signal.SIGKILL, 1.0, was_loading=False, was_memory_full=True)
    assert death.may_restart
    assert "the memory was full" in death.error.message
