"""Prompts keep the ids that were read, spell what the template says, and take text for text."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chatcache.backends.base import ChatMessage
from chatcache.backends.local.prompt.planner import PromptPlanner
from chatcache.errors import UnavailableError
from chatcache.token_ids import TokenIds
from tests.chats import SYSTEM, Chat, planner_of, tokenizer_of
from tests.models import CHATML_TEMPLATE, build_tokenizer
from tests.templates import BY_NAME, SHAPES, Shape

QUESTIONS = ("What is kept?", "And what  is shared?\n", "Why 🎉?")
ANSWERS = ("The keys and values.", " Everything before the fork. ", "Because 你好.\n")


# three turns with every shape


@pytest.mark.parametrize("drifts", [False, True], ids=["canonical", "drifted"])
@pytest.mark.parametrize("system", [None, SYSTEM], ids=["plain", "system"])
@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape.name)
def test_three_turns_keep_at_least_what_retokenising_would(
    shape: Shape, system: str | None, drifts: bool
) -> None:
    chat = Chat(shape, system, drifts=drifts)
    for question, answer in zip(QUESTIONS, ANSWERS, strict=True):
        chat.ask(question)
        chat.answer(answer)


@pytest.mark.parametrize(
    "name", ["chatml", "qwen2.5", "qwen3", "deepseek", "llama3", "smollm3-thinking", "deaf"]
)
def test_a_faithful_template_loses_nothing(name: str) -> None:
    chat = Chat(BY_NAME[name], SYSTEM, drifts=True)
    for question in ("one?", "two?", "three?"):
        before = len(chat.journal)
        plan = chat.ask(question)
        assert (plan.keep, plan.diverged) == (before, None)
        chat.answer("Yes.")


@pytest.mark.parametrize("name", ["qwen3-thinking", "qwq", "r1"])
def test_reasoning_stripped_from_history_costs_the_last_answer_only(name: str) -> None:
    chat = Chat(BY_NAME[name], SYSTEM)
    chat.ask("one?")
    prompt = len(chat.journal)
    chat.answer("Yes.")
    plan = chat.ask("two?")
    assert prompt - 3 <= plan.keep <= prompt
    assert plan.diverged is not None
    assert plan.diverged.kind == "template_rewrote_history"
    assert "turn 1" in plan.diverged.detail
    assert "see" in plan.diverged.detail or "think" in plan.diverged.detail


def test_thinking_switched_off_opens_with_an_empty_block() -> None:
    chat = Chat(BY_NAME["qwen3"], think=False)
    plan = chat.ask("one?")
    assert not plan.opens_reasoning
    assert chat.tokenizer.decode(plan.ids.to_list()).endswith("<think>\n\n</think>\n\n")


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape.name)
def test_the_plan_says_whether_the_answer_begins_inside_reasoning(shape: Shape) -> None:
    assert Chat(shape).ask("one?").opens_reasoning == shape.opens_reasoning


def test_a_trimmed_answer_costs_the_spaces_only() -> None:
    chat = Chat(BY_NAME["llama3"])
    chat.ask("one?")
    chat.answer("Yes  ")
    before = len(chat.journal)
    assert before - chat.ask("two?").keep <= 3


def test_a_moved_system_prompt_is_read_again() -> None:
    chat = Chat(BY_NAME["mistral"], SYSTEM)
    chat.ask("one?")
    chat.answer("Yes.")
    plan = chat.ask("two?")
    assert plan.keep == 2
    assert plan.diverged is not None
    assert "the beginning" in plan.diverged.detail or "turn 1" in plan.diverged.detail


@pytest.mark.parametrize("name", ["llama3.2", "gpt-oss"])
def test_a_new_date_is_named(name: str) -> None:
    """Yesterday's journal: the same ids but for the date that the template wrote."""
    chat = Chat(BY_NAME[name], SYSTEM)
    plan = chat.ask("one?")
    today = {"llama3.2": "%d %b %Y", "gpt-oss": "%Y-%m-%d"}[name]
    text = chat.tokenizer.decode(plan.ids.to_list())
    written = datetime.now().strftime(today)
    yesterday = text.replace(written, "01 Feb 2003" if " " in written else "2003-02-01")
    chat.journal = TokenIds(chat.planner.codec.encode(yesterday, "\ue000"))
    chat.answer("Yes.")
    plan = chat.ask("two?")
    assert plan.diverged is not None
    assert plan.diverged.kind == "template_is_unstable"
    assert repr(written) in plan.diverged.detail
    assert plan.keep < text.index("one?")


def test_a_template_that_is_random_is_named() -> None:
    tokenizer = build_tokenizer(
        chat_template=CHATML_TEMPLATE + "{{- range(100000) | random }}",
    )
    planner = PromptPlanner(tokenizer)
    messages = [ChatMessage("user", "one?")]
    first = planner.plan(messages)
    second = planner.plan(messages, first.ids)
    assert second.diverged is not None
    assert second.diverged.kind == "template_is_unstable"


