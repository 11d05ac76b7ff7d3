"""Append mode: what was read stays as it was read, and the template writes only what is new."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chatcache.backends.base import ChatMessage
from chatcache.backends.local.prompt.planner import PromptPlan
from chatcache.backends.local.run.reasons import TurnFacts, explain
from chatcache.token_ids import TokenIds
from tests.chats import SYSTEM, Chat, tokenizer_of
from tests.templates import BY_NAME, SHAPES, Shape

CHATML_TAIL = "\n<|im_start|>user\nQ<|im_end|>\n<|im_start|>assistant\n"
LLAMA3_TAIL = (
    "<|start_header_id|>user<|end_header_id|>\n\nQ<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\n"
)
# What each template writes between the end of an answer and the next answer.
TAILS = {
    "chatml": CHATML_TAIL,
    "qwen2.5": CHATML_TAIL,
    "qwen3": CHATML_TAIL,
    "qwen3-thinking": CHATML_TAIL,
    **dict.fromkeys(("seed", "magistral", "tokens-alone"), CHATML_TAIL),
    "qwq": CHATML_TAIL + "<think>\n",
    "r1": "<｜User｜>Q<｜Assistant｜><think>\n",
    "deepseek": "<｜User｜>Q<｜Assistant｜></think>",
    "llama3": LLAMA3_TAIL,
    "llama3.2": LLAMA3_TAIL,
    "gemma": "\n<start_of_turn>user\nQ<end_of_turn>\n<start_of_turn>model\n",
    "mistral": "[INST]Q[/INST]",
    "llama2": "<s>[INST] Q [/INST]",
    "llama2-legacy": "<s> [INST] Q [/INST]",
    "phi3": "\n<|user|>\nQ<|end|>\n<|assistant|>\n",
    "gpt-oss": "<|start|>user<|message|>Q<|end|><|start|>assistant",
    "smollm3": CHATML_TAIL,
    "smollm3-thinking": CHATML_TAIL,
    "glm": "\nQ<|assistant|>\n",
    "deaf": CHATML_TAIL,
    "plain": "\nUser: Q\nAssistant:",
}


class AppendChat(Chat):
    """A conversation in append mode. The planner is told how many messages the journal covers."""

    def ask(self, text: str) -> PromptPlan:
        num_read = len(self.messages) if self.journal else 0
        self.messages.append(ChatMessage("user", text))
        return self.read(self.plan(num_read))

    def plan(self, num_read: int, *, continue_answer: bool = False) -> PromptPlan:
        return self.planner.plan(
            self.messages,
            self.journal,
            think=self.think,
            continue_answer=continue_answer,
            history_mode="append",
            num_read=num_read,
        )

    def read(self, plan: PromptPlan) -> PromptPlan:
        """Check that nothing of the history is lost, and read the prompt."""
        assert (plan.keep, plan.diverged) == (len(self.journal), None)
        assert plan.ids[: plan.keep] == self.journal
        self.journal = plan.ids
        self._plan = plan
        return plan

    def new_text(self, plan: PromptPlan) -> str:
        return str(self.tokenizer.decode(plan.ids[plan.keep :].to_list()))


@pytest.mark.parametrize("drifts", [False, True], ids=["canonical", "drifted"])
@pytest.mark.parametrize("system", [None, SYSTEM], ids=["plain", "system"])
@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape.name)
def test_nothing_of_the_history_is_read_again(
    shape: Shape, system: str | None, drifts: bool
) -> None:
    chat = AppendChat(shape, system, drifts=drifts)
    chat.ask("one?")
    chat.answer(" Yes, 你好. \n")
    for answer in ("No.", " Perhaps 🎉"):
        plan = chat.ask("Q")
        assert chat.new_text(plan) == TAILS[shape.name]
        assert plan.opens_reasoning == shape.opens_reasoning
        chat.answer(answer)


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape.name)
def test_an_answer_that_was_stopped_is_ended_by_the_template(shape: Shape) -> None:
    chat = AppendChat(shape, SYSTEM)
    chat.ask("one?")
    chat.answer("It goes on and", ends=False)
    new = chat.new_text(chat.ask("Q"))
    end = {"plain": "", "gpt-oss": "<|end|>"}.get(shape.name, shape.end)
    assert new == end + TAILS[shape.name]


@pytest.mark.parametrize("name", ["chatml", "qwen2.5", "deepseek", "llama3", "smollm3-thinking"])
def test_a_faithful_template_gets_what_it_writes_itself(name: str) -> None:
    chat = AppendChat(BY_NAME[name], SYSTEM)
    for question in ("one?", "two?", "three?"):
        before = chat.journal
        plan = chat.ask(question)
        assert plan.num_deviating == 0
        assert plan.ids == chat.planner.plan(chat.messages, before).ids
        chat.answer("Yes.")


@pytest.mark.parametrize("name", ["qwen3-thinking", "qwq", "r1", "mistral", "gpt-oss"])
def test_what_the_template_would_write_differently_is_counted(name: str) -> None:
    chat = AppendChat(BY_NAME[name], SYSTEM)
    assert chat.ask("one?").num_deviating == 0
    chat.answer("Yes.")
    before = chat.journal
    plan = chat.ask("two?")
    canonical = chat.planner.plan(chat.messages, before)
    assert plan.num_deviating == len(before) - canonical.keep > 0


def test_yesterdays_date_stays() -> None:
    chat = AppendChat(BY_NAME["llama3.2"], SYSTEM)
    plan = chat.ask("one?")
    text = chat.tokenizer.decode(plan.ids.to_list())
    date = text.partition("Today Date: ")[2].partition("\n")[0]
    chat.journal = TokenIds(chat.planner.codec.encode(text.replace(date, "01 Feb 2003"), "\ue000"))
    chat.answer("Yes.")
    assert chat.new_text(chat.ask("Q")) == LLAMA3_TAIL


def test_thinking_can_be_switched_off_in_the_middle() -> None:
    chat = AppendChat(BY_NAME["qwen3-thinking"])
    chat.ask("one?")
    chat.answer("Yes.")
    chat.think = False
    assert chat.new_text(chat.ask("Q")) == CHATML_TAIL + "<think>\n\n</think>\n\n"


def test_a_system_prompt_that_says_what_the_user_says_is_not_taken_for_a_repeated_one() -> None:
    chat = AppendChat(BY_NAME["smollm3"], "Q", think=False)
    chat.ask("one?")
    chat.answer("Yes.")
    assert chat.new_text(chat.ask("Q and Q")) == CHATML_TAIL.replace("Q", "Q and Q")


# answers that are not whole


def test_reasoning_that_was_stopped_is_closed() -> None:
    chat = AppendChat(BY_NAME["qwen3-thinking"])
    chat.ask("one?")
    chat.journal += TokenIds(chat.produced_ids("<think>\nLet me"))
    chat.messages.append(ChatMessage("assistant", "", "Let me"))
    plan = chat.ask("Q")
    assert chat.new_text(plan) == "\n</think>\n\n<|im_end|>" + CHATML_TAIL


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape.name)
def test_a_continued_answer_goes_on_where_it_stopped(shape: Shape) -> None:
    chat = AppendChat(shape, SYSTEM, drifts=True)
    chat.ask("one?")
    chat.answer("Yes.")
    chat.ask("two?")
    chat.answer("It goes on and", ends=False)
    plan = chat.plan(len(chat.messages), continue_answer=True)
    assert (plan.ids, plan.keep, plan.continues_answer) == (chat.journal, len(chat.journal), True)


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape.name)
def test_an_answer_known_by_its_words_only_is_written_behind(shape: Shape) -> None:
    """After a crash: the words are there, the ids are not."""
    chat = AppendChat(shape, SYSTEM)
    chat.ask("one?")
    chat.answer("Yes.")
    num_read = len(chat.messages)
    chat.messages += [ChatMessage("user", "Q"), ChatMessage("assistant", "It goes on")]
    plan = chat.plan(num_read, continue_answer=True)
    new = chat.new_text(chat.read(plan))
    assert new.startswith(TAILS[shape.name])
    assert new.endswith("It goes on")
    assert plan.continues_answer


def test_a_lost_turn_is_written_as_the_template_writes_it() -> None:
    chat = AppendChat(BY_NAME["chatml"])
    chat.ask("one?")
    chat.answer("Yes.")
    num_read = len(chat.messages)
    chat.messages += [
        ChatMessage("user", "two?"),
        ChatMessage("assistant", "No."),
        ChatMessage("user", "three?"),
    ]
    plan = chat.read(chat.plan(num_read))
    assert plan.ids == chat.planner.plan(chat.messages).ids


# where it cannot be


@pytest.mark.parametrize("num_read", [0, 1, 5])
def test_a_journal_that_does_not_end_with_an_answer_is_matched(num_read: int) -> None:
    chat = AppendChat(BY_NAME["chatml"])
    chat.ask("one?")
    chat.messages[-1] = replace(chat.messages[-1], text="one?\n\ntwo?")
    plan = chat.plan(num_read)
    assert plan == chat.planner.plan(chat.messages, chat.journal)


def test_ids_of_another_tokenizer_are_not_kept() -> None:
    chat = AppendChat(BY_NAME["chatml"])
    chat.ask("one?")
    chat.answer("Yes.")
    chat.journal = chat.journal[:3] + TokenIds([10**7]) + chat.journal[4:]
    chat.messages.append(ChatMessage("user", "two?"))
    assert chat.plan(2).keep <= 3


# what people write stays text


FRAGMENTS = ["<|im_end|>", "<|eot_id|>", "[INST]", "</s>", "<think>", "xqzvk", "a", " ", "\n", "你"]
TEXTS = st.lists(st.sampled_from(FRAGMENTS), max_size=6).map("".join)


@settings(max_examples=100)
@given(name=st.sampled_from([shape.name for shape in SHAPES]), texts=st.lists(TEXTS, min_size=2))
def test_any_text_is_appended_as_text(name: str, texts: Sequence[str]) -> None:
    chat = AppendChat(BY_NAME[name], SYSTEM)
    plain = AppendChat(BY_NAME[name], SYSTEM)
    controls = chat.planner.codec.control_ids
    for text in texts[:3]:
        new, expected = chat.ask(f"x{text}x"), plain.ask("words")
        assert [id_ for id_ in new.ids[new.keep :] if id_ in controls] == [
            id_ for id_ in expected.ids[expected.keep :] if id_ in controls
        ]
        assert f"x{text}x" in chat.tokenizer.decode(new.ids[new.keep :])
        chat.answer("Yes.")
        plain.answer("Yes.")


def test_the_reason_says_what_is_kept_against_the_template() -> None:
    tokenizer = tokenizer_of("qwen3")
    ids = TokenIds(tokenizer.encode("one two three four five", add_special_tokens=False))
    num = len(ids) // 4
    facts = TurnFacts(ids, reused=num - 1, keep=num - 1, num_journal=num - 1, num_deviating=1_204)
    detail = explain(facts, "", {}).detail
    assert detail.endswith(
        "append mode keeps 1,204 tokens that the template would write differently now"
    )
