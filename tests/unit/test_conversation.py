"""The tree as pure functions: ids, turns, names, and what the model is told."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chatcache.backends.base import ChatMessage
from chatcache.chat.conversation import (
    AUTO_NAME_LENGTH,
    Message,
    check_turn,
    child_of,
    clean_name,
    clean_text,
    grow,
    messages_for_model,
    name_from,
    node_id_of,
    one_line,
    order_problem,
    with_system,
)
from chatcache.errors import NotFoundError, UsageError

SYSTEM = Message("system", "Be brief.", created_ms=1)
HELLO = Message("user", "Hello", created_ms=2)
HI = Message("assistant", "Hi.", model="m", finish_reason="stop", created_ms=3)
MORE = Message("user", "More", created_ms=4)


def test_an_id_covers_the_words_and_everything_above_them() -> None:
    path = grow(None, [SYSTEM, HELLO, HI])
    other = grow(None, [Message("system", "Be long.", created_ms=1), HELLO, HI])
    assert [node.node_id for node in path] == [
        node.node_id for node in grow(None, [SYSTEM, HELLO, HI])
    ]
    assert not {node.node_id for node in path} & {node.node_id for node in other}
    assert path[2].parent_id == path[1].node_id


def test_the_id_of_a_message_is_fixed_for_all_time() -> None:
    # Databases in the field depend on this value.
    assert node_id_of("b2:00", HI) == (
        "b2:976b2eb2b7dedcad3bc5cc7cf092813a80ffc5d2f7b04ab51cce232e7eea4830"
    )


@pytest.mark.parametrize(
    "changed",
    [
        Message("user", "Hi.", model="m", finish_reason="stop", created_ms=3),
        Message("assistant", "Hi!", model="m", finish_reason="stop", created_ms=3),
        Message("assistant", "Hi.", "thought", model="m", finish_reason="stop", created_ms=3),
        Message("assistant", "Hi.", model="n", finish_reason="stop", created_ms=3),
        Message("assistant", "Hi.", model="m", finish_reason="length", created_ms=3),
        Message("assistant", "Hi.", model="m", finish_reason="stop", created_ms=4),
    ],
)
def test_every_part_of_a_message_is_in_its_id(changed: Message) -> None:
    assert node_id_of("b2:00", changed) != node_id_of("b2:00", HI)


def test_turns_are_counted_by_user_messages() -> None:
    assert [node.turn for node in grow(None, [SYSTEM, HELLO, HI, MORE, MORE])] == [0, 1, 1, 2, 3]
    assert [node.turn for node in grow(None, [HELLO, HI])] == [1, 1]


def test_only_what_makes_a_conversation_may_follow() -> None:
    assert order_problem(None, "system") is None
    assert order_problem(None, "user") is None
    assert order_problem("user", "user") is None
    assert order_problem("user", "assistant") is None
    assert order_problem("user", "system")
    assert order_problem("assistant", "assistant")
    assert order_problem(None, "assistant")


def test_unanswered_messages_are_joined_for_the_model() -> None:
    path = grow(None, [SYSTEM, HELLO, MORE])
    assert messages_for_model(path) == (
        ChatMessage("system", "Be brief."),
        ChatMessage("user", "Hello\n\nMore"),
    )


def test_reasoning_is_told_to_the_template() -> None:
    path = grow(None, [HELLO, Message("assistant", "Hi", "hm")])
    assert messages_for_model(path)[1] == ChatMessage("assistant", "Hi", "hm")


def test_another_system_prompt_makes_every_node_new() -> None:
    path = grow(None, [SYSTEM, HELLO, HI])
    bare = with_system(path, None)
    assert [node.text for node in bare] == ["Hello", "Hi."]
    again = with_system(bare, SYSTEM)
    assert [node.node_id for node in again] == [node.node_id for node in path]


def test_a_bad_turn_is_answered_with_the_range() -> None:
    check_turn(0, 0)
    check_turn(3, 3)
    with pytest.raises(NotFoundError, match="turns 0 to 3"):
        check_turn(4, 3)
    with pytest.raises(NotFoundError, match="turns 0 to 3"):
        check_turn(-1, 3)
    with pytest.raises(NotFoundError, match="no turns yet"):
        check_turn(1, 0, first=1)


@pytest.mark.parametrize("text", ["", " ", "\n\t  \n", "\u3000"])
def test_an_empty_message_is_refused(text: str) -> None:
    with pytest.raises(UsageError):
        clean_text(text)


def test_only_what_cannot_be_stored_is_replaced() -> None:
    assert clean_text(" a\x00b\ud800c\x1b[2J\r\n ") == " a\ufffdb\ufffdc\x1b[2J\r\n "


def test_names_are_one_visible_line() -> None:
    assert clean_name("  two\nlines\x1b[31m\u202e here ") == "two lines [31m here"
    for bad in ("", " \n", "\x00\x07", "x" * 201):
        with pytest.raises(UsageError):
            clean_name(bad)


def test_a_name_is_taken_from_the_first_words() -> None:
    assert name_from("  Why is\nthe sky blue? ") == "Why is the sky blue?"
    long = name_from("Explain the difference between a mutex and a semaphore, please")
    assert long == "Explain the difference between a mutex…"
    assert name_from("\x07\x00") == ""
    assert len(name_from("x" * 500)) == AUTO_NAME_LENGTH


@given(st.text(max_size=300))
def test_any_text_gives_a_short_single_line_name(text: str) -> None:
    name = name_from(text)
    assert len(name) <= AUTO_NAME_LENGTH
    assert not any(char < " " or char == "\x7f" for char in name)
    assert name == name.strip()


def test_one_line_cuts_with_an_ellipsis() -> None:
    assert one_line("a  b\nc", 10) == "a b c"
    assert one_line("abcdefghij", 5) == "abcd…"


@given(st.text(alphabet=st.characters(codec="utf-8")))
def test_any_text_has_an_id(text: str) -> None:
    assert child_of(None, Message("user", text)).node_id.startswith("b2:")
