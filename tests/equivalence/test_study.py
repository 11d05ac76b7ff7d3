"""What is asked of a model between turns is true, and leaves everything as it was.

The truth of attention is transformers' eager code, one forward over all tokens without any cache.
"""

from __future__ import annotations

from collections.abc import Generator
from pathlib import Path
from typing import Any, TypeVar

import pytest
import torch

from chatcache.backends.base import SamplingParams
from chatcache.backends.local.model.cut_policy import ANY_TOKEN_FAMILIES, cut_policy
from chatcache.backends.local.run.assemble import build_context
from chatcache.backends.local.run.live_context import LiveContext, LivePath
from chatcache.backends.local.run.sampling import Sampler
from chatcache.backends.local.run.threads import Threads
from chatcache.backends.local.study import attention
from chatcache.backends.local.study.attention import AttentionStudy
from chatcache.backends.local.study.beside import Beside
from chatcache.backends.local.study.next_tokens import NextTokenStudy
from chatcache.backends.questions import (
    AskAttention,
    AskNextTokens,
    AttentionRows,
    NextTokens,
    TokenPiece,
)
from chatcache.cache.tensors.int8 import Int8KV
from chatcache.cache.tensors.live_kv import LiveKV
from chatcache.errors import UnavailableError, UsageError
from chatcache.token_ids import TokenIds
from tests.equivalence.engine import (
    CHUNK_TOKENS,
    FIRST,
    OTHER,
    SECOND,
    THIRD,
    IdsEngine,
    Said,
    assert_same_bits,
)
from tests.equivalence.families import family_model
from tests.equivalence.stateful import stateful_model
from tests.lazy_link import LazyLink

TOLERANCE = 1e-3
CPU = torch.device("cpu")
Answer = TypeVar("Answer")


def finish(work: Generator[None, None, Answer]) -> Answer:
    while True:
        try:
            next(work)
        except StopIteration as end:
            answer: Answer = end.value
            return answer


class Asked:
    """The questions that an engine on ids can be asked."""

    def __init__(self, engine: IdsEngine):
        self.engine = engine
        model, context = engine.model, engine.context
        cut = cut_policy(model.config)

        def make() -> LiveContext:
            config = model.config if cut.needs_states else None
            kind = Int8KV if isinstance(engine.live, Int8KV) else LiveKV
            live = kind(model.config.num_hidden_layers, torch.float32, CPU, config)
            path = LivePath(context.path.forward, live)
            path.forward(live, [0], 0)
            live.truncate(0)
            rates, chunk = engine.rates, CHUNK_TOKENS
            return build_context(cut, path, engine.prefixes, rates, chunk, model.config)

        beside = Beside(context, make, lambda: CHUNK_TOKENS)
        self.attention_study = AttentionStudy(model, context.path.forward, beside, cut)
        piece = lambda token_id: TokenPiece(token_id, str(token_id))  # noqa: E731
        self.next_study = NextTokenStudy(beside, cut, SamplingParams(), piece)

    def attention(self, ids: list[int], first: int, last: int, **which: int) -> AttentionRows:
        question = AskAttention(TokenIds(ids), first, last, **which)
        return finish(self.attention_study.answer(question))

    def next_tokens(self, ids: list[int], num_tokens: int = 10, **settings: Any) -> NextTokens:
        return finish(self.next_study.answer(AskNextTokens(TokenIds(ids), num_tokens, **settings)))

    def forget(self) -> None:
        self.attention_study.forget()
        self.next_study.forget()


@torch.inference_mode()
def eager(model: Any, ids: list[int]) -> torch.Tensor:
    """`[num_layers, num_heads, num_tokens, num_tokens]` of the layers that attend."""
    usual = model.config._attn_implementation
    model.set_attn_implementation("eager")
    output = model(input_ids=torch.tensor([ids]), output_attentions=True, use_cache=False)
    model.set_attn_implementation(usual)
    return torch.stack([weights[0] for weights in output.attentions if weights is not None])


def new_model(family: str) -> Any:
    if family == "gemma2":  # a cap that caps
        return family_model(family, attn_logit_softcapping=0.5)
    if family not in ANY_TOKEN_FAMILIES:
        return stateful_model(family)
    model = family_model(family)
    if family == "gpt_oss":
        for layer in model.model.layers:
            torch.nn.init.constant_(layer.self_attn.sinks, 2.0)
    return model


