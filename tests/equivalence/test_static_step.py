"""Steps in a form that a graph can hold, on the CPU, captured by a stand-in.

A step has the same bits whether it is computed directly or repeated, and says what the ordinary one
says, within the rounding of another attention.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from chatcache.backends.base import SamplingParams
from chatcache.backends.local.model import capturing
from chatcache.backends.local.model.capturing import CAPTURED_FAMILIES, why_eager
from chatcache.backends.local.run import static_step
from chatcache.backends.local.run.forward import Forward, outcome_of
from chatcache.backends.local.run.sampling import Sampler
from chatcache.cache.tensors import buckets
from chatcache.cache.tensors.buckets import BucketLayer, bucket_for
from chatcache.cache.tensors.live_kv import LiveKV
from chatcache.errors import NotFiniteError
from tests.equivalence.engine import (
    FIRST,
    SECOND,
    THIRD,
    Factory,
    IdsEngine,
    assert_same_bits,
    three_turns,
)
from tests.equivalence.families import CAPTURED, family_model
from tests.recorded_calls import RecordedCalls

CPU = torch.device("cpu")
PROMPT = [3, 14, 15, 92, 65, 35, 89, 79, 32, 38, 46, 26, 43, 38, 32, 79, 50, 28, 84]
TOLERANCE = 5e-3  # of the logits' deviation


@pytest.fixture(autouse=True)
def short_buckets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(buckets, "MIN_BUCKET", 32)


@pytest.fixture(scope="module")
def model() -> Any:
    return family_model(CAPTURED + "qwen3")


def live_kv(model: Any) -> LiveKV:
    layers = model.config.num_hidden_layers
    return LiveKV(layers, torch.float32, CPU, new_layer=BucketLayer)


@pytest.fixture
def forward(model: Any) -> Forward:
    return Forward(model, CPU, graphs=RecordedCalls())


@pytest.fixture
def live(model: Any, forward: Forward) -> LiveKV:
    """One that was run on before, as in every engine."""
    kv = live_kv(model)
    forward(kv, [0], 0)
    kv.truncate(0)
    return kv


def spoken(forward: Forward, live: LiveKV, num_tokens: int) -> torch.Tensor:
    """The logits `[num_tokens, vocab]` of the prompt's last token and of greedy ones behind it."""
    logits = [forward(live, PROMPT, 0)]
    while len(logits) < num_tokens:
        position = len(PROMPT) + len(logits) - 1
        logits.append(forward(live, [int(logits[-1].argmax())], position))
    return torch.cat(logits)


@pytest.mark.parametrize("num_tokens", [1, 31, 32, 33, 1000, 30_000, 33_000])
def test_a_bucket_holds_its_tokens_and_little_more(num_tokens: int) -> None:
    bucket = bucket_for(num_tokens)
    assert bucket >= num_tokens
    assert bucket <= max(32, 1.25 * num_tokens + 32)
    assert bucket_for(bucket) == bucket


@pytest.mark.parametrize("family", sorted(CAPTURED_FAMILIES))
def test_each_family_says_what_it_says_without_graphs(family: str, tmp_path: Path) -> None:
    plain = IdsEngine(family_model(family, sliding_window=None, layer_types=None), tmp_path / "a")
    expected = three_turns(plain, 12)
    plain.close()
    engine = IdsEngine(family_model(CAPTURED + family), tmp_path / "b")
    found = three_turns(engine, 12)
    assert engine.graphs is not None
    assert engine.graphs.num_replayed > 10
    for said, other in zip(found, expected, strict=True):
        assert said.answer == other.answer
        deviation = (said.logits - other.logits).abs().max() / other.logits.std()
        assert deviation <= TOLERANCE
    engine.close()


def test_direct_and_repeated_steps_have_the_same_bits(
    forward: Forward, live: LiveKV, model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    repeated = spoken(forward, live, 100)  # over the ends of several buckets
    assert forward.static is not None
    assert forward.static.num_captured > 0
    monkeypatch.setattr(static_step, "_DIRECT_TOKENS", 1 << 30)
    calls = RecordedCalls()
    direct = Forward(model, CPU, graphs=calls)
    other = live_kv(model)
    direct(other, [0], 0)
    other.truncate(0)
    assert torch.equal(spoken(direct, other, 100), repeated)
    assert calls.num_replayed == 0


def test_a_chat_that_was_resumed_was_never_stopped(engine: Factory) -> None:
    """The one process has graphs where the other computes directly."""
    one, two, three = three_turns(engine(), 40)
    again = engine()
    assert_same_bits(again.turn(two.ids + THIRD, 40), three)
    forked = engine()
    assert_same_bits(forked.turn(one.ids + SECOND, 40), two)
    assert_same_bits(forked.turn(two.ids + THIRD, 40), three)
    assert forked.turn(FIRST, 40, is_cold=True).ids == one.ids


def test_buffers_that_have_moved_are_captured_anew(forward: Forward, live: LiveKV) -> None:
    first = spoken(forward, live, 30)
    live.truncate(0)
    live.reserve(400)
    assert torch.equal(spoken(forward, live, 30), first)
    live.truncate(0)
    assert torch.equal(spoken(forward, live, 30), first)


def test_getting_ready_changes_nothing_that_counts(forward: Forward, live: LiveKV) -> None:
    forward(live, PROMPT, 0)
    before = [layer.view(kind).clone() for layer in live.growing for kind in ("key", "value")]
    forward.look_ahead(live)
    after = [layer.view(kind) for layer in live.growing for kind in ("key", "value")]
    assert live.num_tokens == len(PROMPT)
    assert all(torch.equal(x, y) for x, y in zip(before, after, strict=True))
    assert forward.static is not None
    num_captured = forward.static.num_captured
    forward.look_ahead(live)
    assert forward.static.num_captured == num_captured


def test_a_short_message_is_one_repeated_step(forward: Forward, live: LiveKV, model: Any) -> None:
    forward(live, PROMPT, 0)
    forward.look_ahead(live)
    assert forward.static is not None
    graphs: Any = forward.static._graphs
    before = graphs.num_replayed
    found = forward(live, SECOND, len(PROMPT))
    assert graphs.num_replayed == before + 1
    other = LiveKV(model.config.num_hidden_layers, torch.float32, CPU)
    expected = Forward(model, CPU)(other, [*PROMPT, *SECOND], 0)
    assert (found - expected).abs().max() <= TOLERANCE * expected.std()


def test_what_is_not_finite_leaves_nothing_behind(forward: Forward, live: LiveKV) -> None:
    expected = spoken(forward, live, 20)
    live.truncate(0)
    embedding = forward._model.get_input_embeddings().weight
    kept = embedding[77].clone()
    with torch.no_grad():
        embedding[77] = float("nan")
    with pytest.raises(NotFiniteError):
        forward(live, [77] * 9, 0)
    with torch.no_grad():
        embedding[77] = kept
    live.truncate(0)
    assert torch.equal(spoken(forward, live, 20), expected)


class Refusing(RecordedCalls):
    """A device that captures nothing."""

    def capture(self, call: Callable[[], None]) -> Callable[[], None]:
        raise RuntimeError("operation not permitted when stream is capturing\nand more")


class Drifting(RecordedCalls):
    """A device whose graphs compute something else: what is repeated goes through `change`."""

    def __init__(self, static: list[Any], change: float):
        super().__init__()
        self._static, self._change = static, change

    def capture(self, call: Callable[[], None]) -> Callable[[], None]:
        replay = super().capture(call)

        def other() -> None:
            replay()
            self._static[0]._logits.add_(self._change * torch.arange(97))

        return other


def _logged(caplog: pytest.LogCaptureFixture, level: int) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno == level]