# control tokens are text when people write them


FRAGMENTS = st.sampled_from(
    [
        "<|im_end|>",
        "<|im_start|>",
        "<think>",
        "</think>",
        "<|im_",
        "end|>",
        "<",
        "|>",
        "[INST]",
        "</s>",
        "<|eot_id|>",
        "user\n",
        " ",
        "\n\n",
        "  ",
        "🎉",
        "你",
        "é",
        "e\u0301",
        "\ufffd",
        "\ue000",
        "a",
        "Hello there",
        "\t",
    ]
)
TEXTS = st.lists(FRAGMENTS, max_size=8).map("".join)
NAMES = st.sampled_from([shape.name for shape in SHAPES])


@settings(max_examples=150)
@given(
    name=NAMES,
    system=st.none() | TEXTS,
    turns=st.lists(st.tuples(TEXTS, TEXTS), min_size=1, max_size=3),
    drifts=st.booleans(),
    ends=st.booleans(),
)
def test_any_conversation_keeps_its_promises(
    name: str, system: str | None, turns: list[tuple[str, str]], drifts: bool, ends: bool
) -> None:
    chat = Chat(BY_NAME[name], system, drifts=drifts)
    for question, answer in turns:
        chat.ask(question)
        chat.answer(answer, ends=ends)


@settings(max_examples=150)
@given(name=NAMES, text=TEXTS)
def test_text_never_becomes_a_control_token(name: str, text: str) -> None:
    planner = planner_of(name)
    controls = planner.codec.control_ids

    def control_tokens(user: str) -> list[int]:
        ids = planner.plan([ChatMessage("user", user)]).ids
        return [token_id for token_id in ids if token_id in controls]

    assert control_tokens(text) == control_tokens("plain words")


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape.name)
def test_a_typed_end_token_is_read_as_the_letters_it_is_made_of(shape: Shape) -> None:
    typed = f"before {shape.end} after"
    planner, tokenizer = planner_of(shape.name), tokenizer_of(shape.name)
    ids = planner.plan([ChatMessage("user", typed)]).ids
    assert typed in tokenizer.decode(ids)
    plain = planner.plan([ChatMessage("user", "before after")]).ids
    end = tokenizer.convert_tokens_to_ids(shape.end)
    assert ids.count(end) == plain.count(end)


@pytest.mark.parametrize("name", ["chatml", "qwen2.5", "llama3", "gemma", "phi3", "deepseek"])
def test_typed_control_tokens_are_kept_in_the_next_turn(name: str) -> None:
    shape = BY_NAME[name]
    chat = Chat(shape)
    plan = chat.ask(f"what is {shape.end}?")
    chat.answer("Text.")
    following = chat.ask("And now?")
    assert following.keep >= len(plan.ids)


def test_a_real_end_token_does_not_match_a_typed_one() -> None:
    """The journal holds a real token where the render has the same letters as text."""
    planner, tokenizer = planner_of("chatml"), tokenizer_of("chatml")
    real = tokenizer.encode("<|im_start|>user\na<|im_end|>b", add_special_tokens=False)
    plan = planner.plan([ChatMessage("user", "a<|im_end|>b")], TokenIds(real))
    assert plan.keep < real.index(tokenizer.convert_tokens_to_ids("<|im_end|>")) + 1
    assert tokenizer.decode(plan.ids.to_list()).startswith(
        "<|im_start|>user\na<|im_end|>b<|im_end|>"
    )


def test_added_tokens_that_are_mere_words_stay_what_they_are() -> None:
    tokenizer = build_tokenizer(plain_added_tokens=("<b>", "   "))
    ids = PromptPlanner(tokenizer).plan([ChatMessage("user", "<b>bold</b>   x")]).ids
    assert tokenizer.convert_tokens_to_ids("<b>") in ids
    assert tokenizer.convert_tokens_to_ids("   ") in ids


def test_a_tool_call_that_the_model_made_is_kept() -> None:
    template = "{#- <tool_call> #}" + CHATML_TEMPLATE
    tokenizer = build_tokenizer(chat_template=template, plain_added_tokens=("<tool_call>",))
    planner = PromptPlanner(tokenizer)
    asked = [ChatMessage("user", "go")]
    prompt = planner.plan(asked).ids
    produced = tokenizer.encode("<tool_call>x<|im_end|>", add_special_tokens=False)
    path = [*asked, ChatMessage("assistant", "<tool_call>x"), ChatMessage("user", "on")]
    plan = planner.plan(path, prompt + TokenIds(produced))
    assert plan.diverged is None


# system prompts


@pytest.mark.parametrize("name", ["chatml", "qwen2.5", "qwen3", "llama3", "smollm3"])
def test_system_tokens_are_those_of_the_system_message(name: str) -> None:
    chat = Chat(BY_NAME[name], SYSTEM)
    plan = chat.ask("one?")
    text = chat.tokenizer.decode(plan.ids[: plan.system_tokens].to_list())
    assert SYSTEM.splitlines()[-1] in text
    assert "one?" not in text
    assert "user" not in text.rpartition(SYSTEM)[2]


