"""A whole engine on a device with memory of its own, by way of the stand-in."""

from __future__ import annotations

from pathlib import Path

import pytest

from chatcache.assets import pocket_dir
from chatcache.backends.base import CacheSnapshot
from chatcache.backends.local.run import assemble, forward
from tests import lazy_link
from tests.equivalence.families import OVERRIDES
from tests.lazy_link import LazyLink
from tests.models import build_model_dir
from tests.recorded_calls import RecordedCalls
from tests.talks import Engine, Talk

pytestmark = pytest.mark.slow


def last_snapshot(engine: Engine) -> CacheSnapshot:
    return [event for event in engine.events if isinstance(event, CacheSnapshot)][-1]


def test_going_back_to_a_chat_takes_it_from_the_device(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = Engine(pocket_dir(), tmp_path / "plain", vram_budget="100%")
    monkeypatch.setattr(assemble, "link_to", lambda device: LazyLink())
    ours = Engine(pocket_dir(), tmp_path / "ours", vram_budget="100%")
    told = []
    for engine in (plain, ours):
        first, second = Talk(), Talk()
        first.say(engine, "Tell me about rain.")
        second.say(engine, "Count to three.")
        told.append(first.say(engine, "And snow?"))
    on_cpu, on_device = told
    assert on_device.text == on_cpu.text
    assert on_device.usage == on_cpu.usage  # what is on the device counts as held in RAM
    assert {run.tier for run in on_device.cache.runs or ()} == {"ram", "vram"}
    assert (last_snapshot(plain).vram, last_snapshot(plain).pinned_bytes) == (None, None)
    assert (last_snapshot(ours).pinned_bytes or 0) > 0
    held = last_snapshot(ours).vram
    assert held is not None
    assert (held.num_segments > 0, held.budget_bytes) == (True, 1 << 20)
    for engine in (plain, ours):
        engine.close()


def test_the_time_of_a_restore_is_that_of_the_device(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And not of queueing its copies; it is known when the turn ends."""
    monkeypatch.setattr(assemble, "link_to", lambda device: LazyLink())
    monkeypatch.setattr(lazy_link, "BYTES_PER_SECOND", 1.0)
    engine, talk = Engine(pocket_dir(), tmp_path, vram_budget=0), Talk()
    talk.say(engine, "Tell me about rain.")
    Talk().say(engine, "Count to three.")
    back = talk.say(engine, "And snow?")
    assert back.timings.restore_ms > 1000 * 1000
    assert Talk().say(engine, "What is new?").timings.restore_ms < 1000 * 1000
    engine.close()


def test_memory_that_cannot_be_locked_is_said_once_and_does_as_well(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(assemble, "link_to", lambda device: LazyLink(num_pinnable_bytes=0))
    engine, talk = Engine(pocket_dir(), tmp_path, vram_budget=0), Talk()
    talk.say(engine, "Tell me about rain.")
    Talk().say(engine, "Count to three.")
    again = talk.say(engine, "And snow?")
    assert (again.usage.cached_ram_tokens or 0) > 0
    assert last_snapshot(engine).vram is None
    assert len(engine.warnings) == 1
    assert "memory cannot be locked" in engine.warnings[0]
    engine.close()


def test_a_chat_between_whose_turns_graphs_are_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Windows, sinks and experts; the second load takes what the first has found out."""
    model = build_model_dir(tmp_path / "model", "gpt_oss", **OVERRIDES["gpt_oss"])
    plain, talk = Engine(model, tmp_path / "plain"), Talk()
    expected = [talk.say(plain, text).text for text in ("What is it?", "And why?", "Yes.")]
    plain.close()
    calls, ours = RecordedCalls(), Talk()
    monkeypatch.setattr(assemble, "link_to", lambda device: LazyLink())
    monkeypatch.setattr(forward, "graphs_for", lambda device: calls)
    for texts, num_compared in ((("What is it?", "And why?"), 1), (("Yes.",), 0)):
        before = calls.num_captured
        engine = Engine(model, tmp_path / "ours")
        assert calls.num_captured == before + num_compared
        for text in texts:
            assert ours.say(engine, text).text == expected.pop(0)
            while engine.runner.look_ahead():
                pass
            made = calls.num_captured
            assert not engine.runner.look_ahead()
            assert calls.num_captured == made > before
        engine.close()
    assert calls.num_replayed > 0
