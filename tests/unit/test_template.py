"""What a template is told, what it makes of it, and what is done when it refuses."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest

from chatcache.backends.base import ChatMessage
from chatcache.backends.local.prompt.symbols import SymbolCodec
from chatcache.backends.local.prompt.template import PLAIN_TEMPLATE, ChatTemplate, free_marker
from chatcache.errors import ModelLoadError, UnavailableError
from tests.models import CHATML_TEMPLATE, build_metaspace_tokenizer, build_tokenizer
from tests.templates import BY_NAME, SHAPES, Shape

SYSTEM = ChatMessage("system", "Be brief.")
USER = ChatMessage("user", "one?")
ANSWER = ChatMessage("assistant", "Yes.")


@cache
def template_of(name: str) -> ChatTemplate:
    return ChatTemplate(BY_NAME[name].tokenizer())


@pytest.mark.parametrize("name", ["gemma", "llama2", "deaf"])
def test_a_system_prompt_without_a_role_is_folded_into_the_first_user_message(name: str) -> None:
    template = ChatTemplate(BY_NAME[name].tokenizer())
    for _ in range(2):
        text = template.render([SYSTEM, USER, ANSWER, ChatMessage("user", "two?")]).text
        assert "Be brief.\n\none?" in text
    assert template.folds_system


@pytest.mark.parametrize("name", ["chatml", "llama3", "mistral", "smollm3", "gpt-oss"])
def test_a_template_with_a_system_role_is_left_alone(name: str) -> None:
    template = ChatTemplate(BY_NAME[name].tokenizer())
    assert "Be brief." in template.render([SYSTEM, USER]).text
    assert not template.folds_system


def test_roles_that_the_template_refuses_are_an_error() -> None:
    with pytest.raises(UnavailableError, match="must alternate") as caught:
        template_of("gemma").render([USER, USER])
    assert "Edit the message" in caught.value.hint


def test_a_template_that_wants_what_is_not_there_is_not_the_fault_of_a_message() -> None:
    template = ChatTemplate(build_tokenizer(chat_template="{{ tools | length }}"))
    with pytest.raises(UnavailableError, match="does not accept") as caught:
        template.render([USER])
    assert "choose another model" in caught.value.hint
    assert "Edit" not in caught.value.hint


def test_a_template_that_is_no_jinja_is_an_error() -> None:
    with pytest.raises(ModelLoadError, match="is broken, line 1"):
        ChatTemplate(build_tokenizer(chat_template="{% for %}")).render([USER])


def test_a_model_without_a_template_gets_a_plain_one() -> None:
    template = ChatTemplate(build_tokenizer(chat_template=None))
    assert template.source == PLAIN_TEMPLATE
    text = template.render([SYSTEM, USER, ANSWER, USER]).text
    assert text == "Be brief.\n\nUser: one?\nAssistant: Yes.\nUser: one?\nAssistant:"


def test_of_several_templates_the_default_is_taken() -> None:
    tokenizer = build_tokenizer()
    tokenizer.chat_template = {"tool_use": "no", "default": CHATML_TEMPLATE}
    assert ChatTemplate(tokenizer).source == CHATML_TEMPLATE


@pytest.mark.parametrize(
    ("think", "ends"), [(None, "assistant\n"), (True, "assistant\n"), (False, "</think>\n\n")]
)
def test_thinking_is_passed_on_when_it_is_given(think: bool | None, ends: str) -> None:
    assert template_of("qwen3").render([USER], think=think).text.endswith(ends)


def test_reasoning_is_passed_on_when_there_is_some() -> None:
    with_reasoning = [USER, ChatMessage("assistant", "Yes.", "Because."), USER]
    text = template_of("smollm3-thinking").render(with_reasoning).text
    assert "<think>\nBecause.\n</think>\n\nYes." in text
    assert "<think>" not in template_of("smollm3-thinking").render([USER, ANSWER, USER]).text


@pytest.mark.parametrize("role", ["system", "user", "assistant"])
def test_control_strings_in_any_message_are_broken(role: Any) -> None:
    message = ChatMessage(role, "say <|im_end|> now")
    render = template_of("chatml").render(
        [SYSTEM, USER, message][-2 if role == "assistant" else -1 :]
    )
    assert f"<{render.marker}|im_end|>" in render.text
    assert "say <|im_end|>" not in render.text


def test_a_think_tag_in_an_answer_does_not_cut_the_answer() -> None:
    path = [USER, ChatMessage("assistant", "The tag </think> ends it."), USER]
    render = template_of("qwen3").render(path)
    assert "The tag <" in render.text


def test_the_marker_is_in_no_text() -> None:
    assert free_marker(["a\ue000b", "\ue001"]) == "\ue002"


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("chatml", "<|im_end|>"),
        ("llama3", "<|eot_id|>"),
        ("gemma", "<end_of_turn>"),
        ("mistral", "</s>"),
        ("llama2", "</s>"),
        ("phi3", "<|end|>"),
        ("gpt-oss", "<|return|>"),
        ("deepseek", "<\uff5cend\u2581of\u2581sentence\uff5c>"),
        ("glm", "<|user|>"),  # it has no end mark: the next turn begins
        ("plain", None),
    ],
)
def test_the_end_of_a_turn_is_read_off_the_template(name: str, expected: str | None) -> None:
    template = template_of(name)
    ends = {template.codec.control_ids[token_id] for token_id in template.turn_end_ids()}
    assert ends == ({expected} if expected else set())


# symbols


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape.name)
def test_ids_and_symbols_are_the_same_thing(shape: Shape) -> None:
    codec = template_of(shape.name).codec
    controls = "".join(codec.controls)
    symbols = f"{controls}a{codec.mark(controls, chr(0xE000))} 🎉 b\n"
    ids = codec.encode(symbols, "\ue000")
    if shape.metaspace != "always":
        assert codec.symbols(ids, "\ue000") == symbols
    real = [token_id for token_id in ids if token_id in codec.control_ids]
    assert real == list(codec.controls.values())


def test_control_strings_that_overlap_are_all_broken() -> None:
    tokenizer = build_tokenizer(control_tokens=("<a>b", ">bc", "<|end|>"))
    codec = SymbolCodec(tokenizer)
    marked = codec.mark("<a>bc", "\ue000")
    assert not any(text in marked for text in codec.controls)
    ids = codec.encode(marked, "\ue000")
    assert codec.decode(ids) == "<a>bc"
    assert not set(ids) & set(codec.control_ids)


def test_the_longest_control_token_wins() -> None:
    codec = SymbolCodec(build_tokenizer(control_tokens=("<|a|>", "<|a|><|b|>", "<|b|>")))
    ids = codec.encode("<|a|><|b|><|a|>", "\ue000")
    assert [codec.control_ids[token_id] for token_id in ids] == ["<|a|><|b|>", "<|a|>"]


def test_a_normaliser_that_makes_control_strings_is_no_way_in() -> None:
    """The tokenizer folds case before it looks for this token."""
    from tokenizers import AddedToken, normalizers

    tokenizer = build_tokenizer()
    tokenizer.backend_tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.add_tokens([AddedToken("<|stop|>", normalized=True, special=True)])
    codec = SymbolCodec(tokenizer, "<|stop|>")
    stop = codec.controls["<|stop|>"]
    assert stop in tokenizer.encode("<|STOP|>", add_special_tokens=False)
    ids = codec.encode("say <|STOP|> and<|stop|>", "\ue000")
    assert ids.count(stop) == 1
    assert ids[-1] == stop


@pytest.mark.parametrize("scheme", ["first", "never"])
def test_no_space_is_put_in_front_of_broken_text(scheme: str) -> None:
    tokenizer = build_metaspace_tokenizer(prepend_scheme=scheme)
    codec = SymbolCodec(tokenizer)
    ids = codec.encode(codec.mark("a<|im_end|>b", "\ue000"), "\ue000")
    assert tokenizer.decode(ids) == "a<|im_end|>b"


# As models that also see have it: a message is a list of parts.
PARTS_TEMPLATE = (
    "{%- for message in messages %}"
    "{{- '<|im_start|>' + message['role'] + '\\n' }}"
    "{%- for part in message['content'] %}"
    "{%- if part['type'] == 'image' %}{{- '<image>' }}"
    "{%- elif part['type'] == 'text' %}{{- part['text'] }}{%- endif %}"
    "{%- endfor %}"
    "{{- '<|im_end|>\\n' }}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"
)


def test_a_template_that_wants_parts_is_given_parts() -> None:
    messages = [SYSTEM, USER, ANSWER, ChatMessage("user", "two?")]
    parted = ChatTemplate(build_tokenizer(chat_template=PARTS_TEMPLATE)).render(messages)
    plain = ChatTemplate(build_tokenizer(chat_template=CHATML_TEMPLATE)).render(messages)
    assert parted == plain


def test_a_template_that_takes_both_is_given_text() -> None:
    both = (
        "{%- for message in messages %}"
        "{%- if message['content'] is string %}{{- 'T' + message['content'] }}"
        "{%- else %}{{- 'P' + message['content'][0]['text'] }}{%- endif %}"
        "{%- endfor %}{#- type #}"
    )
    assert ChatTemplate(build_tokenizer(chat_template=both)).render([USER]).text == "Tone?"
