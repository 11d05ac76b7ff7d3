"""Steps in a form that a graph can hold, on the CPU, captured by a stand-in.

A step has the same bits whether it is computed directly or repeated, and says what the ordinary one
says, within the rounding of another attention.
"""

from __future__ import annotations

import gc
import inspect
import json
import logging
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

from chatcache.backends.base import SamplingParams
from chatcache.backends.local.model.capturing import (
    BY_LAYER,
    ONE_WINDOW,
    takes_static_step,
    why_eager,
)
from chatcache.backends.local.model.cut_policy import ANY_TOKEN_FAMILIES
from chatcache.backends.local.run import static_step
from chatcache.backends.local.run.assemble import get_ready_on_device
from chatcache.backends.local.run.chunk_choice import ChunkChoice
from chatcache.backends.local.run.forward import Forward, outcome_of
from chatcache.backends.local.run.live_context import LivePath
from chatcache.backends.local.run.sampling import Sampler
from chatcache.backends.local.run.static_step import StaticStep
from chatcache.cache.tensors import buckets
from chatcache.cache.tensors.buckets import BucketLayer, bucket_for
from chatcache.cache.tensors.live_kv import LiveKV
from chatcache.errors import NotFiniteError
from tests.equivalence import test_rope_length as rope_length
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
from tests.equivalence.stateful import stateful_model
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


def live_kv(model: Any, device: str = "cpu") -> LiveKV:
    layers = model.config.num_hidden_layers
    return LiveKV(layers, model.dtype, torch.device(device), new_layer=BucketLayer)


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


def ready(forward: Forward, live: LiveKV) -> None:
    while forward.look_ahead(live):
        pass


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


@pytest.mark.parametrize("family", sorted(ANY_TOKEN_FAMILIES - {"bloom"}))
def test_each_family_says_what_it_says_without_graphs(family: str) -> None:
    """Over the ends of buckets, and far behind windows and chunks. Prompt and answer are read in
    steps of each kind."""
    model = family_model(CAPTURED + family)
    usual = model.config._attn_implementation
    static = Forward(model, CPU, graphs=RecordedCalls())
    expected_kv, kv = (live_kv(model) for _ in range(2))
    static(kv, [0], 0)
    kv.truncate(0)
    start = 0
    for length in [19, *[1] * 16, 40, 3, *[1] * 6]:
        ids = [(7 * at + 3) % 97 for at in range(start, start + length)]
        with torch.inference_mode():
            expected = static._ordinary(expected_kv, ids, start)
        found = static(kv, ids, start)
        assert (found - expected).abs().max() <= TOLERANCE * expected.std()
        start += length
    assert static.static is not None
    assert static.static.num_captured > 0
    assert model.config._attn_implementation == usual


def test_padding_is_at_no_position_that_is_not_there() -> None:
    """Learned embeddings have no more, and a rotary one may change behind the last that counts."""
    few, many = [5, 7], list(range(40, 61))
    changing = rope_length.new_model("longrope")
    for model in (family_model("gpt2", max_position_embeddings=24), changing):
        assert takes_static_step(model, CPU)
        static = Forward(model, CPU, graphs=RecordedCalls())
        expected_kv, kv = (live_kv(model) for _ in range(2))
        static(kv, [0], 0)
        for _ in range(2):  # direct, and repeated
            kv.truncate(0)
            expected_kv.truncate(0)
            for part, start in ((many, 0), (few, len(many))):
                with torch.inference_mode():
                    expected = static._ordinary(expected_kv, part, start)
                found = static(kv, part, start)
                assert (found - expected).abs().max() <= TOLERANCE * expected.std()
    for position in range(23, 27):  # behind it the embedding is another one
        with torch.inference_mode():
            expected = static._ordinary(expected_kv, [position], position)
        found = static(kv, [position], position)
        assert (found - expected).abs().max() <= TOLERANCE * expected.std()


