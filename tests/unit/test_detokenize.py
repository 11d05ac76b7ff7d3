"""Text appears id by id, whole characters only, and in the end it is what decoding all gives."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chatcache.backends.local.prompt.detokenize import CharacterStream, Detokenizer, plain_decode
from tests.models import TURN_END, build_metaspace_tokenizer, build_tokenizer

TEXTS = (
    "Hello, world.",
    "naïve café",
    "你好，世界！再见",
    "a 🎉🎉 family 👩‍👩‍👧 flag 🇩🇪",
    "  two spaces\n\n\tand a tab",
    "\ufffd",
    "x\ufffdy\ufffd",
    "مرحبا بالعالم",
)


@pytest.fixture(scope="module", params=["byte_level", "metaspace"])
def tokenizer(request: pytest.FixtureRequest) -> Any:
    return build_tokenizer() if request.param == "byte_level" else build_metaspace_tokenizer()


@pytest.fixture(scope="module")
def byte_level() -> Any:
    return build_tokenizer()


def encode(tokenizer: Any, text: str) -> list[int]:
    return tokenizer.encode(text, add_special_tokens=False)


def stream(detokenizer: Detokenizer, ids: list[int]) -> list[str]:
    return [*(detokenizer.push(token_id) for token_id in ids), detokenizer.finish()]


@pytest.mark.parametrize("text", TEXTS)
def test_pieces_join_to_the_decoded_text(tokenizer: Any, text: str) -> None:
    ids = encode(tokenizer, text)
    assert "".join(stream(Detokenizer(tokenizer), ids)) == tokenizer.decode(ids)


@settings(max_examples=100)
@given(text=st.text(max_size=60))
def test_any_text_comes_out_whole(text: str) -> None:
    tokenizer = _byte_level()
    pieces = stream(Detokenizer(tokenizer), encode(tokenizer, text))
    assert "".join(pieces) == text


@pytest.mark.parametrize("text", ["🎉", "你好", "é", "👩‍👩‍👧"])
def test_no_half_character_is_shown(tokenizer: Any, text: str) -> None:
    pieces = stream(Detokenizer(tokenizer), encode(tokenizer, text))
    assert all("\ufffd" not in piece for piece in pieces)


@pytest.mark.parametrize("text", ["good 🎉", "so 你"])
def test_a_character_that_is_never_finished_is_not_text(byte_level: Any, text: str) -> None:
    ids = encode(byte_level, text)[:-1]
    assert "".join(stream(Detokenizer(byte_level), ids)) == text[:-1]


def test_bytes_that_can_no_longer_be_a_character_are_replaced(byte_level: Any) -> None:
    half = encode(byte_level, "🎉")[:2]
    ids = [*half, *encode(byte_level, "abc")]
    assert "".join(stream(Detokenizer(byte_level), ids)) == "\ufffdabc"


def test_a_continued_answer_completes_the_character_that_was_cut(byte_level: Any) -> None:
    ids = encode(byte_level, "it is 🎉!")
    at = len(ids) - 3
    first = "".join(stream(Detokenizer(byte_level), ids[:at]))
    second = "".join(stream(Detokenizer(byte_level, context=ids[:at]), ids[at:]))
    assert (first, second) == ("it is ", "🎉!")


@pytest.mark.parametrize("text", ["one two three", "你好，世界！再见你好，世界！再见你好，世界"])
def test_a_continued_answer_keeps_every_character(tokenizer: Any, text: str) -> None:
    ids = encode(tokenizer, text)
    for at in range(1, len(ids)):
        first = "".join(stream(Detokenizer(tokenizer), ids[:at]))
        second = "".join(stream(Detokenizer(tokenizer, context=ids[:at]), ids[at:]))
        assert first + second == text


def test_special_tokens_are_hidden_and_others_shown(byte_level: Any) -> None:
    ids = encode(byte_level, f"<think>so{TURN_END}")
    assert "".join(stream(Detokenizer(byte_level), ids)) == "<think>so"


def test_a_special_token_can_be_asked_for(byte_level: Any) -> None:
    ids = encode(byte_level, f"so{TURN_END}")
    assert "".join(stream(Detokenizer(byte_level, shown=[TURN_END]), ids)) == f"so{TURN_END}"


def test_cost_of_a_long_text_is_linear(byte_level: Any) -> None:
    """Each push decodes a bounded number of ids, also in text that is garbled throughout."""
    longest = 0
    decode = plain_decode(byte_level)

    def counting(ids: list[int]) -> str:
        nonlocal longest
        longest = max(longest, len(ids))
        return decode(ids)

    garbage = encode(byte_level, "🎉")[:1] * 500
    characters = CharacterStream(counting)
    for token_id in [*encode(byte_level, "word " * 500), *garbage]:
        characters.push(token_id)
    assert longest <= 40


@cache
def _byte_level() -> Any:
    return build_tokenizer()