# Grouped heads; windows and a soft cap; windows and sinks; latent K and V; one embedding for all
# positions; states beside attention; states behind which tokens are read one by one.
FAMILIES = ["qwen3", "gemma2", "gpt_oss", "deepseek_v3", "bloom", "lfm2", "jamba"]


@pytest.fixture(scope="module", params=FAMILIES)
def model(request: pytest.FixtureRequest) -> Any:
    return new_model(str(request.param))


def talk(engine: IdsEngine) -> Said:
    one = engine.turn(FIRST, 4)
    return engine.turn(one.ids + SECOND, 5)


def test_weights_are_those_of_the_eager_model_wherever_k_comes_from(
    model: Any, tmp_path: Path
) -> None:
    engine = IdsEngine(model, tmp_path)
    asked, ids = Asked(engine), talk(engine).ids
    truth = eager(model, ids)
    first, last = 10, 20
    for source in ("live", "segments", "computed"):
        if source == "segments":
            engine.forget_live()
        elif source == "computed":
            engine.close()
            engine = IdsEngine(model, tmp_path / "nothing")
            asked = Asked(engine)
        asked.forget()
        whole = asked.attention(ids, first, last)
        one_head = asked.attention(ids, first, last, layer=1, head=2)
        for row, at in enumerate(range(first, last + 1)):
            weights = truth[:, :, at, : at + 1]
            expected = weights.mean((0, 1))
            assert (torch.tensor(whole.rows[row]) - expected).abs().max() <= TOLERANCE
            assert (torch.tensor(one_head.rows[row]) - weights[1, 2]).abs().max() <= TOLERANCE
            assert len(whole.rows[row]) == at + 1
        assert (whole.num_layers, whole.num_heads) == tuple(truth.shape[:2])
        assert whole.num_computed + whole.num_reused == last + 1
        assert (one_head.num_computed, one_head.num_reused) == (0, last + 1)
        if source == "computed":
            assert whole.num_reused == 0
        elif not engine.live.has_states:
            assert whole.num_reused == first
        else:
            assert whole.num_reused == len(FIRST) - 2  # where a checkpoint was taken
    engine.close()


def test_what_can_hide_something_hides_it() -> None:
    """Else the test above would say nothing of windows, caps and sinks."""
    ids = [*FIRST, *SECOND, *THIRD]
    assert (eager(new_model("gpt_oss"), ids).sum(-1) < 0.9).any()
    assert (eager(new_model("gemma2"), ids)[0, :, 20, :8] == 0.0).all()
    capped, free = (eager(each, ids) for each in (new_model("gemma2"), family_model("gemma2")))
    assert (capped - free).abs().max() > 0.1


def test_a_conversation_that_was_studied_goes_on_as_if_it_had_not_been(
    model: Any, tmp_path: Path
) -> None:
    assert_not_disturbed(IdsEngine(model, tmp_path / "a"), IdsEngine(model, tmp_path / "b"))


def test_no_more_is_one_whose_k_and_v_are_kept_as_integers(tmp_path: Path) -> None:
    model = new_model("qwen3")
    assert_not_disturbed(*(IdsEngine(model, tmp_path / name, "int8") for name in "ab"))


def test_no_more_is_one_on_a_device_with_memory_of_its_own(tmp_path: Path) -> None:
    model = new_model("qwen3")

    def start(name: str) -> IdsEngine:
        return IdsEngine(model, tmp_path / name, link=LazyLink(), vram_budget=1 << 24)

    assert_not_disturbed(start("a"), start("b"))
    engine = start("c")
    ids = talk(engine).ids
    engine.turn(OTHER, 3)
    found = Asked(engine).attention(ids, 20, 20)  # of a path that was left
    truth = eager(model, ids)[:, :, 20, :21].mean((0, 1))
    assert (torch.tensor(found.rows[0]) - truth).abs().max() <= TOLERANCE
    assert found.num_reused == 20
    engine.close()


