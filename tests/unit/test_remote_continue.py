"""Going on with an answer where a server refuses that, repeats itself, or begins anew."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chatcache.backends.base import ChatMessage
from chatcache.backends.remote.continuation import BeganAnewError, Continuation
from tests.fake_server import FakeServer, Reply, Status, Stream
from tests.unit.test_remote_backend import HELLO, PARTIAL, Remote, request

OLD = PARTIAL[-1].text  # "The beginning of an answer"


@pytest.fixture
def remote() -> Iterator[Remote]:
    with FakeServer() as server:
        remote = Remote(server)
        yield remote
        remote.backend.close()


def no(message: str, status: int = 400) -> Status:
    return Status(status, {"error": {"message": message}})


@pytest.mark.parametrize("think", [None, True])
@pytest.mark.parametrize("status", [400, 500])
@pytest.mark.parametrize(
    "message",
    [
        "Assistant response prefill is incompatible with enable_thinking.",
        "prefill cannot be used while thinking is on",
        "continue_final_message is not possible with reasoning",
    ],
)
def test_thinking_is_switched_off_where_it_is_in_the_way(
    remote: Remote, message: str, status: int, think: bool | None
) -> None:
    def judge(body: Mapping[str, Any]) -> Reply | None:
        is_off = body.get("chat_template_kwargs") == {"enable_thinking": False}
        return Stream(" goes on") if is_off else no(message, status)

    remote.server.judge = judge
    for _ in range(2):
        asked = request(*PARTIAL, continue_answer=True, think=think)
        assert remote.result(asked).text == " goes on"
    assert len(remote.server.chats) == 3
    remote.server.judge = lambda body: None
    remote.result()
    assert "chat_template_kwargs" not in remote.server.chats[-1].body


def test_a_mark_that_is_wanted_is_set(remote: Remote) -> None:
    def judge(body: Mapping[str, Any]) -> Reply | None:
        if body["messages"][-1].get("prefix") is True:
            return Stream(" goes on")
        return no("Expected last role User or Tool (or Assistant with prefix True) for serving")

    remote.server.judge = judge
    for _ in range(2):
        assert remote.result(request(*PARTIAL, continue_answer=True)).text == " goes on"
    assert len(remote.server.chats) == 3


@pytest.mark.parametrize(
    "refusal",
    [
        no("This model does not support assistant message prefill."),
        no("The last message must have the role user."),
        no("Assistant response prefill is incompatible with enable_thinking."),
        no("Cannot set continue_final_message", 500),
    ],
)
def test_where_it_is_not_possible_the_way_out_is_said(remote: Remote, refusal: Status) -> None:
    remote.server.judge = lambda body: refusal
    failed = remote.failure(request(*PARTIAL, continue_answer=True))
    assert "does not go on in the middle of an answer" in failed.error.message  # type: ignore[attr-defined]
    assert "`/regen` answers anew" in failed.error.hint  # type: ignore[attr-defined]
    assert failed.partial is None
    assert len(remote.server.chats) < 8
    remote.server.judge = lambda body: None
    assert remote.result().text == "You said: hello there"


@pytest.mark.parametrize(
    ("pieces", "text"),
    [
        ([" goes on"], " goes on"),
        ([OLD, " goes on"], " goes on"),
        (["The beginning of", " an answer goes", " on"], " goes on"),
        (["beginning of an answer", " goes on"], " goes on"),
        (["ing of an answer goes on"], " goes on"),
        (["s of mine"], "s of mine"),
        (["The end."], "The end."),
        ([OLD], ""),
        (["The beginning of an"], ""),
        (["\n\n", OLD, " goes on"], " goes on"),
        (["\n\nmore of it"], "\n\nmore of it"),
        (["The begi"], "The begi"),
    ],
)
def test_old_words_are_joined_only_where_they_agree(
    remote: Remote, pieces: list[str], text: str
) -> None:
    remote.server.plan(Stream(pieces))
    assert remote.result(request(*PARTIAL, continue_answer=True)).text == text


@pytest.mark.parametrize(
    ("old", "sent", "text"),
    [
        ("Hello there", "Hello there, you.", ", you."),
        ("Hello there ", "Hello there, you.", ", you."),
        ("Hello there ", "Hello there you.", "you."),
        ("A list:\n\n", "A list:\n\n- one", "- one"),
        ("ha", "haha", "haha"),
        ("Hello there", "Help", "Help"),
        (" \n", "Yes.", "Yes."),
    ],
)
def test_short_beginnings_and_spaces_are_joined_as_well(
    remote: Remote, old: str, sent: str, text: str
) -> None:
    remote.server.plan(Stream([sent[:3], sent[3:]]))
    asked = request(*HELLO, ChatMessage("assistant", old), continue_answer=True)
    assert remote.result(asked).text == text


@pytest.mark.parametrize("step", [1, 4, 100])
def test_another_answer_is_not_joined(remote: Remote, step: int) -> None:
    other = "The beginning of another story."
    remote.server.plan(Stream([other[at : at + step] for at in range(0, len(other), step)]))
    failed = remote.failure(request(*PARTIAL, continue_answer=True))
    assert "wrote another answer instead of going on" in failed.error.message  # type: ignore[attr-defined]
    assert "/regen" in failed.error.hint  # type: ignore[attr-defined]
    assert failed.partial is None
    assert remote.result().text == "You said: hello there"


def test_a_server_that_cannot_be_told_to_go_on_and_begins_anew(remote: Remote) -> None:
    remote.server.plan(no("Unknown parameter: continue_final_message"))
    remote.server.plan(no("Unknown parameter: add_generation_prompt"), Stream("Sure, here it is."))
    failed = remote.failure(request(*PARTIAL, continue_answer=True))
    assert "wrote another answer" in str(failed.error)
    remote.server.plan(Stream("s are the hardest part."))
    going_on = remote.result(request(*PARTIAL, continue_answer=True))
    assert going_on.text == "s are the hardest part."
    remote.server.plan(Stream("Function()"))
    code = ChatMessage("assistant", "```python\ndef a():\n    my")
    assert remote.result(request(*HELLO, code, continue_answer=True)).text == "Function()"


TEXTS = st.text(st.sampled_from("ab \n"), max_size=40)


@given(TEXTS, TEXTS, st.lists(st.integers(0, 80), max_size=5), st.booleans())
def test_new_words_are_never_lost(before: str, after: str, cuts: list[int], repeats: bool) -> None:
    """Whatever came before, and however it is cut: all of it comes, or none."""

    def join(parts: list[str]) -> str | None:
        continuation = Continuation(before)
        try:
            new = "".join([continuation.push(part) for part in parts])
        except BeganAnewError:
            return None
        return new + continuation.rest()

    sent = before + after if repeats else after
    edges = sorted({0, len(sent), *(at % (len(sent) + 1) for at in cuts)})
    parts = [sent[a:b] for a, b in pairwise(edges)]
    assert join(parts) == join([sent])
    joined = join(parts)
    if not repeats:
        assert joined is None or after.endswith(joined)
    elif len(before) >= 16 and before.strip() == before:
        assert joined in (after, after.lstrip())
