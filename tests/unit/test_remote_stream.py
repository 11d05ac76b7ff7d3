"""What servers send as a stream, in every form that was met: bytes decide, and no word is lost."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chatcache.backends.remote.stream_reader import StreamPiece, StreamReader
from tests.fake_server import FakeServer, Raw, Status, Whole
from tests.unit.test_remote_backend import Remote

LIMIT = 1 << 20


@pytest.fixture
def remote() -> Iterator[Remote]:
    with FakeServer() as server:
        remote = Remote(server)
        yield remote
        remote.backend.close()


def said(text: str, finish: str | None = None) -> bytes:
    choice = {"delta": {"content": text}, "finish_reason": finish}
    return json.dumps({"choices": [choice]}, ensure_ascii=False).encode()


def event(text: str, finish: str | None = None) -> bytes:
    return b"data: " + said(text, finish) + b"\n\n"


HI = event("Hi") + event(" there", "stop")
DONE = b"data: [DONE]\n\n"


@pytest.mark.parametrize("kind", ["text/event-stream", "text/plain", "application/json", "", None])
@pytest.mark.parametrize(
    "body",
    [
        b"data: null\n\n" + HI + DONE,
        b"\xef\xbb\xbf" + HI + DONE,
        HI.replace(b"\n", b"\r\n") + DONE,
        HI.replace(b"\n", b"\r") + b"data:[DONE]\r\r",
        HI.replace(b"data: ", b"data:") + DONE,
        HI.replace(b"\n\n", b"\n") + b"data: [DONE]\n",  # no blank lines
        b"data: \n\ndata: {}\n\ndata: []\n\n: ping\n\nevent: ping\ndata: ping\n\nid: 7\n\n" + HI,
        b'data: "keep"\n\nretry: 100\n\nevent: ping\n\n' + HI + b"data: 0\n\n" + DONE,
        event("Hi") + b"data: " + said(" there", "stop"),  # the last line has no end
        event("Hi") + event(" there") + b'data: "[DONE]"\n\n',
        HI + DONE + b"data: {more of it\n\n",
        b'data: {"choices":\ndata: [{"delta": {"content": "Hi there"}}]}\n\n' + DONE,
        b'data: {"choices":\n[{"delta": {"content": "Hi there"}}]}\n\n' + DONE,
        said("Hi") + b"\n" + said(" there", "stop") + b"\n",  # an object per line
        said("Hi") + b"\n\n" + said(" there") + b"\n[DONE]\n",
        b'{"choices": [{"message": {"content": "Hi there"}}]}',
        b'{\n  "choices": [\n {"message": {"content": "Hi there"}}\n]\n}\n',
        b'[{"choices": [{"delta": {"content": "Hi there"}, "finish_reason": "stop"}]}]',
        b'data: {"choices": [{"text": "Hi there", "finish_reason": "stop"}]}\n\n',
        b'data: {"error": null, "choices": [{"delta": {"content": "Hi there"}}]}\n\n' + DONE,
    ],
)
def test_whatever_it_is_called_the_words_arrive(
    remote: Remote, body: bytes, kind: str | None
) -> None:
    remote.server.plan(Raw([body], kind), Raw([bytes([byte]) for byte in body], kind))
    assert remote.result().text == "Hi there"
    assert remote.result().text == "Hi there"


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b"event: error\ndata: null\n\n" + DONE, ""),
        (b"event: error\n\n" + DONE, ""),
        (b"event: error\n" + DONE, ""),
        (b"event:error", ""),
        (b"event: error\ndata: out of memory\n\n" + DONE, " It says: out of memory."),
        (b"event: error\ndata: out of\ndata: memory\n\n", " It says: out of memory."),
        (b'event: error\ndata: "out of memory"\n\n', " It says: out of memory."),
        (b"event: server_error\ndata: gone\n\n", " It says: gone."),
        (b'error: {"code": 500, "message": "gone"}\n\n', " It says: gone."),
        (b'data: {"error": "gone"}\n\n', " It says: gone."),
        (b'data: {"error": true, "message": "gone"}\n\n', " It says: gone."),
        (b'data: {"error": {}}\n\n', ""),
        (b'data: {"object": "error", "message": "gone"}\n\n', " It says: gone."),
        (b'data: {"type": "error", "error": {"message": "gone"}}\n\n', " It says: gone."),
        (b'data: {"detail": "gone"}\n\n', " It says: gone."),
        (b'data: {"choices": [{"delta": {}, "finish_reason": "error"}]}\n\n', ""),
        (b'data: {"choices": [{"error": {"message": "gone"}}]}\n\n', " It says: gone."),
        (b'data: [{"error": {"message": "gone"}}]\n\n', " It says: gone."),
    ],
)
def test_what_is_called_an_error_ends_the_turn_and_keeps_the_words(
    remote: Remote, body: bytes, says: str
) -> None:
    remote.server.plan(Raw([event("Half an"), body]), Raw([body]))
    failed = remote.failure()
    assert failed.error.message.endswith(f"broke the answer off with an error.{says}")  # type: ignore[attr-defined]
    assert failed.partial is not None
    assert failed.partial.text == "Half an"
    alone = remote.failure()
    assert alone.error.message.endswith(f"sent an error, and no answer.{says}")  # type: ignore[attr-defined]
    assert alone.partial is None


@pytest.mark.parametrize("reason", ["", "null", "None", None])
def test_a_reason_that_is_none_ends_nothing(remote: Remote, reason: str | None) -> None:
    """Some say it with every piece: an answer that breaks off is not whole then."""
    remote.server.plan(
        Raw([event("Half", reason)]), Raw([event("Wh", reason), event("ole", "stop")])
    )
    assert "in the middle of the answer" in str(remote.failure().error)
    assert remote.result().text == "Whole"


@pytest.mark.parametrize("reason", ["abort", "insufficient_system_resource", "network_error"])
def test_a_reason_that_is_a_failure_is_one(remote: Remote, reason: str) -> None:
    remote.server.plan(Raw([event("Half"), event("", reason), DONE]))
    failed = remote.failure()
    assert failed.partial is not None
    assert failed.partial.text == "Half"


@pytest.mark.parametrize("reason", ["length", "max_tokens", "MAX_TOKENS"])
def test_a_limit_has_several_names(remote: Remote, reason: str) -> None:
    remote.server.plan(Raw([event("Half", reason), DONE]))
    assert remote.result().finish_reason == "length"


def test_words_in_odd_places_arrive_once(remote: Remote) -> None:
    whole = {"choices": [{"message": {"content": "Hi there"}, "finish_reason": "stop"}]}
    refusal = {"choices": [{"delta": {"refusal": "No."}, "finish_reason": "stop"}]}
    remote.server.plan(
        Raw([event("Hi"), event(" there"), b"data: " + json.dumps(whole).encode() + b"\n\n", DONE]),
        Raw([b"data: " + json.dumps(refusal).encode() + b"\n\n", DONE]),
        Status(201, {"choices": [{"message": {"content": "Made."}}]}),
    )
    assert [remote.result().text for _ in range(3)] == ["Hi there", "No.", "Made."]


def test_words_beside_an_error_are_kept(remote: Remote) -> None:
    chunk = {"choices": [{"delta": {"content": " more"}, "finish_reason": "error"}],
             "error": {"message": "gone"}}  # fmt: skip
    remote.server.plan(Raw([event("Half"), b"data: " + json.dumps(chunk).encode() + b"\n\n"]))
    failed = remote.failure()
    assert failed.partial is not None
    assert failed.partial.text == "Half more"


@pytest.mark.parametrize(
    ("reply", "message"),
    [
        (Raw([b"<html>hello</html>"], "text/event-stream"), "it sent text/event-stream"),
        (Raw([b"Hello, I am plain text"], None), "it sent something without a type"),
        (Raw([b"null"], "application/json"), "it sent application/json"),
        (Raw([b'{"hello": 1}'], "application/json"), "its answer has no choices"),
        (Raw([b""], None), "ended without an answer"),
        (Raw([b": ping\n\n"], None), "ended without an answer"),
        (Raw([b'{"choices": [{"mess'], "application/json"), "ended without an answer"),
        (Raw([event("Half an"), b'data: {"choices": [{"del']), "in the middle of the answer"),
        (Raw([event("Half an"), b"data: {no json}\n\n"]), "is no JSON"),
    ],
)
def test_what_is_no_answer_is_said(remote: Remote, reply: Raw, message: str) -> None:
    remote.server.plan(reply)
    failed = remote.failure()
    assert message in failed.error.message  # type: ignore[attr-defined]
    assert (failed.partial is not None) == any(b"Half an" in part for part in reply.parts)
    remote.server.plan(Whole("All at once."))
    assert remote.result().text == "All at once."


def test_an_error_with_the_status_of_success_is_one(remote: Remote) -> None:
    remote.server.plan(Status(200, {"error": {"message": "no such model"}}))
    assert "It says: no such model." in str(remote.failure().error)


# Any bytes


def pieces_of(parts: Sequence[bytes]) -> list[StreamPiece]:
    reader = StreamReader(LIMIT, LIMIT)
    found = [piece for part in parts for piece in reader.push(part)]
    return found + list(reader.finish())


def cut(data: bytes, cuts: list[int]) -> list[bytes]:
    edges = sorted({0, len(data), *(at % (len(data) + 1) for at in cuts)})
    return [data[a:b] for a, b in pairwise(edges)]


SCRAPS = st.sampled_from(
    [b"data: ", b"data:", b"event: error", b"event: ping", b"\n", b"\r", b"\r\n", b"\n\n",
     b"{", b"}", b"[", b"]", b'"', b"null", b"[DONE]", b": ", b"id: 1", b"error: ", b"\xff",
     b'{"choices":[]}', b'{"error":1}', b'{"choices":[{"message":{}}]}', "é".encode(),
     b"\xef\xbb\xbf", said("x")]
)  # fmt: skip


@given(st.lists(SCRAPS | st.binary(max_size=8), max_size=20), st.lists(st.integers(0, 400)))
def test_any_bytes_are_read_alike_however_they_are_cut(
    scraps: list[bytes], cuts: list[int]
) -> None:
    data = b"".join(scraps)
    pieces = pieces_of([data])
    assert pieces_of(cut(data, cuts)) == pieces
    assert all(isinstance(piece.content, dict) for piece in pieces if piece.kind == "chunk")
    assert [piece.kind == "chunk" for piece in pieces[:-1]] == [True] * len(pieces[:-1])


NOISE = st.lists(
    st.sampled_from(
        [": comment", "data: null", "data:", "event: ping", "id: 3", "retry: 5", 'data: "hm"', ""]
    ),
    max_size=3,
)
WORDS = st.text(st.characters(codec="utf-8"), max_size=12)


@given(
    st.lists(st.tuples(WORDS, NOISE, st.booleans()), max_size=6),
    st.sampled_from(["\n", "\r\n", "\r"]),
    st.sampled_from(["data: ", "data:", "DATA: "]),
    st.booleans(),
    st.lists(st.integers(0, 2000)),
)
def test_no_character_is_lost_in_a_stream(
    told: list[tuple[str, list[str], bool]], end: str, name: str, is_done: bool, cuts: list[int]
) -> None:
    lines: list[str] = []
    for text, noise, has_blank in told:
        lines += [*noise, "", name + json.dumps(chunk(text)), *([""] if has_blank else [])]
    lines += ["", f"{name}[DONE]"] if is_done else []
    data = end.join(lines).encode()
    pieces = pieces_of(cut(data, cuts))
    assert text_of(pieces) == "".join(text for text, _, _ in told)
    assert {piece.kind for piece in pieces} <= {"chunk", "done"}


@given(st.lists(WORDS, max_size=6), st.booleans(), st.lists(st.integers(0, 2000)))
def test_no_character_is_lost_in_objects_line_by_line(
    told: list[str], is_ascii: bool, cuts: list[int]
) -> None:
    data = "".join(json.dumps(chunk(text), ensure_ascii=is_ascii) + "\n" for text in told).encode()
    assert text_of(pieces_of(cut(data, cuts))) == "".join(told)


def chunk(text: str) -> dict[str, Any]:
    return {"choices": [{"delta": {"content": text}}]}


def text_of(pieces: list[StreamPiece]) -> str:
    chunks = [piece.content for piece in pieces if piece.kind == "chunk"]
    return "".join(found["choices"][0]["delta"]["content"] for found in chunks)


def test_what_does_not_end_is_given_up() -> None:
    reader = StreamReader(1000, 5000)
    parts = (b"data: " + b"x" * 400 for _ in range(10))
    assert [piece.content for part in parts for piece in reader.push(part)] == [
        "a line of it is far too long"
    ]
    reader = StreamReader(1000, 5000)
    told = [piece for _ in range(100) for piece in reader.push(b"{\n" + b" " * 90 + b"\n")]
    assert told == [StreamPiece("broken", "its answer does not end")]
