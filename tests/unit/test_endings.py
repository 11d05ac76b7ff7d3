"""An answer ends where the next turn would begin, at a limit, and when it only repeats itself."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from chatcache.backends.base import (
    SamplingParams,
    TextDelta,
    TurnFinished,
    TurnRequest,
    TurnResult,
)
from chatcache.backends.local.prompt.stops import StopWatch, stop_texts
from chatcache.backends.local.prompt.template import ChatTemplate
from chatcache.backends.local.run import turn_runner
from chatcache.backends.local.run.loops import LOOP_TOKENS, LoopWatch
from chatcache.backends.usage import DEFAULT_NEW_TOKENS
from chatcache.cache.inspect import CacheInspector
from chatcache.chat.figures import figures_of
from chatcache.frontend.figures import ending_warning, footer
from tests.equivalence.stateful import OVERRIDES
from tests.models import build_model_dir, build_tokenizer
from tests.talks import Engine, Talk
from tests.templates import BY_NAME
from tests.toymodel import ToyTurn

NO_END = (
    "{%- for message in messages %}{%- if message['role'] == 'user' %}"
    "{{- '### Instruction:\\n' + message['content'] + '\\n\\n### Response:\\n' }}"
    "{%- else %}{{- message['content'] + '\\n\\n' }}{%- endif %}{%- endfor %}"
)
TAGS = (
    "{%- for message in messages %}{{- '<|' + message['role'] + '|>\\n' + message['content'] }}"
    "{{- '\\n' }}{%- endfor %}{%- if add_generation_prompt %}{{- '<|assistant|>\\n' }}{%- endif %}"
)
BARE = (
    "{%- for message in messages %}"
    "{{- '\\n' + message['role'] + '\\n' + message['content'] }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '\\nassistant\\n' }}{%- endif %}"
)


# the marks of a template


@pytest.mark.parametrize(
    ("template", "marks"),
    [
        (None, ("\nUser:", "\nAssistant:")),
        (NO_END, ("\n### Instruction:", "\n### Response:")),
        (BARE, ("\nuser\n", "\nassistant\n")),
        (TAGS, ("<|user|>", "<|assistant|>")),
        ("{% for message in messages %}{{ message['content'] }}\n{% endfor %}", ()),
        ("{{ raise_exception('no') }}", ()),
    ],
)
def test_marks_are_read_off_the_template(template: str | None, marks: tuple[str, ...]) -> None:
    assert stop_texts(ChatTemplate(build_tokenizer(chat_template=template))) == marks


@pytest.mark.parametrize("name", ["chatml", "llama3", "glm", "gpt-oss", "mistral", "deepseek"])
def test_a_template_with_a_mark_of_its_own_needs_none(name: str) -> None:
    assert stop_texts(ChatTemplate(BY_NAME[name].tokenizer())) == ()


# the text of an answer

MARKS = ("\nUser:", "\nAssistant:", "### Q")
pieces = st.lists(
    st.sampled_from(["User:", "\n", " ", "Us", "er:", "Assistant", ":", "#", "## Q", "so", "\t"]),
    max_size=12,
)


@given(pieces, st.booleans())
def test_what_stands_in_front_of_a_mark_is_the_answer(parts: list[str], is_continued: bool) -> None:
    text = "".join(parts)
    watch = StopWatch(MARKS, is_continued=is_continued)
    given = "".join([*map(watch.push, parts), watch.finish()])
    whole = text if is_continued else "\n" + text
    found = re.search("|".join(map(re.escape, MARKS)), whole)
    if found is None:
        assert (given, watch.end) == (text, None)
        return
    before = whole[: found.start()].rstrip()
    answer = before if is_continued else before[1:]
    assert (given, watch.end) == (answer, len(answer))
    assert watch.push("more") == ""


@given(st.lists(st.text("ab\n ", min_size=1, max_size=3), max_size=8))
def test_what_cannot_become_a_mark_is_shown_at_once(parts: list[str]) -> None:
    watch = StopWatch(["\nUser:"])
    shown = ""
    for part in parts:
        shown += watch.push(part)
        assert "".join(parts).startswith(shown)
    assert shown == "".join(parts)[: len("".join(parts).rstrip())]


# loops


@given(st.lists(st.integers(0, 50), min_size=1, max_size=120), st.lists(st.integers(), max_size=60))
def test_a_run_that_is_repeated_is_noticed(run: list[int], before: list[int]) -> None:
    watch = LoopWatch()
    ids = [*before, *run * (2 * LOOP_TOKENS // len(run))]
    at = next((at for at, token_id in enumerate(ids, 1) if watch.push(token_id)), None)
    assert at is not None
    assert LOOP_TOKENS <= at <= len(before) + LOOP_TOKENS + 32
    assert watch.num_sound is not None
    assert watch.num_sound <= len(before) + len(run)
    # From there on every token was there before.
    period = next(
        p for p in range(1, 121) if ids[at - LOOP_TOKENS : at - p] == ids[at - LOOP_TOKENS + p : at]
    )
    assert ids[watch.num_sound : at] == ids[watch.num_sound - period : at - period]


def test_what_goes_on_is_no_loop() -> None:
    watch = LoopWatch()
    table = [token_id for row in range(400) for token_id in (1, 2, row, 3, 4)]
    assert not any(map(watch.push, table))


END = build_tokenizer().eos_token_id


# turns on real engines, whose tokens are chosen by the test


def say(
    engine: Engine, talk: Talk, ids: Sequence[int], monkeypatch: pytest.MonkeyPatch
) -> TurnResult:
    """One turn in which the model chooses these ids, and then its end token."""
    rest: Iterator[int] = iter(ids)

    class Chosen:
        def __init__(self, *arguments: Any) -> None: ...

        def choose(self, logits: torch.Tensor) -> int:
            return next(rest)

    monkeypatch.setattr(turn_runner, "Sampler", Chosen)
    events = talk.events(engine, "What is the answer?")
    last = events[-1]
    assert isinstance(last, TurnFinished), last
    shown = "".join(event.text for event in events if isinstance(event, TextDelta))
    assert shown == last.result.text + (last.result.reasoning or "")
    return last.result


class Unlimited(Talk):
    """A chat whose turns have no limit of their own."""

    def request(self, text: str) -> TurnRequest:
        return replace(super().request(text), sampling=SamplingParams(temperature=0.0))


def disk_tokens(place: Path) -> int:
    rows = CacheInspector(place / "cache", 1 << 30, 1 << 30).rows()
    return max((row.stop for row in rows), default=0)


def test_a_model_without_a_template_does_not_speak_for_the_user(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = build_model_dir(tmp_path / "base", chat_template=None)
    engine, talk = Engine(model, tmp_path), Unlimited()
    encode = build_tokenizer(chat_template=None).encode
    result = say(engine, talk, encode(" Yes, it is.\n\nUser: Why?\nAssistant: So."), monkeypatch)
    assert (result.text, result.finish_reason) == (" Yes, it is.", "stop")
    assert result.answer_ids.to_list() == encode(" Yes, it is.")
    read = len(talk.journal)
    again = say(engine, talk, encode(" No.\nUser:"), monkeypatch)
    assert again.usage.cached_tokens == read - 1 or again.usage.cached_tokens == read
    assert again.cache.reason == "new_user_turn"
    engine.close()
    assert disk_tokens(tmp_path) == len(talk.journal)


def test_a_mark_at_once_is_an_empty_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = build_model_dir(tmp_path / "base", chat_template=None)
    engine, talk = Engine(model, tmp_path), Unlimited()
    encode = build_tokenizer(chat_template=None).encode
    result = say(engine, talk, encode("User: Why?"), monkeypatch)
    assert (result.text, result.finish_reason, len(result.answer_ids)) == ("", "stop", 0)
    engine.close()


@pytest.mark.parametrize("is_special", [True, False])
def test_the_mark_of_the_next_role_is_not_in_the_answer(
    is_special: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    marks = ("<|user|>", "<|assistant|>")
    template = (
        "{%- for message in messages %}"
        "{%- set mark = '<|user|>' if message['role'] == 'user' else '<|assistant|>' %}"
        "{{- mark + '\\n' + message['content'] }}{%- endfor %}"
        "{%- if add_generation_prompt %}{{- '<|assistant|>\\n' }}{%- endif %}"
    )
    tokenizer = build_tokenizer(
        chat_template=template,
        control_tokens=("<|endoftext|>", *(marks if is_special else ())),
        plain_added_tokens=() if is_special else marks,
    )
    model = build_model_dir(tmp_path / "model", tokenizer=tokenizer)
    engine, talk = Engine(model, tmp_path), Unlimited()
    ids = tokenizer.encode("Yes.<|user|>\nWhy?")
    result = say(engine, talk, ids, monkeypatch)
    assert (result.text, result.finish_reason) == ("Yes.", "stop")
    engine.close()


def test_states_that_cannot_go_back_keep_what_they_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = build_model_dir(tmp_path / "base", "lfm2", chat_template=None, **OVERRIDES["lfm2"])
    engine, talk = Engine(model, tmp_path), Unlimited()
    encode = build_tokenizer(chat_template=None).encode
    ids = encode(" Yes, it is.\nUser: Why?")
    result = say(engine, talk, ids, monkeypatch)
    assert (result.text, result.finish_reason) == (" Yes, it is.", "stop")
    read = len(talk.journal)
    again = say(engine, talk, encode(" No.\nUser:"), monkeypatch)
    assert again.usage.cached_tokens == read
    engine.close()


@pytest.mark.parametrize("family", ["qwen3", "lfm2", "persimmon"])
def test_a_loop_is_stopped_said_and_not_kept(
    family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    overrides = OVERRIDES.get(family, {})
    model = build_model_dir(tmp_path / "model", family, **overrides)
    engine, talk = Engine(model, tmp_path), Unlimited()
    before, run = list(range(270, 290)), list(range(300, 307))
    result = say(engine, talk, [*before, *run * 200], monkeypatch)
    assert result.finish_reason == "loop"
    assert LOOP_TOKENS <= len(result.answer_ids) <= LOOP_TOKENS + len(before) + 32
    num_prompt = result.usage.prompt_tokens or 0
    again = say(engine, talk, [290, 291, END], monkeypatch)
    assert again.finish_reason == "stop"
    expected = {"qwen3": num_prompt + 27, "lfm2": num_prompt - 3, "persimmon": 0}
    assert abs((again.usage.cached_tokens or 0) - expected[family]) <= 3
    engine.close()


def test_a_loop_leaves_little_on_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine, talk = Engine(build_model_dir(tmp_path / "model"), tmp_path), Unlimited()
    result = say(engine, talk, [301, 302] * 300, monkeypatch)
    engine.close()
    assert result.finish_reason == "loop"
    assert disk_tokens(tmp_path) == (result.usage.prompt_tokens or 0) + 2


def test_an_answer_has_a_limit_by_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert DEFAULT_NEW_TOKENS == 4096
    monkeypatch.setattr(turn_runner, "DEFAULT_NEW_TOKENS", 64)
    engine, talk = Engine(build_model_dir(tmp_path / "model"), tmp_path), Unlimited()
    result = say(engine, talk, range(260, 400), monkeypatch)
    engine.close()
    assert (result.finish_reason, len(result.answer_ids)) == ("length", 64)


# what is said of it


def test_an_ending_that_the_answer_does_not_show_is_said() -> None:
    turn = ToyTurn(Talk().request("hi"), prompt=[1, 2])
    turn.answer_ids = [7] * DEFAULT_NEW_TOKENS
    cut = figures_of(turn.result("length"))
    assert "cut after 4,096 tokens; --max-new-tokens" in ending_warning(cut)
    loop = figures_of(turn.result("loop"))
    assert "repeated itself" in ending_warning(loop)
    assert "repeated itself" in footer(loop)
    turn.answer_ids = [7] * 12
    for reason in ("length", "stop", "stopped"):
        assert not ending_warning(figures_of(turn.result(reason)))
