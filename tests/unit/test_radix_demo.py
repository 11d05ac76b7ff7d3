"""The demonstration of the radix tree does what the scenario says, with a real engine.

What is expected is derived from the tokens of the texts: how much two prompts have in common.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from chatcache import compose
from chatcache.backends.questions import TreeEvent
from chatcache.config import load_settings
from chatcache.frontend import radix_report
from chatcache.frontend.radix_demo import RAM_BUDGET, DemoStep, RadixDemo, settings_options
from chatcache.token_ids import TokenIds

pytestmark = pytest.mark.slow


@dataclass
class Played:
    has_disk: bool
    steps: dict[int, DemoStep]
    prompts: dict[tuple[str, int], TokenIds]
    journals: dict[tuple[str, int], TokenIds]

    def reused(self, number: int) -> list[int]:
        return [turn.reused_tokens for turn in self.steps[number].turns]

    def events(self, number: int, change: str, tier: str | None = None) -> list[TreeEvent]:
        found = self.steps[number].events
        return [e for e in found if e.change == change and tier in (None, e.tier)]


@pytest.fixture(scope="module", params=[False, True], ids=["ram-only", "disk"])
def played(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Played]:
    directory = str(tmp_path_factory.mktemp("demo"))
    options = settings_options(directory, has_disk=request.param)
    with compose.opened_service(load_settings(options, {}), "test") as service:
        demo = RadixDemo(service, has_disk=request.param)
        steps = {step.number: step for step in demo.steps()}
        turns = [("A", 1), ("A", 2), ("A", 3), ("B", 1), ("B", 2)]
        turns += [(f"few-shot {number}", 1) for number in (1, 2, 3)]
        found = {key: service.reading(demo.session_id(key[0]), key[1]) for key in turns}
        prompts = {key: read.prompt_ids for key, read in found.items()}
        journals = {key: read.prompt_ids + read.answer_ids for key, read in found.items()}
        yield Played(request.param, steps, prompts, journals)


def test_the_counts_are_those_of_the_scenario(played: Played) -> None:
    prompts, journals = played.prompts, played.journals
    assert list(played.steps) == list(range(1, 10))
    assert played.steps[1].shape.edges == ()
    assert played.reused(2) == [0]
    assert played.reused(3) == [len(journals["A", 1])]
    first = prompts["A", 1]
    system = 1 + first[1:].to_list().index(first[0])  # where the second message begins
    assert played.reused(4) == [system]
    assert played.reused(5) == [len(journals["B", 1])]
    assert played.reused(6) == [0]
    examples = prompts["few-shot 1", 1].common_prefix(prompts["few-shot 2", 1])
    assert played.reused(7) == [examples, examples]
    held = journals["A", 2 if played.has_disk else 1]
    assert played.reused(8) == [len(held)]
    assert played.reused(9) == [len(prompts["few-shot 1", 1]) - 1] * 4
    from_disk = len(journals["A", 2]) - len(journals["A", 1]) if played.has_disk else 0
    assert [turn.disk_tokens for turn in played.steps[8].turns] == [from_disk]
    for step in played.steps.values():
        for turn in step.turns:
            assert turn.prompt_tokens == turn.reused_tokens + turn.computed_tokens


def test_the_tree_counts_what_the_usage_of_the_turns_counts(played: Played) -> None:
    for number, step in played.steps.items():
        hits = [event.stop for event in played.events(number, "hit")]
        assert hits == [turn.reused_tokens for turn in step.turns if turn.reused_tokens]
        read = played.events(number, "restored", "disk")
        assert sum(e.stop - e.start for e in read) == sum(turn.disk_tokens for turn in step.turns)
        new = [e.stop for e in played.events(number, "inserted", "ram")]
        for turn in step.turns:
            assert turn.prompt_tokens + turn.answer_tokens in new
        live = sum(len(edge.ids) for edge in step.shape.edges if edge.is_live)
        if step.turns:
            assert live == step.turns[-1].prompt_tokens + step.turns[-1].answer_tokens


def test_edges_are_split_where_the_paths_part(played: Played) -> None:
    prompts = played.prompts
    parted = prompts["A", 1].common_prefix(prompts["B", 1])
    assert [event.cut for event in played.events(4, "split")] == [parted]
    examples = prompts["few-shot 1", 1].common_prefix(prompts["few-shot 2", 1])
    assert [event.cut for event in played.events(7, "split")] == [examples]
    root = prompts["A", 1].common_prefix(prompts["few-shot 1", 1])
    assert [edge.start for edge in played.steps[6].shape.edges].count(root) == 2


def test_what_goes_is_what_was_used_least_recently(played: Played) -> None:
    journals = played.journals
    turn = (len(journals["A", 1]), len(journals["A", 2]))
    evicted = sorted((e.start, e.stop) for e in played.events(5, "evicted", "ram"))
    assert (evicted[0][0], evicted[-1][1]) == turn
    assert sum(stop - start for start, stop in evicted) == turn[1] - turn[0]
    system = played.reused(4)[0]
    of_b = played.events(8, "evicted", "ram")
    assert of_b
    for event in of_b:
        assert event.start >= system
        assert journals["B", 2][: event.stop][-len(event.tail) :] == event.tail
    if not played.has_disk:  # with one, step 8 has left room enough: chat A was not computed again
        assert played.events(9, "evicted", "ram")
    for number, step in played.steps.items():
        gone = [event for event in step.events if event.is_gone]
        assert bool(gone) == (number in (5, 8, 9) and not played.has_disk)
        assert step.ram_bytes <= RAM_BUDGET
    events = [event for step in played.steps.values() for event in step.events]
    spilled = {event.segments: event.number for event in events if event.change == "spilled"}
    assert bool(spilled) == played.has_disk
    for event in events:
        if event.change == "evicted" and played.has_disk:
            assert spilled[event.segments] < event.number


def test_four_answers_are_four_leaves(played: Played) -> None:
    step = played.steps[9]
    assert len({turn.answer for turn in step.turns}) == 4
    paths: list[TokenIds] = []
    for edge in step.shape.edges:
        above = paths[edge.parent] if edge.parent >= 0 else TokenIds()
        paths.append(above + edge.ids)
    inner = {edge.parent for edge in step.shape.edges}
    leaves = [path for number, path in enumerate(paths) if number not in inner]
    request = played.prompts["few-shot 1", 1]
    of_request = [leaf for leaf in leaves if leaf.startswith(request)]
    first_answer = 1 if played.has_disk else 0  # that of step 6, which memory alone has given up
    assert len(of_request) == 4 + first_answer


def test_each_step_fits_a_terminal_and_is_told_in_sentences(played: Played) -> None:
    for step in played.steps.values():
        for width in (60, 80):
            assert max(map(len, radix_report.drawn(step, width))) <= width
        told = " ".join(radix_report.sentences(step))
        assert not set("├└│·↵") & set(told)
        for turn in step.turns:
            assert f"R {turn.ram_tokens:,} from RAM" in told
        usage = [turn["usage"] for turn in radix_report.data(step)["turns"]]
        assert [u["cached_tokens"] for u in usage] == played.reused(step.number)


def command(tmp_path: Path, *options: str) -> subprocess.Popen[str]:
    places = {"TMPDIR": str(tmp_path), "HOME": str(tmp_path)}
    return subprocess.Popen(
        [sys.executable, "-m", "chatcache", "demo", "radix", *options],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **places},
    )


def test_the_command_prints_one_object_and_leaves_nothing_behind(tmp_path: Path) -> None:
    process = command(tmp_path, "--json")
    out, err = process.communicate(timeout=300)
    assert (process.returncode, err) == (0, "")
    found = json.loads(out)
    assert [step["step"] for step in found["steps"]] == list(range(1, 10))
    assert not list(tmp_path.glob("chatcache-demo-*"))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_whoever_has_seen_enough_leaves_nothing_behind(tmp_path: Path, number: int) -> None:
    process = command(tmp_path)
    try:
        assert process.stdout is not None
        assert process.stdout.readline().startswith("Nine steps")
        process.send_signal(number)
        process.communicate(timeout=120)
    finally:
        process.kill()
    assert process.returncode == 128 + number
    give_up_at = time.monotonic() + 60
    while list(tmp_path.glob("chatcache-demo-*")) and time.monotonic() < give_up_at:
        time.sleep(0.05)
    assert not list(tmp_path.glob("chatcache-demo-*"))


def test_steps_need_a_terminal(tmp_path: Path) -> None:
    process = command(tmp_path, "--step")
    _, err = process.communicate(timeout=60)
    assert process.returncode == 2
    assert "Leave --step out." in err