@pytest.mark.parametrize("family", [*sorted(ANY_TOKEN_FAMILIES - {"bloom"}), "longrope"])
def test_a_step_asks_the_device_for_nothing(family: str) -> None:
    """On tensors without content nothing can be read, and nothing comes from elsewhere."""
    is_named = family in ANY_TOKEN_FAMILIES
    model = family_model(CAPTURED + family) if is_named else rope_length.new_model(family)
    kv, known = live_kv(model, "meta"), live_kv(model)
    with torch.inference_mode():
        Forward(model, CPU)._ordinary(known, [0], 0)
    for layer, other in zip(kv.growing, known.growing, strict=True):
        for kind, like in other.home.tensors.items():
            layer.allocate(kind, like.shape[1], like.shape[3], torch.bfloat16, kv.device)
    step = StaticStep(model.to("meta", torch.bfloat16), kv.device, RecordedCalls())
    with torch.inference_mode():
        for rows in (1, 16, 256):
            homes = kv.claim_buckets(40, 40 + rows)
            assert homes is not None
            with _Devices() as seen:
                step._call(homes, rows, bucket_for(40 + rows))()
            assert seen.found == {"meta"}


class _Devices(TorchDispatchMode):
    """Where the tensors are that operations see."""

    def __init__(self) -> None:
        super().__init__()
        self.found: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        tensors = [x for x in tree_leaves((args, kwargs, output)) if isinstance(x, torch.Tensor)]
        self.found.update(tensor.device.type for tensor in tensors)
        return output


def test_what_layers_see_is_what_the_code_of_the_family_has() -> None:
    by_layer, one_window = set(), set()
    for family in ANY_TOKEN_FAMILIES:
        kind = AutoModelForCausalLM._model_mapping[CONFIG_MAPPING[family]]
        source = Path(inspect.getfile(kind)).read_text()
        if "attention_mask, dict)" in source:
            by_layer.add(family)
        elif "create_sliding_window" in source:
            one_window.add(family)
    assert (by_layer, one_window) == (BY_LAYER, ONE_WINDOW)


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