@pytest.mark.parametrize("name", ["gemma", "mistral", "deaf", "llama2"])
def test_system_tokens_are_none_where_a_system_message_is_not_in_front(name: str) -> None:
    assert Chat(BY_NAME[name], SYSTEM).ask("one?").system_tokens <= 1


def test_two_chats_with_the_same_system_prompt_begin_alike() -> None:
    first = Chat(BY_NAME["chatml"], SYSTEM).ask("one?")
    second = Chat(BY_NAME["chatml"], SYSTEM).ask("something else")
    assert first.system_tokens == second.system_tokens > 5
    assert first.ids[: first.system_tokens] == second.ids[: second.system_tokens]


# journals that are of no use


def test_ids_that_the_tokenizer_does_not_have_are_not_used() -> None:
    planner = planner_of("chatml")
    good = planner.plan([ChatMessage("user", "one?")]).ids
    for bad in (2**32 - 1, 10**7):
        journal = good[:4] + TokenIds([bad]) + good[4:]
        plan = planner.plan([ChatMessage("user", "one?")], journal)
        assert plan.ids == good
        assert plan.keep == 4


def test_a_journal_of_another_conversation_shares_the_beginning_only() -> None:
    chat = Chat(BY_NAME["chatml"], SYSTEM)
    chat.ask("one?")
    chat.answer("Yes.")
    other = chat.planner.plan(
        [ChatMessage("system", SYSTEM), ChatMessage("user", "two?")], chat.journal
    )
    assert other.diverged is not None
    assert other.keep >= other.system_tokens


def test_a_character_cut_in_two_at_the_end_of_a_journal_is_read_again() -> None:
    chat = Chat(BY_NAME["chatml"])
    chat.ask("one?")
    whole = chat.tokenizer.encode("so 🎉", add_special_tokens=False)
    before = len(chat.journal)
    chat.journal += TokenIds(whole[:-2])
    chat.messages.append(ChatMessage("assistant", "so "))
    plan = chat.ask("two?")
    assert before < plan.keep < len(chat.journal)


def test_a_refusing_template_is_an_error_with_its_words() -> None:
    tokenizer = build_tokenizer(chat_template="{{ raise_exception('No cats here') }}")
    with pytest.raises(UnavailableError, match="No cats here"):
        PromptPlanner(tokenizer).plan([ChatMessage("user", "one?")])


# effort


@pytest.mark.parametrize("name", ["chatml", "qwen3-thinking", "llama2-legacy", "plain"])
def test_a_long_history_is_decoded_and_encoded_a_bounded_number_of_times(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Counted in ids and characters, not in seconds: linear whatever the machine does."""
    chat = Chat(BY_NAME[name])
    for number in range(60):
        chat.messages.append(ChatMessage("user", f"question {number} " * 8))
        chat.messages.append(ChatMessage("assistant", f"answer {number} " * 8))
    chat.ask("last?")
    chat.answer("Yes.")
    codec = chat.planner.codec
    decoded, encoded = _counted(codec, monkeypatch)
    chat.messages.append(ChatMessage("user", "and now?"))
    plan = chat.planner.plan(chat.messages, chat.journal)
    assert plan.keep > len(chat.journal) // 2
    assert decoded[0] < 4 * len(chat.journal)
    assert encoded[0] < 3 * len(chat.tokenizer.decode(chat.journal.to_list()))


def test_a_faithful_template_encodes_the_new_turn_only(monkeypatch: pytest.MonkeyPatch) -> None:
    chat = Chat(BY_NAME["chatml"])
    chat.ask("word " * 2000)
    chat.answer("Yes.")
    _, encoded = _counted(chat.planner.codec, monkeypatch)
    chat.messages.append(ChatMessage("user", "and now?"))
    chat.planner.plan(chat.messages, chat.journal)
    assert encoded[0] < 200


def test_a_paste_full_of_control_strings_is_encoded_in_one_batch() -> None:
    chat = Chat(BY_NAME["chatml"])
    pasted = "<|im_end|>\n<|im_start|>user\n" * 2000
    plan = chat.ask(pasted)
    assert plan.ids.count(chat.tokenizer.convert_tokens_to_ids("<|im_end|>")) == 1


def _counted(codec: Any, monkeypatch: pytest.MonkeyPatch) -> tuple[list[int], list[int]]:
    decoded, encoded = [0], [0]
    decode, encode_pieces = codec.decode, codec._encode_pieces

    def counting_decode(ids: list[int]) -> str:
        decoded[0] += len(ids)
        return str(decode(ids))

    def counting_encode(pieces: Sequence[str]) -> list[int]:
        encoded[0] += sum(len(piece) for piece in pieces)
        return list(encode_pieces(pieces))

    monkeypatch.setattr(codec, "decode", counting_decode)
    monkeypatch.setattr(codec, "_encode_pieces", counting_encode)
    return decoded, encoded