def assert_not_disturbed(plain: IdsEngine, studied: IdsEngine) -> None:
    """A conversation goes on with the same bits where it was studied; closes both."""
    asked = Asked(studied)
    other = studied.turn(FIRST[:6] + OTHER, 4)  # so that there is another path to be asked about
    plain.turn(FIRST[:6] + OTHER, 4)
    said = talk(plain)
    assert_same_bits(said, talk(studied))
    tensors = [layer.view(kind).clone() for layer in studied.live.growing for kind in KINDS]
    studied.prefixes.drain()
    rows, use = studied.prefixes.rows(), studied.prefixes.use()
    for ids in (said.ids, said.ids[:9], other.ids, [*said.ids, 7, 8, 9]):
        asked.attention(ids, len(ids) // 2, len(ids) - 1)
        asked.next_tokens(ids)
    half = AskAttention(TokenIds(said.ids), 1, 20)
    asked.forget()
    next(asked.attention_study.answer(half))  # given up in the middle
    now = [layer.view(kind) for layer in studied.live.growing for kind in KINDS]
    assert all(map(torch.equal, tensors, now))
    assert (studied.prefixes.rows(), studied.prefixes.use()) == (rows, use)
    assert studied.prefixes.check() == []
    last, expected = (engine.turn(said.ids + THIRD, 5) for engine in (studied, plain))
    assert_same_bits(last, expected)
    assert last.reuse.num_tokens == expected.reuse.num_tokens
    for engine in (plain, studied):
        engine.close()


KINDS = ("key", "value")


@pytest.fixture
def qwen(tmp_path: Path) -> Any:
    engine = IdsEngine(new_model("qwen3"), tmp_path)
    yield engine
    engine.close()


def test_rows_of_tokens_that_are_there_do_not_change_as_the_path_grows(qwen: IdsEngine) -> None:
    asked, one = Asked(qwen), qwen.turn(FIRST, 4)
    before = asked.attention(one.ids, 8, 15)
    two = qwen.turn(one.ids + SECOND, 5)
    assert asked.attention(two.ids, 8, 15).rows == before.rows  # they are kept
    asked.forget()
    again = asked.attention(two.ids, 8, 20)
    assert again.num_computed == 13
    for row, old in zip(again.rows, before.rows, strict=False):
        assert torch.tensor(row) == pytest.approx(torch.tensor(old), abs=1e-5)
    further = asked.attention(two.ids, 10, 22)  # a step further: only what is new
    assert (further.num_computed, further.num_reused) == (2, 21)
    assert further.rows[:11] == again.rows[2:]


def test_a_path_that_goes_another_way_has_rows_of_its_own(qwen: IdsEngine) -> None:
    asked, said = Asked(qwen), talk(qwen)
    mine = asked.attention(said.ids, 10, 14)
    other = [*said.ids[:12], *OTHER]
    found = asked.attention(other, 10, 14)
    assert found.num_computed == 3
    assert found.rows[:2] == mine.rows[:2]
    truth = eager(qwen.model, other)[:, :, 14, :15].mean((0, 1))
    assert (torch.tensor(found.rows[4]) - truth).abs().max() <= TOLERANCE


def test_rows_are_kept_within_their_memory(
    qwen: IdsEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, said = Asked(qwen), talk(qwen)
    monkeypatch.setattr(attention, "KEPT_BYTES", 1000)  # a row of 20 tokens has 640
    monkeypatch.setattr(attention, "_CHUNK_BYTES", 1)
    for num_computed in (9, 8):  # the last one was kept
        assert asked.attention(said.ids, 10, 18).num_computed == num_computed
    assert sum(row.nbytes for row in asked.attention_study._rows.values()) <= 1000


@pytest.mark.parametrize(
    ("first", "last", "which", "said"),
    [
        (0, 400, {}, "no tokens 0 to 400"),
        (-1, 3, {}, "no tokens -1 to 3"),
        (5, 4, {}, "no tokens 5 to 4"),
        (0, 70, {}, "71 tokens is more than is shown at once"),
        (0, 3, {"layer": 2}, "no layer 2"),
        (0, 3, {"head": -1}, "no head -1"),
    ],
)
def test_what_cannot_be_asked_is_said(
    qwen: IdsEngine, first: int, last: int, which: dict[str, int], said: str
) -> None:
    with pytest.raises(UsageError, match=said):
        Asked(qwen).attention(list(range(90)), first, last, **which)


@pytest.mark.parametrize(
    ("family", "said"), [("persimmon", "cannot be gone on from"), ("mamba", "no attention")]
)
def test_where_attention_cannot_be_had_is_said_and_the_next_token_is_told(
    tmp_path: Path, family: str, said: str
) -> None:
    model = stateful_model(family) if family == "mamba" else family_model(family)
    engine = IdsEngine(model, tmp_path)
    asked, ids = Asked(engine), talk(engine).ids
    with pytest.raises(UnavailableError, match=said):
        asked.attention(ids, 3, 5)
    assert_next(model, ids, asked.next_tokens(ids))
    engine.close()


def test_where_the_embedding_of_positions_changes_only_what_comes_before_is_told(
    tmp_path: Path,
) -> None:
    rope = {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 1e4}
    model = family_model("llama", max_position_embeddings=24, rope_parameters=rope)
    engine = IdsEngine(model, tmp_path)
    asked, ids = Asked(engine), engine.turn(FIRST + SECOND + THIRD, 6).ids
    with pytest.raises(UnavailableError, match="another embedding"):
        asked.attention(ids, 20, 25)
    found = asked.attention(ids, 10, 20)
    truth = eager(model, ids[:21])[:, :, 20].mean((0, 1))
    assert (torch.tensor(found.rows[10]) - truth).abs().max() <= TOLERANCE
    assert_next(model, ids, asked.next_tokens(ids))
    assert_next(model, ids[:15], asked.next_tokens(ids[:15]))
    engine.close()


@torch.inference_mode()
def assert_next(model: Any, ids: list[int], told: NextTokens) -> None:
    logits = model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1]
    probabilities = logits.softmax(-1)
    best = probabilities.topk(len(told.candidates))
    assert [found.piece.token_id for found in told.candidates] == best.indices.tolist()
    for found in told.candidates:
        assert found.logit == pytest.approx(logits[found.piece.token_id].item(), abs=1e-2)
        assert found.probability == pytest.approx(
            probabilities[found.piece.token_id].item(), abs=TOLERANCE
        )
    bits = -(probabilities * probabilities.log2()).sum().item()
    assert told.entropy_bits == pytest.approx(bits, abs=1e-2)
    assert told.num_computed + told.num_reused == len(ids)


def test_the_next_token_is_the_models_and_other_settings_need_no_computing(
    model: Any, tmp_path: Path
) -> None:
    engine = IdsEngine(model, tmp_path)
    asked, ids = Asked(engine), talk(engine).ids
    told = asked.next_tokens(ids)
    assert_next(model, ids, told)
    assert (told.num_left, told.candidates[0].sampled) == (1, 1.0)  # no temperature: greedy
    if not engine.live.has_states:
        assert told.num_computed == 1
    settings = {"temperature": 3.0, "top_k": 8, "top_p": 0.9, "min_p": 0.02}
    changed = asked.next_tokens(ids, 20, **settings, repetition_penalty=1.3)
    assert (changed.num_computed, changed.num_reused) == (0, len(ids))
    assert [found.probability for found in changed.candidates[:10]] == [
        found.probability for found in told.candidates
    ]
    params = SamplingParams(**settings, repetition_penalty=1.3)
    logits = torch.full((1, 97), -1e4)
    for found in asked.next_tokens(ids, 97).candidates:
        logits[0, found.piece.token_id] = found.logit
    expected = Sampler(params, ids, CPU).probabilities(logits)[0]
    for found in changed.candidates:
        assert found.sampled == pytest.approx(expected[found.piece.token_id].item(), abs=1e-6)
    assert changed.num_left == int((expected > 0).sum())
    assert 0 < changed.num_left <= 8
    told_settings = {name: getattr(changed, name) for name in settings}
    assert (told_settings, changed.repetition_penalty) == (settings, 1.3)
    engine.close()


def test_what_sampling_cannot_do_is_said(qwen: IdsEngine) -> None:
    asked, ids = Asked(qwen), talk(qwen).ids
    with pytest.raises(UsageError, match="No token can be chosen with these settings"):
        asked.next_tokens(ids, temperature=1.0, top_p=-3.0)
    with pytest.raises(UsageError, match="0 tokens"):
        asked.next_tokens(ids, 0)


def test_what_is_computed_for_a_question_says_nothing_of_the_pace_of_turns(
    qwen: IdsEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = talk(qwen).ids
    threads = Threads(2, lambda most: False)
    noted: list[float] = []
    monkeypatch.setattr(threads._chooser, "note", lambda seconds, now: noted.append(seconds))
    monkeypatch.setattr(qwen.context.path.forward, "_threads", threads)
    before = qwen.rates.prefill_tokens_per_second
    asked = Asked(qwen)
    asked.attention(ids, 12, 20)
    asked.next_tokens(ids)
    asked.next_tokens([*ids[:5], *OTHER])
    assert (noted, qwen.rates.prefill_tokens_per_second) == ([], before)
    qwen.context.step(5, len(ids))
    assert len(noted) == 1
