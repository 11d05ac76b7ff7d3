"""What crosses the socket: every message comes out as it went in, and nothing else is let in."""

from __future__ import annotations

import typing
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chatcache.backends.base import (
    BackendFailed,
    CostEstimate,
    TextDelta,
    TurnFailed,
    TurnPlanned,
)
from chatcache.backends.local.engine import wire
from chatcache.backends.local.engine.codec import ProtocolError
from chatcache.backends.local.engine.settings import EngineSettings
from chatcache.errors import (
    ContextFullError,
    DamagedStorageError,
    ModelLoadError,
    UnavailableError,
)
from chatcache.token_ids import TokenIds

KINDS = [*typing.get_args(wire.ToEngine), *typing.get_args(wire.FromEngine)]

st.register_type_strategy(TokenIds, st.lists(st.integers(0, (1 << 32) - 1)).map(TokenIds))
st.register_type_strategy(
    Path, st.text("abc/ ä", min_size=1).map(lambda name: Path("/tmp") / name.strip("/"))
)
# Errors are equal by what they say; see below. Texts are what UTF-8 can have.
st.register_type_strategy(Exception, st.none())
st.register_type_strategy(str, st.text(st.characters(exclude_categories=["Cs"])))
INTEGERS = st.integers(-(1 << 63), (1 << 64) - 1)
st.register_type_strategy(int, INTEGERS)
st.register_type_strategy(float, st.floats(allow_nan=False))


@settings(max_examples=30)
@given(st.data())
@pytest.mark.parametrize(
    "kind", [kind for kind in KINDS if kind not in (BackendFailed, TurnFailed)]
)
def test_every_message_comes_out_as_it_went_in(kind: type, data: st.DataObject) -> None:
    message = data.draw(st.from_type(kind))
    assert wire.CODEC.decode(wire.CODEC.encode(message)) == message


@pytest.mark.parametrize(
    "error",
    [
        UnavailableError("It is not there.", "Wait."),
        ModelLoadError("config.json is missing."),
        ContextFullError("It is too long.", "Fork it.", 5000, 4096),
        DamagedStorageError("half a character \ud800", ""),
    ],
)
def test_errors_keep_their_kind_their_words_and_their_numbers(error: UnavailableError) -> None:
    came = wire.CODEC.decode(wire.CODEC.encode(TurnFailed("t", error))).error
    assert type(came) is type(error)
    assert came.exit_code == error.exit_code
    assert came.message == error.message.encode("utf-8", "replace").decode()
    assert came.hint == error.hint
    if isinstance(error, ContextFullError):
        assert (came.num_tokens, came.limit) == (5000, 4096)


def test_an_unexpected_error_arrives_as_its_text() -> None:
    came = wire.CODEC.decode(wire.CODEC.encode(TurnFailed("t", ZeroDivisionError("by design"))))
    assert isinstance(came.error, UnavailableError)
    assert "ZeroDivisionError: by design" in came.error.message


def test_a_path_that_is_no_text_arrives_as_it_is() -> None:
    wanted = EngineSettings("builtin", Path("/tmp/\udcff"), Path("/tmp/log"))
    hello = wire.Hello(1, "1", "ask", wanted)
    assert wire.CODEC.decode(wire.CODEC.encode(hello)) == hello


def test_half_a_character_does_not_stop_an_answer() -> None:
    came = wire.CODEC.decode(wire.CODEC.encode(TextDelta("t", "so \udcff", False, 1)))
    assert came == TextDelta("t", "so ?", False, 1)


@given(st.binary(max_size=300))
def test_bytes_from_anywhere_are_refused_or_a_message(content: bytes) -> None:
    try:
        message = wire.CODEC.decode(content)
    except ProtocolError:
        return
    assert type(message) in KINDS


@given(st.sampled_from(KINDS), st.dictionaries(st.text(max_size=12), INTEGERS, max_size=4))
def test_wrong_fields_are_refused_or_left_out(kind: type, fields: dict[str, int]) -> None:
    content = msgspec.msgpack.encode((kind.__name__, fields))
    try:
        message = wire.CODEC.decode(content)
    except ProtocolError:
        return
    assert type(message) is kind


def test_fields_of_a_later_version_are_left_out_and_those_of_an_earlier_one_have_defaults() -> None:
    content = msgspec.msgpack.encode(("SpillAll", {"how": "quickly"}))
    assert wire.CODEC.decode(content) == wire.SpillAll()


@pytest.mark.parametrize("ids", [b"abc", "text", 7, [1, 2]])
def test_token_ids_of_another_form_are_refused(ids: object) -> None:
    fields = {
        **dict.fromkeys(("keep", "cached_ram_tokens", "cached_disk_tokens", "prompt_tokens"), 0),
        **{"turn_id": "t", "new_ids": ids, "reason": "cold_start", "detail": ""},
    }
    with pytest.raises(ProtocolError):
        wire.CODEC.decode(msgspec.msgpack.encode((TurnPlanned.__name__, fields)))


def test_what_is_no_message_is_not_sent() -> None:
    with pytest.raises(TypeError):
        wire.CODEC.encode(CostEstimate(0, 0, 0, None))
