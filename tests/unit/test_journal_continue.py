"""Going on with a partial answer: the ids stay what they were."""

from __future__ import annotations

import pytest

from chatcache.backends.base import ChatMessage
from chatcache.token_ids import NO_IDS, TokenIds
from tests.chats import SYSTEM, Chat, planner_of, tokenizer_of
from tests.templates import BY_NAME, SHAPES, Shape


@pytest.mark.parametrize("drifts", [False, True], ids=["canonical", "drifted"])
@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape.name)
def test_continuing_uses_the_ids_as_they_were_produced(shape: Shape, drifts: bool) -> None:
    chat = Chat(shape, SYSTEM, drifts=drifts)
    chat.ask("one?")
    chat.answer("It goes on and", ends=False)
    plan = chat.planner.plan(chat.messages, chat.journal, continue_answer=True)
    assert (plan.ids, plan.keep, plan.diverged) == (chat.journal, len(chat.journal), None)
    assert not plan.opens_reasoning
    assert plan.continues_answer


def test_continuing_drops_the_end_token() -> None:
    chat = Chat(BY_NAME["chatml"])
    chat.ask("one?")
    chat.answer("Done.")
    plan = chat.planner.plan(chat.messages, chat.journal, continue_answer=True)
    assert plan.ids == chat.journal[:-1]
    assert plan.keep == len(plan.ids)


def test_continuing_inside_reasoning_says_so() -> None:
    chat = Chat(BY_NAME["qwen3-thinking"])
    chat.ask("one?")
    chat.journal += TokenIds(chat.produced_ids("<think>\nLet me"))
    chat.messages.append(ChatMessage("assistant", "", "Let me"))
    plan = chat.planner.plan(chat.messages, chat.journal, continue_answer=True)
    assert plan.opens_reasoning
    assert plan.ids == chat.journal


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape.name)
def test_continuing_without_a_journal_ends_with_the_answer(shape: Shape) -> None:
    """The answer was given by another model, or imported."""
    chat = Chat(shape)
    prompt = chat.ask("one?")
    chat.messages.append(ChatMessage("assistant", "It goes on and"))
    for journal in (NO_IDS, prompt.ids):
        plan = chat.planner.plan(chat.messages, journal, continue_answer=True)
        assert chat.tokenizer.decode(plan.ids.to_list()).endswith("It goes on and")
        assert plan.keep == len(journal) or plan.diverged is not None


def test_continuing_reasoning_without_a_journal_opens_it() -> None:
    planner = planner_of("qwen3-thinking")
    path = [ChatMessage("user", "one?"), ChatMessage("assistant", "", "Let me")]
    plan = planner.plan(path, continue_answer=True)
    assert tokenizer_of("qwen3-thinking").decode(plan.ids.to_list()).endswith("<think>\nLet me")
    assert plan.opens_reasoning


def test_continuing_an_empty_answer_is_answering() -> None:
    chat = Chat(BY_NAME["chatml"])
    plan = chat.ask("one?")
    path = [*chat.messages, ChatMessage("assistant", "")]
    again = chat.planner.plan(path, chat.journal, continue_answer=True)
    assert again.ids == plan.ids
    assert again.keep == len(plan.ids)


def test_reasoning_that_has_just_ended_is_not_open() -> None:
    chat = Chat(BY_NAME["qwen3-thinking"])
    chat.ask("one?")
    chat.journal += TokenIds(chat.produced_ids("<think>\nLet me see.\n</think>\n\n"))
    chat.messages.append(ChatMessage("assistant", "", "Let me see."))
    plan = chat.planner.plan(chat.messages, chat.journal, continue_answer=True)
    assert (plan.ids, plan.opens_reasoning) == (chat.journal, False)


def test_answering_anew_continues_nothing() -> None:
    chat = Chat(BY_NAME["chatml"])
    chat.ask("one?")
    chat.messages.append(ChatMessage("assistant", ""))
    plan = chat.planner.plan(chat.messages, chat.journal, continue_answer=True)
    assert not plan.continues_answer