def test_where_nothing_can_be_captured_steps_stay_direct(
    model: Any, forward: Forward, live: LiveKV, caplog: pytest.LogCaptureFixture
) -> None:
    expected = spoken(forward, live, 20)
    eager = Forward(model, CPU, graphs=Refusing())
    other = live_kv(model)
    eager.settle(other)
    assert torch.equal(spoken(eager, other, 20), expected)
    assert any("not permitted" in text for text in _logged(caplog, logging.WARNING))


@pytest.mark.parametrize(("change", "is_kept"), [(1e-6, True), (1.0, False)])
def test_a_graph_is_compared_before_it_is_trusted(
    model: Any, change: float, is_kept: bool, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    found: list[Any] = []
    drifting = Forward(model, CPU, graphs=Drifting(found, change))
    found.append(drifting.static)
    live = live_kv(model)
    drifting.settle(live)
    assert drifting.static is not None
    assert (drifting.static.num_captured > 0) == is_kept
    spoken(drifting, live, 8)
    if is_kept:  # it has bits of its own, so nothing is computed without one
        assert {step.num_direct for step in drifting.static._steps.values()} <= {0, 1}
        assert any("round differently" in text for text in _logged(caplog, logging.INFO))


def test_steps_that_say_something_else_are_not_taken(
    model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong = Forward(model, CPU, graphs=RecordedCalls())
    monkeypatch.setattr(static_step, "_CLOSE", {torch.float32: -1.0})
    live = live_kv(model)
    wrong.settle(live)
    assert wrong.static is None
    assert live.num_tokens == 0
    assert wrong(live, PROMPT, 0).shape == (1, 97)


@pytest.mark.parametrize("family", ["qwen3_moe", "gemma2", "gpt_oss"])
def test_other_families_stay_eager(family: str) -> None:
    config = family_model(family).config
    assert why_eager(config) is not None
    assert not capturing.takes_static_step(family_model(family), CPU)


def test_a_window_or_a_rotary_embedding_that_changes_stays_eager(model: Any) -> None:
    assert why_eager(model.config) is None
    assert "window" in (why_eager(family_model("mistral").config) or "")
    dynamic = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10_000.0}
    config = family_model("llama", rope_parameters=dynamic).config
    assert "dynamic" in (why_eager(config) or "")


def test_the_largest_comes_with_its_place() -> None:
    logits = torch.tensor([[0.5, -2.0, 7.25, 1.0]])
    assert outcome_of(logits).tolist() == [7.25, 2.0]
    assert outcome_of(torch.tensor([[0.5, float("nan"), 7.0]]))[0].isnan()
    assert outcome_of(torch.full((1, 4), float("-inf")))[0] == float("-inf")


@pytest.mark.parametrize(("temperature", "is_asked"), [(0.0, True), (1.0, False)])
def test_a_greedy_choice_is_not_made_twice(temperature: float, is_asked: bool) -> None:
    asked: list[torch.Tensor] = []

    def likeliest(logits: torch.Tensor) -> int:
        asked.append(logits)
        return 3

    sampler = Sampler(SamplingParams(temperature=temperature, seed=1), [1], CPU, likeliest)
    chosen = sampler.choose(torch.tensor([[9.0, 0.0, 0.0, 0.0]]))
    assert bool(asked) == is_asked
    assert chosen == 3 if is_asked else chosen < 4


@pytest.fixture
def engine(model: Any, tmp_path: Path) -> Iterator[Factory]:
    """Engines with buckets that are as short as those of this module."""
    made: list[IdsEngine] = []

    def make() -> IdsEngine:
        for earlier in made:
            earlier.prefixes.drain()
        made.append(IdsEngine(model, tmp_path / "cache"))
        return made[-1]

    yield make
    for opened in made:
        opened.close()
