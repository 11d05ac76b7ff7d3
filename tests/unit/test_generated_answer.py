"""The text of a local model's answer, id by id: thoughts apart, whatever marks its tokens are."""

from __future__ import annotations

import pytest

from chatcache.backends.base import CacheReport, Timings, TurnResult, Usage
from chatcache.backends.local.prompt.planner import PromptPlan
from chatcache.backends.local.run.turn import GeneratedAnswer
from chatcache.token_ids import TokenIds
from tests.chats import tokenizer_of


def answer(shape: str, text: str, *, opens: bool = False, continues: bool = False) -> TurnResult:
    """What comes of a text that the model of a shape produces."""
    tokenizer = tokenizer_of(shape)
    plan = PromptPlan(
        ids=TokenIds(tokenizer.encode("hi", add_special_tokens=False)),
        keep=0,
        opens_reasoning=opens,
        continues_answer=continues,
    )
    generated = GeneratedAnswer(tokenizer, plan, "t")
    for token_id in tokenizer.encode(text, add_special_tokens=False):
        list(generated.push(token_id))
    list(generated.close())
    nothing = Timings(None, None, None, None, None, None)
    return generated.result(Usage(1, 1, 0, 0), nothing, CacheReport("miss", "cold_start", 0, ""))


@pytest.mark.parametrize(
    ("shape", "text"),
    [
        ("qwen3", "<think>\nhm\n</think>\n\nYes."),
        ("seed", "<seed:think>hm</seed:think>Yes."),
        ("magistral", "[THINK]hm[/THINK]Yes."),
        ("tokens-alone", "<|begin_of_thought|>hm<|end_of_thought|>Yes."),
        ("gpt-oss", "<|channel|>analysis<|message|>hm<|end|><|start|>assistant<|channel|>final"
                    "<|message|>Yes."),
        ("gpt-oss", "<|channel|>plan<|message|>hm<|end|><|start|>assistant<|channel|>final"
                    "<|message|>Yes.<|return|>"),
        ("qwen3", "hm\n</think>\n\nYes."),
        ("chatml", "<thinking>\nhm\n</thinking>\n\nYes."),
        ("seed", "hm\n</seed:think>\n\nYes."),
    ],
)  # fmt: skip
def test_thoughts_are_told_apart(shape: str, text: str) -> None:
    result = answer(shape, text)
    assert (result.reasoning, result.text) == ("hm", "Yes.")


@pytest.mark.parametrize(
    ("shape", "text", "shown"),
    [
        ("gpt-oss", "<|channel|>reply<|message|>Yes.<|return|>", "Yes."),
        ("gpt-oss", "Yes.<|return|>", "Yes."),
        ("qwen3", "Write </think> to close it.", "Write </think> to close it."),
        ("qwen3", "Is a < b?", "Is a < b?"),
        ("chatml", "Is a <", "Is a <"),
    ],
)
def test_an_answer_stays_one(shape: str, text: str, shown: str) -> None:
    result = answer(shape, text)
    assert (result.reasoning, result.text) == (None, shown)


def test_where_the_prompt_stands_is_known() -> None:
    opened = answer("qwq", "hm\n</think>\n\nYes.", opens=True)
    assert (opened.reasoning, opened.text) == ("hm", "Yes.")
    going_on = answer("qwen3", "more\n</think>\nof it", continues=True)
    assert (going_on.reasoning, going_on.text) == (None, "more\n</think>\nof it")