def test_few_graphs_are_kept_and_none_of_buffers_that_were_left(
    forward: Forward, live: LiveKV, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(static_step, "_MAX_STEPS", 5)
    static = forward.static
    assert static is not None
    live.reserve(600)  # all buckets in one set of buffers
    spoken(forward, live, 12)
    for num_tokens in range(20, 500, 40):
        live.set_length(num_tokens)
        ready(forward, live)
        assert {rows for rows, _ in static._steps} == set(static_step.ROWS)
    assert static.num_captured <= 5
    kept = [weakref.ref(step.replay) for step in static._steps.values() if step.replay]
    left = [weakref.ref(layer.home.tensors["key"]) for layer in live.growing]
    live.reserve(3000)
    ready(forward, live)
    gc.collect()
    assert [ref() for ref in [*kept, *left]] == [None] * len([*kept, *left])


def test_many_rows_far_back_are_read_by_an_ordinary_pass(
    forward: Forward, live: LiveKV, monkeypatch: pytest.MonkeyPatch
) -> None:
    forward(live, PROMPT, 0)
    monkeypatch.setattr(static_step, "_MAX_SCORES", 16 * 64)
    static: Any = forward.static
    with torch.inference_mode():
        assert static(live, SECOND, len(PROMPT)) is not None
        assert static(live, PROMPT, len(PROMPT) + len(SECOND)) is None  # it would be 64 rows
    ready(forward, live)
    ahead = {rows for rows, bucket in static._steps if rows * bucket <= 16 * 64}
    assert ahead == {1, 16}


@pytest.mark.parametrize("num_tokens", [1, 12, 16, 19])
def test_the_first_token_of_a_new_engine_waits_for_no_capture(
    forward: Forward, live: LiveKV, num_tokens: int
) -> None:
    forward.settle(live)
    assert forward.static is not None
    graphs: Any = forward.static._graphs
    before = graphs.num_captured
    logits = forward(live, PROMPT[:num_tokens], 0)
    assert graphs.num_captured == before
    forward(live, [int(logits.argmax())], num_tokens)
    assert graphs.num_captured == before


def test_getting_ready_changes_nothing_that_counts(forward: Forward, live: LiveKV) -> None:
    forward(live, PROMPT, 0)
    before = [layer.view(kind).clone() for layer in live.growing for kind in ("key", "value")]
    ready(forward, live)
    after = [layer.view(kind) for layer in live.growing for kind in ("key", "value")]
    assert live.num_tokens == len(PROMPT)
    assert all(torch.equal(x, y) for x, y in zip(before, after, strict=True))
    assert forward.static is not None
    num_captured = forward.static.num_captured
    ready(forward, live)
    assert forward.static.num_captured == num_captured


def test_a_short_message_is_one_repeated_step(forward: Forward, live: LiveKV, model: Any) -> None:
    forward(live, PROMPT, 0)
    ready(forward, live)
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


def test_a_step_that_cannot_be_captured_stays_direct(
    model: Any, forward: Forward, live: LiveKV, caplog: pytest.LogCaptureFixture
) -> None:
    expected = spoken(forward, live, 20)
    refused = Forward(model, CPU, graphs=Refusing())
    other = live_kv(model)
    refused(other, [0], 0)
    other.truncate(0)
    assert torch.equal(spoken(refused, other, 20), expected)
    assert any("not permitted" in text for text in _logged(caplog, logging.WARNING))


def test_a_model_of_which_nothing_can_be_captured_stays_eager(model: Any) -> None:
    refused = Forward(model, CPU, graphs=Refusing())
    assert refused.settle(live_kv(model)) is None
    assert refused.static is None


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
    assert (drifting.static is not None) == is_kept
    if drifting.static is not None:
        assert drifting.static.num_captured > 0
    spoken(drifting, live, 8)
    if drifting.static is not None:  # it has bits of its own, so nothing is computed without one
        assert {step.num_direct for step in drifting.static._steps.values()} <= {0, 1}
        assert any("round differently" in text for text in _logged(caplog, logging.INFO))


def test_what_is_known_of_a_card_is_found_out_once(model: Any, tmp_path: Path) -> None:
    directory, calls = tmp_path / "namespace", RecordedCalls()
    for num_captured in (1, 1):  # the second load compares nothing, and captures nothing
        path = LivePath(Forward(model, CPU, graphs=calls), live_kv(model))
        path.forward(path.kv, [0], 0)
        path.kv.truncate(0)
        get_ready_on_device(path, ChunkChoice(OnCpu(model), directory), directory)
        assert path.forward.static is not None
        assert calls.num_captured == num_captured
    (kept,) = directory.iterdir()
    told = json.loads(kept.read_text())
    assert list(told.values()) == ["same bits"]
    for verdict, is_taken in [("own bits", True), ("wrong", False)]:
        kept.write_text(json.dumps(dict.fromkeys(told, verdict)))
        forward = Forward(model, CPU, graphs=calls)
        get_ready_on_device(
            LivePath(forward, live_kv(model)), ChunkChoice(OnCpu(model), directory), directory
        )
        assert (forward.static is not None) == is_taken
        assert forward.static is None or forward.static._has_own_bits


@dataclass
class OnCpu:
    """As much of a loaded model as the choice of a chunk looks at."""

    model: Any
    device: torch.device = CPU
    dtype: torch.dtype = torch.float32
    max_context_tokens: int = 4096


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


def test_what_is_not_the_same_each_time_stays_eager(model: Any) -> None:
    assert why_eager(model.config) is None
    assert "ALiBi" in str(why_eager(family_model("bloom").config))
    assert "state" in str(why_eager(stateful_model("qwen3_next").config))
    assert "not known" in str(why_eager(family_model("persimmon").config))
    dynamic = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10_000.0}
    changing = family_model("llama", rope_parameters=dynamic)
    assert "rotary" in str(why_eager(changing.config))
    assert not takes_static_step(changing, CPU)


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
